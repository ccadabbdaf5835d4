"""Which stored parts a person reviews."""

from enum import StrEnum

__all__ = ["Shown"]


class Shown(StrEnum):
    """By verdict; a part whose image is not kept cannot be shown."""

    rejects = "rejects"
    passes = "passes"
    all = "all"
