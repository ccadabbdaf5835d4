"""Names and defaults that commands, files and engines share. Imports nothing, so that a command's help can show them."""

from typing import Final

__all__ = ["BALANCED", "DEFAULT_BACKEND", "DEFAULT_MODEL", "MAX_PIXELS", "STRICT"]

BALANCED: Final = "balanced"
"""Operating point of a bundle that is used where none is named."""
STRICT: Final = "strict"
"""Operating point of a bundle that spares good parts."""
DEFAULT_MODEL: Final = "nano"
DEFAULT_BACKEND: Final = "onnx"
"""ONNX Runtime on the CPU."""
MAX_PIXELS: Final = 100_000_000
"""Width times height of an image. A 100-megapixel camera fits; decoded, that is 300 MB."""
