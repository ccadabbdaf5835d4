"""AG-VAS: the model, its data, training and metrics. ``agvas_core.contract`` works without torch."""

__all__ = ["__version__"]

__version__ = "0.1.0"
