"""The ``mixture`` table of a training configuration; the paper's numbers are the defaults."""

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from agvas_core.contract.prompts import Anchor
from agvas_core.contract.validation import StrictModel
from agvas_core.data.datasets.contamination import TEST_SETS
from agvas_core.data.datasets.record import Family
from agvas_core.data.templates.rules import Task

__all__ = ["PAPER_SHARES", "TABLE_5", "MixtureConfig", "SetConfig", "Source", "SourceConfig"]


class Source(StrEnum):
    """The four rows of table 5."""

    GENERAL = "general"
    INSTRUCT = "instruct"
    SEG = "seg"
    VQA = "vqa"


PAPER_SHARES: dict[Source, float] = {
    Source.GENERAL: 0.4,
    Source.INSTRUCT: 0.25,
    Source.SEG: 0.25,
    Source.VQA: 0.1,
}  # table 5, B.2
TABLE_5: dict[Source, tuple[str, ...]] = {
    Source.GENERAL: (
        "ade20k", "coco-stuff", "paco-lvis", "partimagenet", "pascal-part", "refclef", "refcoco", "refcoco+", "refcocog",
    ),
    Source.INSTRUCT: ("instruct",),  # written about Real-IAD, DTD-Synthetic and GoodsAD
    Source.SEG: ("road", "miad", "gc10", "dtd-synthetic", "zju-leaper", "real-iad"),
    Source.VQA: ("llava-150k", "webad"),
}  # fmt: skip
"""The sets of table 5, by the names of their adapters."""
_ALL: tuple[Anchor, ...] = tuple(Anchor)
FAMILIES: dict[Source, frozenset[Family]] = {
    Source.GENERAL: frozenset({Family.GENERAL, Family.REFERRING}),
    Source.INSTRUCT: frozenset({Family.INSTRUCT}),
    Source.SEG: frozenset({Family.ANOMALY}),
    Source.VQA: frozenset({Family.CONVERSATION}),
}
TASKS: dict[Source, frozenset[Task]] = {
    Source.GENERAL: frozenset(),
    Source.INSTRUCT: frozenset(Task) - {Task.GENERAL, Task.REFERRING},
    Source.SEG: frozenset({Task.DIRECT, Task.REJECTION}),
    Source.VQA: frozenset(),
}
NORMAL_TASKS: dict[Source, frozenset[Task]] = {
    source: frozenset({Task.DIRECT, Task.REJECTION, Task.DESCRIBE, Task.EXPLAIN}) if source is Source.SEG else frozenset()
    for source in Source
}


class SetConfig(StrictModel):
    """One data set of the mixture."""

    name: str
    """Of its adapter, as ``agvas data check`` prints it."""
    path: Path
    label: str | None = None
    """What tells it from another set of the same name and source; the name by default."""
    source: Source | None = None
    """Which row of table 5 it belongs to; its own by default."""
    splits: tuple[str, ...] | None = None
    """Which of its splits are taken; the adapter's training splits by default."""
    only: str | None = None
    """A pattern for the names of its records, as of a shell: "*_C1_*" takes the first of Real-IAD's five views alone."""
    weight: float = Field(default=1.0, gt=0)
    """How often against the other sets of its source."""

    @property
    def key(self) -> str:
        """Its label or name."""
        return self.label or self.name


class SourceConfig(StrictModel):
    """How one source is drawn from."""

    spread: Literal["sets", "images"]
    """Whether each of its sets, or each of its images, comes as often as the others."""
    families: dict[Family, float] = {}
    """How often sets of one family come against those of the others, all sets of a family together; by the number of sets where empty."""
    supervise: tuple[Anchor, ...]
    """The anchors whose masks are learned from where its examples have a mask."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many records, chosen once by the seed: ``normal_fraction`` of them normal where there are both."""
    choice: Literal["even", "random"] = "even"
    """Whether ``limit`` takes as evenly over the sets as they reach, or at random from all images."""
    normal_fraction: float = Field(default=0.5, ge=0, le=1)
    """Share of normal images among what is drawn, where there are both."""
    tasks: dict[Task, float] = {}
    """How often each kind of exchange comes; scaled to add up to 1. For general and vqa it follows from the record."""
    normal_tasks: dict[Task, float] = {}
    """The same for normal images, where they are asked otherwise; for seg alone. In describe and explain the answer is a refusal."""

    @field_validator("supervise", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """Anchors are written by their names."""
        if not isinstance(given, list | tuple):
            return given
        if foreign := [one for one in given if isinstance(one, str) and one not in Anchor.__members__]:
            raise ValueError(f"supervise has {foreign[0]!r}; there are {', '.join(Anchor.__members__)}")
        return tuple(Anchor[one] if isinstance(one, str) else one for one in given)

    @field_serializer("supervise")
    def _to_names(self, given: tuple[Anchor, ...]) -> list[str]:
        return [anchor.name for anchor in given]

    @model_validator(mode="after")
    def _weighed(self) -> Self:
        if any(weight <= 0 for weight in self.families.values()):
            raise ValueError(f"families are {self.families}: a weight is above 0; to leave a family out, leave out its sets")
        for name, tasks in (("tasks", self.tasks), ("normal_tasks", self.normal_tasks)):
            if any(weight < 0 for weight in tasks.values()) or (tasks and not sum(tasks.values()) > 0):
                raise ValueError(f"{name} are {tasks}: weights must not be negative, nor all 0")
        return self


_DEFAULTS: dict[Source, SourceConfig] = {
    Source.GENERAL: SourceConfig(
        spread="sets",
        # As LISA, whose set-up the paper adopts (4.1): its rates of semantic and part segmentation against referring (scripts/train.sh).
        families={Family.GENERAL: 9, Family.REFERRING: 3},
        supervise=(Anchor.SEG,),  # B.2: [NOR] and [ANO] "exclusively" on the anomaly sets, [SEG] on all with masks
    ),
    Source.INSTRUCT: SourceConfig(
        spread="images",
        supervise=_ALL,
        # The four types of sec. 3.3; the paper gives no shares. dialogue and conversation can be added.
        tasks={Task.DIRECT: 1, Task.DESCRIBE: 1, Task.DESCRIBE_PLUS: 1, Task.EXPLAIN: 1},
    ),
    Source.SEG: SourceConfig(
        spread="images",
        supervise=_ALL,
        limit=20_000,  # 4.1, B.1
        normal_fraction=0.5,  # B.1: "a balanced distribution of normal and anomalous samples"
        # Figure 11 has templates for rejection, no share; ours leaves most to direct, which is what is evaluated.
        tasks={Task.DIRECT: 0.75, Task.REJECTION: 0.25},
        # The texts of Anomaly-Instruct20K are about anomalous images: without these a normal image is never seen in the modes of table 4.
        normal_tasks={Task.DIRECT: 0.6, Task.REJECTION: 0.2, Task.DESCRIBE: 0.1, Task.EXPLAIN: 0.1},
    ),
    Source.VQA: SourceConfig(spread="images", supervise=()),
}


class MixtureConfig(StrictModel):
    """Everything that decides what example ``i`` is, except the files themselves."""

    seed: int = Field(default=0, ge=0)
    sets: tuple[SetConfig, ...]
    shares: dict[Source, float] = PAPER_SHARES
    """How often an example comes from each source; scaled to add up to 1."""
    drop: tuple[Source, ...] = ()
    """Sources to leave out, for the ablations of table 3."""
    general: SourceConfig = _DEFAULTS[Source.GENERAL]
    instruct: SourceConfig = _DEFAULTS[Source.INSTRUCT]
    seg: SourceConfig = _DEFAULTS[Source.SEG]
    vqa: SourceConfig = _DEFAULTS[Source.VQA]
    composition: Literal["table-5"] | None = None
    """``table-5``: those sets of ``sets`` that table 5 has are taken and no others, and none of them may be missing."""
    allow_test_sets: tuple[str, ...] = ()
    """Names of test sets that are trained on all the same (``contamination.TEST_SETS``); without one, such images are refused."""
    test_data: tuple[Path, ...] = ()
    """Folders of test sets, as ``agvas eval`` takes them, none of whose images may be trained on, under whatever name they come."""
    templates: Path | None = None
    """A folder of own templates."""
    held_out: float = Field(default=0.0, ge=0, lt=1)
    """Share of the images with normal and anomalous ones (seg, instruct) that training never draws, kept to validate on. Chosen by the end
    of their paths, so that an image is held out of every source that has it, on every machine; all views of one part together."""
    attempts: int = Field(default=16, ge=1)
    """Records tried for one example before the data are given up as broken."""

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, table: Any) -> Any:
        """A table that names some keys of a source keeps our values for the others."""
        if not isinstance(table, dict):
            return table
        given = {source: table[source] for source in Source if isinstance(table.get(source), dict)}
        return table | {source.value: _DEFAULTS[source].model_dump() | own for source, own in given.items()}

    @field_validator("allow_test_sets")
    @classmethod
    def _known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        known = [one.name for one in TEST_SETS]
        if foreign := [name for name in given if name not in known]:
            raise ValueError(f"allow_test_sets has {foreign[0]!r}; there are {', '.join(known)}")
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if wrong := [source for source, share in self.shares.items() if share < 0]:
            raise ValueError(f"shares.{wrong[0]} is {self.shares[wrong[0]]}; a share is 0 or more")
        if not self.used_shares():
            raise ValueError("no source is left: drop fewer, or give one of general, instruct, seg, vqa a share above 0")
        for source in Source:
            if TASKS[source] and not self.source(source).tasks:
                raise ValueError(f"{source}.tasks is empty; for {source} there are: {', '.join(sorted(TASKS[source]))}")
            if foreign := sorted(set(self.source(source).tasks) - TASKS[source]):
                known = ", ".join(sorted(TASKS[source])) or "none, the record decides"
                raise ValueError(f"{source}.tasks has {foreign[0]}; for {source} there are: {known}")
            if foreign := sorted(set(self.source(source).normal_tasks) - NORMAL_TASKS[source]):
                known = ", ".join(sorted(NORMAL_TASKS[source])) or "none"
                raise ValueError(f"{source}.normal_tasks has {foreign[0]}; for {source} there are: {known}")
        return self

    def source(self, source: Source) -> SourceConfig:
        """How ``source`` is drawn from."""
        found: SourceConfig = getattr(self, source.value)
        return found

    def used_shares(self) -> dict[Source, float]:
        """The sources that are drawn from, with their shares scaled to add up to 1."""
        kept = {source: share for source, share in self.shares.items() if share > 0 and source not in self.drop}
        total = sum(kept.values())
        return {source: kept[source] / total for source in Source if source in kept}
