"""Good images to a product: references, operating point, image limits, report. ``agvas.fit`` is the function."""
