"""Scoring of score maps against masks: ``agvas eval``. NumPy and OpenCV only; the model comes in through ``predictor``."""
