"""The settings of a batch: the same for all its shards, and for every run that resumes it."""

from typing import Any, Final

from pydantic import model_serializer, model_validator

from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import StrictModel
from agvas_runtime.pipeline.options import SegmentOptions

__all__ = ["BatchJob"]

# The order of the keys in plan.json. Of the options those stand there that a verdict depends on.
_KEYS: Final = (
    "source",
    "base",
    "model",
    "bundle",
    "prompt",
    "mode",
    "normal_look",
    "operating_point",
    "threshold",
    "tiling",
    "max_pixels",
    "bits",
    "recipe",
)
_OWN: Final = frozenset(("source", "base", "bundle", "recipe"))


class BatchJob(StrictModel):
    """Everything that a verdict depends on, and where the images are.

    In ``plan.json`` it is one flat table: the options stand beside ``source`` and ``bundle``, by their own names.
    """

    source: str
    """As the user named it."""
    base: str
    """The folder that relative names start from."""
    bundle: str
    """Identity of the model's bundle: a worker that finds another one refuses to work."""
    options: SegmentOptions
    recipe: str | None = None
    """Text of the recipe whose rules decide; the operating point does if None."""

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "options" in data:
            return data
        flat = [key for key in _KEYS if key in data and key not in _OWN]
        return {key: value for key, value in data.items() if key not in flat} | {"options": {key: data[key] for key in flat}}

    @model_serializer
    def _to_flat(self) -> dict[str, Any]:
        return {key: getattr(self if key in _OWN else self.options, key) for key in _KEYS}

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
