"""Checks and preparation that the reference stages of all engines share."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import BundleError, UsageError
from agvas_core.contract.manifest import GraphSpec, ReferencesSpec
from agvas_core.contract.product import head_spec
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.protocol import Features

__all__ = ["empty_bank", "head_of", "reference_inputs", "references_of"]

Float = NDArray[np.float32]


def references_of(bundle: Bundle) -> ReferencesSpec:
    """The bundle's graph of the references.

    Raises:
        BundleError: it has none.
    """
    spec = bundle.manifest.references
    if spec is None:
        raise BundleError(
            f"{bundle.identity} has no references graph, so it cannot be compared with good images: export it again with "
            "agvas-export bundle CHECKPOINT -o DIR"
        )
    return spec


def head_of(bundle: Bundle) -> GraphSpec:
    """The graph of the product's fitted head.

    Raises:
        BundleError: it has none.
    """
    product = bundle.product
    if product is None or product.head is None:
        raise BundleError(f"{bundle.identity} has no fitted head: agvas fit GOOD -o PRODUCT --head makes a product with one")
    return head_spec(product.channels)


def empty_bank(spec: ReferencesSpec) -> Float:
    """A bank of one row of zeros, for embedding alone: float32 [1, D]."""
    return np.zeros((1, spec.channels), np.float32)


def reference_inputs(
    spec: ReferencesSpec,
    image: NDArray[np.uint8],
    bank: Float,
    features: Features | None,
    colour_weight: float,
) -> dict[str, NDArray[Any]]:
    """Inputs of the graph, by name.

    Raises:
        UsageError: a bank that does not fit the graph, a weight that is not one, or no features where they are needed.
    """
    if bank.ndim != 2 or bank.shape[1] != spec.channels or len(bank) < 1 or bank.dtype != np.float32:
        raise UsageError(
            f"the bank is {bank.dtype} {list(bank.shape)}; float32 [rows, {spec.channels}] with at least one row is needed: "
            "fit the product again with this model"
        )
    if not (np.isfinite(colour_weight) and colour_weight >= 0):
        raise UsageError(f"colour_weight is {colour_weight}; it must be a number of 0 or more")
    given: dict[str, NDArray[Any]] = {"bank": bank, "colour_weight": np.array(colour_weight, np.float32)}
    if spec.view is not None:
        return {"reference_image": image, **given}
    if features is None:
        raise UsageError("this model measures the vision stage's features: give them beside the image")
    return {"pixel_image": image, **{name: features.decoder[name] for name in spec.features}, **given}
