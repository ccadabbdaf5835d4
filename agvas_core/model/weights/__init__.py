"""Weights: checkpoints, published models, adapters, and the anchors' vocabulary."""
