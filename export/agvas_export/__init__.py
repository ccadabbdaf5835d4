"""Checkpoint -> bundle: graphs, manifest, hashes."""

import agvas_core  # noqa: F401 - before ONNX Runtime, whose reports it turns off
