"""A GPU, a TensorRT, a bundle and its engines on one bench."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from fake_cuda import FakeCuda

from agvas_core.contract.gpu import cuda_gpu
from agvas_export.trt.build import build_plan
from agvas_export.trt.plan import make_plan
from agvas_export.trt.recipe import find_recipe

__all__ = ["Bench"]


@dataclass(frozen=True)
class Bench:
    """``tensorrt`` and ``cuda`` are the fakes; engines go to ``store``, where the runtime looks."""

    cuda: FakeCuda
    tensorrt: ModuleType
    bundle: Path
    store: Path

    def build(self, max_batch: int = 2) -> Path:
        """As ``agvas-export trt`` does."""
        plan = make_plan(self.bundle, find_recipe("h100"), precision=None, max_batch=max_batch)
        return build_plan(plan, cuda_gpu(), self.store)
