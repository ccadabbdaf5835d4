"""The generator: pictures of parts and surfaces with painted defects, masks and words."""
