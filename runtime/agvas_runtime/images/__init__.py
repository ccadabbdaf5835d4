"""Image files and camera buffers to RGB pixels, and pixels to the views the model sees."""
