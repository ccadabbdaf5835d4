"""Reference distances and a product's fitted head on TensorRT."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import UsageError
from agvas_core.contract.manifest import ReferencesSpec
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.open import StageSettings
from agvas_runtime.stages.protocol import Features, ReferenceDistances
from agvas_runtime.stages.references import empty_bank, head_of, reference_inputs, references_of
from agvas_runtime.stages.trt.engine import TrtEngine, open_engine_of

__all__ = ["TrtHead", "TrtReferences", "open_head", "open_stage"]

Float = NDArray[np.float32]


class TrtReferences:
    """``ReferenceStage`` on TensorRT. The engine takes banks of up to as many rows as it was built for."""

    def __init__(self, engine: TrtEngine, spec: ReferencesSpec) -> None:
        self.engine, self.spec = engine, spec

    def embed(self, image: NDArray[np.uint8], features: Features | None = None) -> Float:
        """See ``ReferenceStage``."""
        given = reference_inputs(self.spec, image, empty_bank(self.spec), features, 1.0)
        return np.asarray(self.engine.run(given, ("embedding",))["embedding"])

    def __call__(
        self, image: NDArray[np.uint8], bank: Float, features: Features | None = None, *, colour_weight: float = 1.0
    ) -> ReferenceDistances:
        """See ``ReferenceStage``; raises UsageError, too, for more rows than the engine was built for."""
        given = self.inputs(image, bank, features, colour_weight)
        found: dict[str, Any] = dict(self.engine.run(given, ("embedding", "deep", "joint")))
        return ReferenceDistances(*(np.asarray(found[name]) for name in ("embedding", "deep", "joint")))

    def inputs(
        self, image: NDArray[np.uint8], bank: Float, features: Features | None, colour_weight: float
    ) -> dict[str, NDArray[Any]]:
        """Inputs of the engine, by name; raises as a call does."""
        if len(bank) > self.spec.max_rows:
            raise UsageError(
                f"the bank has {len(bank)} rows; the references engine takes {self.spec.max_rows}: fit with a smaller bank"
            )
        return reference_inputs(self.spec, image, bank, features, colour_weight)


def open_stage(bundle: Bundle, settings: StageSettings) -> TrtReferences:
    """Raises SetupError: no GPU, no TensorRT, no engine that is for both, or too little memory; BundleError where the bundle has no
    references graph."""
    spec = references_of(bundle)
    return TrtReferences(open_engine_of(bundle, "references", spec, settings), spec)


class TrtHead:
    """``HeadStage`` on TensorRT."""

    def __init__(self, engine: TrtEngine) -> None:
        self.engine = engine

    def __call__(self, embedding: Float, rarities: Float) -> Float:
        """As of ``HeadStage``; raises ImageError, too, for a view that the engine was not built for."""
        found = self.engine.run({"embedding": embedding, "rarities": rarities}, ("logit",))
        return np.asarray(found["logit"], np.float32)


def open_head(bundle: Bundle, settings: StageSettings) -> TrtHead:
    """Raises SetupError as ``open_stage``; BundleError where the product has no head."""
    return TrtHead(open_engine_of(bundle, "head", head_of(bundle), settings))
