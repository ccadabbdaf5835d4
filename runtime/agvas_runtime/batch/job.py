"""What a batch asks of every image; the same for all its shards, and for every run that goes on with it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from agvas_core.contract.errors import UsageError

__all__ = ["BatchJob"]


class BatchJob(BaseModel):
    """Everything that a verdict depends on, and where the images are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    """As the user named it."""
    base: str
    """The folder that relative names start from."""
    model: str
    bundle: str
    """Identity of the model's bundle: a worker that finds another one refuses to work."""
    prompt: str | None = None
    mode: str = "direct"
    normal_look: str | None = None
    operating_point: str = "balanced"
    threshold: float | None = None
    tiling: Literal["auto", "off"] = "auto"
    max_pixels: int
    bits: int | None = None
    recipe: str | None = None
    """Text of the recipe whose rules decide; the operating point does where None."""

    def differences(self, other: "BatchJob") -> list[str]:
        """``key: mine, not theirs`` for each thing that the two do not agree on."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [f"{key} is {_short(mine[key])}, and was {_short(theirs[key])}" for key in mine if mine[key] != theirs[key]]

    def must_be(self, earlier: "BatchJob", out: str) -> None:
        """Refuses to go on with results that were asked for in another way.

        Raises:
            UsageError: names what differs.
        """
        if found := self.differences(earlier):
            raise UsageError(
                f"{out} was begun with other options: {'; '.join(found)}. Give those again, or choose another --out DIR"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
