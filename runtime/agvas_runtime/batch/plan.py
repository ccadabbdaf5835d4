"""The resumable manifest of a batch: which image is in which shard, written down once before the first is looked at.

    OUT/plan.json                    the job, the number of images, how they are cut
    OUT/plan/part-00000.parquet      names; one row group is one shard, PART_SHARDS of them a file

``plan.json`` is written last, so a plan is whole or not there. An image's index is its place in the plan.
"""

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError, model_serializer, model_validator

from agvas_core import __version__
from agvas_core.contract.durable import write_durably
from agvas_core.contract.errors import OutputError, UsageError
from agvas_core.contract.validation import StrictModel
from agvas_runtime.pipeline.options import SegmentOptions

__all__ = ["PLAN_NAME", "BatchJob", "Plan", "Shard", "make_plan", "read_plan"]


PLAN_NAME: Final = "plan.json"
PLAN_FOLDER: Final = "plan"
SCHEMA_VERSION: Final = 1
PART_SHARDS: Final = 256
SHARD_IMAGES: Final = 256  # at ten images a second, what a killed worker loses is half a minute of work
FEW_SHARDS: Final = 64  # a small batch is cut finer, so that every worker has something to do

_NAMES = pa.schema([pa.field("name", pa.binary(), nullable=False)])  # bytes: a file name need not be UTF-8


# The settings of a batch: the same for all its shards, and for every run that resumes it.


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


# The plan.


class Shard(NamedTuple):
    """Images that are looked at by one worker in one go."""

    number: int
    first: int
    """Index of its first image."""
    names: list[str]


class Plan(StrictModel):
    """``plan.json``."""

    tool: str = "agvas batch"
    schema_version: int = SCHEMA_VERSION
    agvas: str = __version__
    identity: str
    """A UUID, written into every result."""
    images: int
    shard_images: int
    part_shards: int = PART_SHARDS
    from_folder: bool = False
    """Whether the source was a folder of this machine."""
    left_out: dict[str, int] = {}
    job: BatchJob

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.images // self.shard_images)

    def size(self, number: int) -> int:
        """Images of a shard."""
        return min(self.shard_images, self.images - number * self.shard_images)

    def part(self, number: int) -> str:
        """``part-00012``: the file of the plan, and the folder of the results, that a shard belongs to."""
        return f"part-{number // self.part_shards:05d}"

    def shard(self, out: Path, number: int) -> Shard:
        """Names of one shard.

        Raises:
            OutputError: the plan cannot be read.
        """
        path = out / PLAN_FOLDER / f"{self.part(number)}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                rows = file.read_row_group(number % self.part_shards).column("name").to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"{path} cannot be read ({error}): restore it, or begin again with another --out DIR") from error
        assert len(rows) == self.size(number), f"shard {number} of {path} has {len(rows)} names and not {self.size(number)}"
        return Shard(number, number * self.shard_images, [os.fsdecode(row) for row in rows])


def read_plan(out: Path) -> Plan | None:
    """The plan in ``out``; None where there is none.

    Raises:
        UsageError: another version of agvas wrote it, or it is no plan.
    """
    path = out / PLAN_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({error.strerror}): grant the right to, or choose another --out DIR") from error
    try:
        plan = Plan.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(f"{path} is no plan of this agvas ({error.errors()[0]['msg']}): choose another --out DIR") from error
    if plan.tool != "agvas batch" or plan.schema_version != SCHEMA_VERSION:
        raise UsageError(
            f"{path} is a plan of version {plan.schema_version}; {SCHEMA_VERSION} is read: finish it with agvas {plan.agvas}, "
            "or choose another --out DIR"
        )
    return plan


def make_plan(out: Path, job: BatchJob, names: Iterator[str], *, shard_images: int | None, left_out: dict[str, int]) -> Plan:
    """Writes all names down, and then ``plan.json``.

    Args:
        shard_images: 256, or fewer where there are few images, if None.
        left_out: what the listing counts while it goes.

    Raises:
        UsageError: not one image.
        OutputError: it cannot be written.
    """
    folder = out / PLAN_FOLDER
    head = list(islice(names, FEW_SHARDS * SHARD_IMAGES)) if shard_images is None else []
    if shard_images is None:
        shard_images = min(SHARD_IMAGES, max(1, -(-len(head) // FEW_SHARDS)))
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a listing that was cut short
        folder.mkdir(parents=True)
        images = _write_parts(folder, _chained(head, names), shard_images)
        if images == 0:
            raise UsageError(f"{job.source} names 0 images; at least one is needed: check it")
        plan = Plan(
            identity=str(uuid.uuid4()),
            images=images,
            shard_images=shard_images,
            from_folder=os.path.isdir(os.path.join(job.base, job.source)),
            left_out={what: count for what, count in left_out.items() if count},
            job=job,
        )
        write_durably(out / PLAN_NAME, (plan.model_dump_json(indent=2) + "\n").encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror}): free some space, or choose another --out DIR"
        ) from error
    return plan


def _write_parts(folder: Path, names: Iterator[str], shard_images: int) -> int:
    images = 0
    for part in range(10**9):
        first = list(islice(names, shard_images))
        if not first:
            break
        with pq.ParquetWriter(folder / f"part-{part:05d}.parquet", _NAMES, compression="zstd") as writer:
            shard, shards = first, 0
            while shard:
                writer.write_table(pa.table([pa.array([os.fsencode(name) for name in shard], pa.binary())], schema=_NAMES))
                images, shards = images + len(shard), shards + 1
                shard = list(islice(names, shard_images)) if shards < PART_SHARDS else []
    return images


def _chained(head: Iterable[str], rest: Iterator[str]) -> Iterator[str]:
    yield from head
    yield from rest
