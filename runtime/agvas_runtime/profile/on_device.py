"""What a backend with a stream of its own says of its device: times by the device's clock, and what it can do at best."""

from dataclasses import dataclass, field

from agvas_core.contract.preprocess import scaled_views
from agvas_core.contract.prompts import Mode
from agvas_runtime.frame import Frame
from agvas_runtime.profile.record import Machine, Quantiles
from agvas_runtime.segmenter import Segmenter
from agvas_runtime.stages.protocol import ProbedVision
from agvas_runtime.tiling import plan_looks
from agvas_runtime.views import make_views

__all__ = ["OnDevice"]


@dataclass(frozen=True)
class OnDevice:
    """``times`` of copies and joints; the vision stage to ask for limits, where its backend has a stream."""

    times: dict[str, Quantiles] = field(default_factory=dict)
    vision: ProbedVision | None = None

    @classmethod
    def of(cls, segmenter: Segmenter, frame: Frame, count: int) -> "OnDevice":
        """``count`` rounds of the frame's first view, in direct mode; nothing where a stage runs elsewhere."""
        vision, lmm, decoder = segmenter.stages
        if (
            not isinstance(vision, ProbedVision)
            or vision.joined(lmm, decoder) is None
            or segmenter.question.mode is not Mode.DIRECT
        ):
            return cls()
        assert frame.image is not None
        manifest, (height, width) = segmenter.bundle.manifest, frame.image.shape[:2]
        views = scaled_views(manifest.pixel_view, manifest.scales, height, width)
        look = plan_looks(height, width, views, manifest.tiling, enabled=segmenter.tiled)[0]
        tile = next(iter(look.tiles))
        semantic, pixel = make_views(frame.image[tile.rows, tile.columns], (manifest.semantic_view, look.view))
        found = vision.times(lmm, (semantic.pixels[None], pixel.pixels[None]), segmenter.prompt, count)
        return cls({name: Quantiles.of(ms) for name, ms in found.items()}, vision)

    def limits(self, machine: Machine, wanted: bool) -> Machine:
        """``machine`` with the device's rates in place of the CPU's, where the stages run on one."""
        if self.vision is None or not wanted:
            return machine
        name, flop_per_s, bytes_per_s = self.vision.limits()
        return machine.model_copy(
            update={"matmul_gflops": round(flop_per_s / 1e9, 1), "copy_gbs": round(bytes_per_s / 1e9, 1), "limits_of": name}
        )
