"""Thresholds from good parts, with what they promise."""
