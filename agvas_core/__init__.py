"""AG-VAS: the model, its data, training and metrics. ``agvas_core.contract`` works without torch."""

import os

__all__ = ["__version__"]

__version__ = "0.1.0"

# ONNX Runtime's wheels report to their maker from 1.32 on. Only this, before the first import, keeps them from it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
