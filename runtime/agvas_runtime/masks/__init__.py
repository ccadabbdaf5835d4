"""Score map to mask, regions, verdict, overlay, and the result object."""
