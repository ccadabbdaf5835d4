"""The encoders of eq. 1: SAM, published ViTs, and nano's with its prior."""
