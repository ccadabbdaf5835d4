"""Training sets in their published layouts: one file per family of layouts, and one record type for all of them."""
