"""What kinds of synthetic image come, and how often."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agvas_core.data.defects import KINDS
from agvas_core.data.textures import FAMILIES

__all__ = ["DEFAULT_SPEC", "SynthesisSpec"]


class SynthesisSpec(BaseModel):
    """What kinds of image come, and how often. Shares of scenes need not add up to one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    texture: float = Field(0.48, ge=0)  # prototype's mix of scenes
    object: float = Field(0.30, ge=0)
    frame: float = Field(0.12, ge=0)
    organic: float = Field(0.10, ge=0)
    normal_fraction: float = Field(0.33, ge=0, le=1)  # without a defect: IoU_nor .26 -> .86 in the prototype
    several_fraction: float = Field(0.45, ge=0, le=1)  # of the others: two kinds or three
    repeated_fraction: float = Field(0.12, ge=0, le=1)  # of the others: 5 to 20 of one kind, spread over the part
    large_fraction: float = Field(0.22, ge=0, le=1)  # of defects: covering 5 to 30 % of the part, where the kind allows it
    max_defects: int = Field(3, ge=1, le=8)
    kinds: tuple[str, ...] = KINDS
    families: tuple[str, ...] = tuple(FAMILIES)
    held_out_families: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> "SynthesisSpec":
        for given, known, what in (
            (self.kinds, KINDS, "kinds"),
            (self.families + self.held_out_families, tuple(FAMILIES), "families"),
        ):
            if unknown := sorted(set(given) - set(known)):
                raise ValueError(f"unknown {what} {', '.join(unknown)}; known are {', '.join(known)}")
        if not self.kinds or not self.shown_families:
            raise ValueError("no kind or no family is left; name at least one of each")
        if self.texture + self.object + self.frame + self.organic <= 0:
            raise ValueError("all shares of scenes are 0; give at least one of texture, object, frame, organic")
        return self

    @property
    def shown_families(self) -> tuple[str, ...]:
        """The families that may appear anywhere in an image."""
        return tuple(name for name in self.families if name not in self.held_out_families)


DEFAULT_SPEC = SynthesisSpec()
