"""Words for defects: captions, their reading back, and instructions that refer to some defects and not to others.

    describe(sample.defects)        # "a small dark scratch at the top left and a large stain ..."
    parse(caption)                  # what it says, as (size, tone, kind, place), for measuring captions
    referring(sample, rng)          # ("Please segment the scratch in this image.", mask)

The vocabulary is small and plain on purpose: the smallest model has 512 words.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from agvas_core.data.synthetic.defects import KINDS
from agvas_core.data.synthetic.raster import Mask, chance, pick
from agvas_core.data.synthetic.sample import PLACES, SIZES, TONES, Defect, Sample

__all__ = [
    "GROUPS",
    "KINDS",
    "NOUNS",
    "NO_DEFECT",
    "SYNONYMS",
    "Mention",
    "absent_kind",
    "describe",
    "group_of",
    "instruction_for",
    "kind_of",
    "named_in",
    "normal_look",
    "parse",
    "referring",
    "referring_pair",
]

NO_DEFECT = "no anomaly"
MAX_MENTIONS = 3
GROUP = 3  # from this many of one kind on, they are named as a group

# kind -> (one, many) as captions say it
NOUNS: dict[str, tuple[str, str]] = {
    "line": ("scratch", "scratches"),
    "crack": ("crack", "cracks"),
    "hole": ("hole", "holes"),
    "spots": ("cluster of spots", "clusters of spots"),
    "stain": ("stain", "stains"),
    "patch": ("patch", "patches"),
    "dent": ("dent", "dents"),
    "thread": ("thread", "threads"),
    "worn": ("worn area", "worn areas"),
}
# other word -> kind, as people on a line say it
SYNONYMS: dict[str, str] = {
    "line": "line",
    "scratch": "line",
    "score": "line",
    "scrape": "line",
    "crack": "crack",
    "fracture": "crack",
    "hole": "hole",
    "pit": "hole",
    "chip": "hole",
    "blowhole": "hole",
    "spots": "spots",
    "cluster of spots": "spots",
    "specks": "spots",
    "stain": "stain",
    "discoloration": "stain",
    "contamination": "stain",
    "patch": "patch",
    "missing piece": "patch",
    "foreign material": "patch",
    "misalignment": "patch",
    "dent": "dent",
    "bump": "dent",
    "deformation": "dent",
    "thread": "thread",
    "fiber": "thread",
    "hair": "thread",
    "worn area": "worn",
    "worn": "worn",
    "rough area": "worn",
    "abrasion": "worn",
}
GROUPS: dict[str, tuple[str, ...]] = {
    "line": ("line", "crack", "thread"),
    "hole": ("hole",),
    "spots": ("spots",),
    "stain": ("stain",),
    "patch": ("patch",),
    "dent": ("dent",),
    "surface": ("worn",),
}
"""Kinds that the eye tells apart. The generator draws scratches, cracks and threads in different ways, but people cannot name them
surely from 60 pixels: an instruction that asks for one of a group means all of it."""

# Kinds that an honest eye may take for one another: asking for one where the other is present is no clear refusal.
_ALIKE: tuple[frozenset[str], ...] = (
    frozenset(GROUPS["line"]),
    frozenset({"hole", "spots", "stain"}),
    frozenset({"patch", "worn", "stain", "dent"}),
)
_REFERRED_WORDS = {  # what an instruction may call a kind; one word each time, so that the kind is learned under all of them
    "line": ("scratch", "line"),
    "crack": ("crack", "fracture"),
    "hole": ("hole", "pit"),
    "spots": ("spots", "specks"),
    "stain": ("stain", "discoloration"),
    "patch": ("patch",),
    "dent": ("dent", "deformation"),
    "thread": ("thread", "fiber"),
    "worn": ("worn area",),
}


class Mention(NamedTuple):
    """What a caption says of one defect or one group; ``place`` is empty where it is spread over the part."""

    size: str
    tone: str
    kind: str
    place: str
    group: bool


def kind_of(word: str) -> str | None:
    """The kind that ``word`` means, singular or plural; None where it is none of ours."""
    word = word.strip().lower()
    for one, many in NOUNS.values():
        if word == many:
            word = one
    return SYNONYMS.get(word) or SYNONYMS.get(word.removesuffix("s")) or SYNONYMS.get(word.removesuffix("es"))


def group_of(kind: str) -> str:
    """The group of :data:`GROUPS` that ``kind`` belongs to."""
    return next(group for group, kinds in GROUPS.items() if kind in kinds)


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _most_common(values: Sequence[str]) -> str:
    return max(sorted(set(values)), key=values.count)


def _mentions(defects: Sequence[Defect]) -> list[Mention]:
    """Largest first; defects of a kind that comes three times or more are one mention."""
    by_kind: dict[str, list[Defect]] = {}
    for defect in defects:
        by_kind.setdefault(defect.kind, []).append(defect)
    found: list[tuple[float, Mention]] = []
    for kind, members in by_kind.items():
        if len(members) >= GROUP:
            places = {member.place for member in members}
            size, tone = _most_common([m.size for m in members]), _most_common([m.tone for m in members])
            place = places.pop() if len(places) == 1 else ""
            found.append((sum(m.area_fraction for m in members), Mention(size, tone, kind, place, True)))
        else:
            found += [(m.area_fraction, Mention(m.size, m.tone, kind, m.place, False)) for m in members]
    return [mention for _, mention in sorted(found, key=lambda item: -item[0])][:MAX_MENTIONS]


def describe(defects: Sequence[Defect]) -> str:
    """The defects in one phrase, largest first, at most three: "a small dark scratch at the top left and ..."."""
    phrases = []
    for mention in _mentions(defects):
        noun = NOUNS[mention.kind][mention.group]
        phrase = f"{mention.size} {mention.tone} {noun}"
        phrase = f"a group of {phrase}" if mention.group else _article(phrase)
        phrases.append(phrase + (f" at the {mention.place}" if mention.place else " in several places"))
    if not phrases:
        return NO_DEFECT
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


_NOUN_PATTERN = "|".join(sorted((noun for pair in NOUNS.values() for noun in pair), key=len, reverse=True))
_PLACE_PATTERN = "|".join(sorted(PLACES, key=len, reverse=True))
_MENTION = re.compile(
    rf"an? (?P<group>group of )?(?P<size>{'|'.join(SIZES)}) (?P<tone>{'|'.join(TONES)}) (?P<noun>{_NOUN_PATTERN})"
    rf"(?: at the (?P<place>{_PLACE_PATTERN})| in several places)"
)


def parse(caption: str) -> tuple[Mention, ...]:
    """What ``caption`` says, in its order; phrases that are not ours are passed over."""
    return tuple(
        Mention(found["size"], found["tone"], kind_of(found["noun"]) or "", found["place"] or "", bool(found["group"]))
        for found in _MENTION.finditer(caption)
    )


def _far_apart(place: str, other: str) -> bool:
    """Two cells of the grid that cannot be confused: at least one whole cell lies between them."""
    a, b = divmod(PLACES.index(place), 3), divmod(PLACES.index(other), 3)
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 2


def _clear_size(size: str, other: str) -> bool:
    return {size, other} == {"small", "large"}


_CLEAR: dict[str, Callable[[str, str], bool]] = {"place": _far_apart, "size": _clear_size, "tone": lambda a, b: a != b}


def instruction_for(rng: np.random.Generator, target: str) -> str:
    return pick(rng, ("Please segment the {} in this image.", "Segment the {}.", "Please find the {} and segment it.")).format(
        target
    )


_NAMED_PLACE = re.compile(rf" at the (?P<place>{_PLACE_PATTERN})\b")
_NAMED_LOOK = re.compile(rf"\b(?P<value>{'|'.join((*SIZES, *TONES))}) anomaly\b")
_NAMED_KIND = re.compile(rf"\b(?P<word>{'|'.join(sorted(SYNONYMS, key=len, reverse=True))})(?:s|es)?\b")


def named_in(instruction: str) -> dict[str, str]:
    """What an instruction of :func:`instruction_for` names, by attribute: visible kind (a group), place, size, tone; only what it does."""
    named: dict[str, str] = {}
    if found := _NAMED_PLACE.search(instruction):
        named["place"] = found["place"]
    if found := _NAMED_LOOK.search(instruction):
        named["size" if found["value"] in SIZES else "tone"] = found["value"]
    elif "anomaly" not in instruction and (found := _NAMED_KIND.search(instruction)):
        named["kind"] = group_of(SYNONYMS[found["word"]])
    return named


_Reference = tuple[str, frozenset[int]]  # a target in words, and the labels that it means


def _references(sample: Sample, rng: np.random.Generator) -> dict[str, list[_Reference]]:
    """Everything that tells some of the defects from the others, by attribute: kind, place, size, tone.

    A property is used only where each other defect clearly lacks it: places at least a cell apart, small against large.
    """
    found: dict[str, list[_Reference]] = {"kind": []}
    for group in dict.fromkeys(group_of(defect.kind) for defect in sample.defects):
        chosen = [defect for defect in sample.defects if group_of(defect.kind) == group]
        kinds = {defect.kind for defect in chosen}
        words = _REFERRED_WORDS[chosen[0].kind if len(kinds) == 1 else group]
        word = words[0] if len(words) == 1 or chance(rng, 0.7) else words[1]
        if len(chosen) > 1 and group != "spots":
            word = f"{word}es" if word.endswith(("ch", "s")) else f"{word}s"
        elif len(chosen) == 1 and chance(rng, 0.25):
            word = f"{word} at the {chosen[0].place}"
        found["kind"].append((word, frozenset(defect.label for defect in chosen)))
    if len(sample.defects) > 1:
        for attribute, clear in _CLEAR.items():
            for value in dict.fromkeys(getattr(defect, attribute) for defect in sample.defects):
                chosen = [defect for defect in sample.defects if getattr(defect, attribute) == value]
                others = [defect for defect in sample.defects if getattr(defect, attribute) != value]
                if others and all(clear(value, getattr(other, attribute)) for other in others):
                    target = f"anomaly at the {value}" if attribute == "place" else f"{value} anomaly"
                    found.setdefault(attribute, []).append((target, frozenset(defect.label for defect in chosen)))
    return found


def _asked(sample: Sample, rng: np.random.Generator, reference: _Reference) -> tuple[str, Mask]:
    return instruction_for(rng, reference[0]), np.isin(sample.labels, list(reference[1]))


def referring(sample: Sample, rng: np.random.Generator) -> tuple[str, Mask] | None:
    """An instruction that means some of the defects and no other, and their mask; None without a defect.

    Half of the time by kind. Where nothing tells the defects apart, and where there is one alone, always by kind.
    """
    if not sample.defects:
        return None
    found = _references(sample, rng)
    others = [reference for attribute, references in found.items() if attribute != "kind" for reference in references]
    return _asked(sample, rng, pick(rng, others if others and chance(rng, 0.5) else found["kind"]))


def referring_pair(sample: Sample, rng: np.random.Generator) -> tuple[tuple[str, Mask], tuple[str, Mask]] | None:
    """Two instructions of one attribute that mean different defects of one image; None where there are no two.

    What is asked for decides between them, and nothing else: the same image, the same attribute.
    """
    pairs = [references for references in _references(sample, rng).values() if len(references) > 1] if sample.defects else []
    if not pairs:
        return None
    references = pick(rng, pairs)
    first, second = rng.permutation(len(references))[:2]
    return _asked(sample, rng, references[first]), _asked(sample, rng, references[second])


def normal_look(sample: Sample) -> str:
    """What an expert would say of the part before it is inspected (describe-then-segment-plus)."""
    name = sample.family.rpartition("/")[2]
    return {
        "texture": f"The normal look is an even {name} surface",
        "object": "The normal look is one whole part on a plain background",
        "frame": "The normal look is a clean part that fills the image",
        "organic": f"The normal look is even {name}",
    }[sample.scene]


def absent_kind(sample: Sample, rng: np.random.Generator) -> str | None:
    """What an instruction may call a kind that the sample does not show, and nothing in it resembles; None where every kind is near."""
    present = {defect.kind for defect in sample.defects}
    near = present.union(*(group for group in _ALIKE if group & present)) if present else present
    absent = [kind for kind in KINDS if kind not in near]
    return pick(rng, _REFERRED_WORDS[pick(rng, absent)]) if absent else None
