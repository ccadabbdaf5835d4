"""From the bytes of an image file to RGB: the same pixels in training, evaluation and at run time."""
