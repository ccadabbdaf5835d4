"""PASCAL-Part's short names of parts as words: "rflleg" is nobody's word for a right front lower leg."""

import re
from typing import Final

from agvas_core.data.sets.parts import part_names

__all__ = ["pascal_words"]

_SIDES: Final = {"l": "left", "r": "right", "f": "front", "b": "back"}
_LIMB: Final = re.compile(
    r"^(?P<side>[lr])(?P<end>[fb])?(?P<level>[lu])?(?P<name>leg|pa|ho|arm|eye|ear|ebrow|horn|wing|foot|hand|mirror)$"
)
_LIMB_NAMES: Final = {"pa": "paw", "ho": "hoof", "ebrow": "eyebrow"}
_LEVELS: Final = {"l": "lower", "u": "upper"}
_FACE: Final = re.compile(r"^(?P<coach>[hc])?(?P<side>front|left|right|back|roof)side$")
_OTHERS: Final = {
    "fwheel": "front wheel",
    "bwheel": "back wheel",
    "fliplate": "front license plate",
    "bliplate": "back license plate",
    "leftmirror": "left mirror",
    "rightmirror": "right mirror",
    "chainwheel": "chain wheel",
}
_THINGS: Final = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "monitor"}


def pascal_words(thing: str, part: str | None = None) -> tuple[str, ...]:
    """How a thing, or a part of it, may be asked for; ``part`` as the set writes it, with or without a number."""
    thing = _THINGS.get(thing, thing)
    return (thing,) if part is None else part_names(thing, _part_words(re.sub(r"_\d+$", "", part)))


def _part_words(code: str) -> str:
    if code in _OTHERS:
        return _OTHERS[code]
    if limb := _LIMB.match(code):
        name = _LIMB_NAMES.get(limb["name"], limb["name"])
        words = (_SIDES[limb["side"]], _SIDES.get(limb["end"] or "", ""), _LEVELS.get(limb["level"] or "", ""), name)
        return " ".join(word for word in words if word)
    if face := _FACE.match(code):
        of = {"h": "head ", "c": "coach "}.get(face["coach"] or "", "")
        return f"{of}{face['side']} side"
    return code.replace("_", " ")
