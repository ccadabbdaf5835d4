"""One camera of a line, as it was asked for: where frames come from, which recipe, what triggers, what happens to the queue."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agvas_core.contract.errors import UsageError
from agvas_runtime.line.queue_policy import QueuePolicy
from agvas_runtime.line.station import QUEUE_PARTS
from agvas_runtime.sources import CameraSource, FolderWatch, Source, open_source
from agvas_runtime.sources.camera_address import camera_address
from agvas_runtime.sources.folder_watch import WATCH_SCHEME
from agvas_runtime.triggers.open_trigger import FREE, check_trigger

__all__ = ["LaneJob", "lane_jobs"]

STALL_S: Final = 1.4  # with the source's own grace, a camera that stops is noticed within two seconds
OPEN_S: Final = 10.0


@dataclass(frozen=True)
class LaneJob:
    """What a lane is made from; checked by ``lane_jobs``."""

    name: str
    """Of the station, in the ledger and for every sink."""
    recipe: Path
    camera: str | None = None
    sources: tuple[str, ...] = ()
    trigger: str = FREE
    policy: QueuePolicy | None = None
    pixel_format: str | None = None
    """Of a camera of this machine: what it is to send."""
    bits: int | None = None
    """That 16-bit files, and frames of Mono16, use."""

    @property
    def triggered(self) -> bool:
        """Whether frames count only where one was asked for."""
        return self.trigger != FREE

    @property
    def what(self) -> str:
        """How the source is called for a person."""
        return "camera" if self.camera is not None else "source"

    @property
    def queue_policy(self) -> QueuePolicy | None:
        """The one that was asked for; a camera that is triggered itself sends parts, and none of them is to be dropped."""
        if self.policy is None and self.camera is not None and not self.camera.startswith(WATCH_SCHEME):
            return QueuePolicy.EVERY if "trigger" in camera_address(self.camera).settings else None
        return self.policy

    def open_source(self, known: Callable[[str], bool] = lambda key: False) -> Source:
        """The camera, the folder that is watched, or the files. ``known`` says of a watched file's key whether it was taken before."""
        if self.camera is None:
            return open_source(self.sources, bits=self.bits)
        if self.camera.startswith(WATCH_SCHEME):
            return FolderWatch(self.camera.removeprefix(WATCH_SCHEME), known=known, bits=self.bits)
        policy = self.queue_policy
        return CameraSource(
            self.camera,
            name=self.name,
            open_timeout_s=OPEN_S,
            stall_timeout_s=STALL_S,
            pixel_format=self.pixel_format,
            bits=self.bits or 16,
            keep=QUEUE_PARTS if policy is QueuePolicy.EVERY or self.triggered else 1,
            block=policy is QueuePolicy.BLOCK and not self.triggered,
        )


def lane_jobs(
    cameras: Sequence[str],
    sources: Sequence[str],
    recipes: Sequence[Path],
    stations: Sequence[str] = (),
    triggers: Sequence[str] = (),
    policies: Sequence[QueuePolicy] = (),
    pixel_formats: Sequence[str] = (),
    bits: int | None = None,
) -> tuple[LaneJob, ...]:
    """A lane for each camera, or one for files. Recipes, triggers, policies and pixel formats are given once, or once for each camera in its order.

    Raises:
        UsageError: they do not fit, or one cannot be meant.
    """
    count = len(cameras) or 1
    for option, given, once in (
        ("recipe", recipes, True),
        ("station", stations, False),
        ("trigger", triggers, True),
        ("queue", policies, True),
        ("pixel-format", pixel_formats, True),
    ):
        if len(given) not in (0, count) and not (once and len(given) == 1):
            raise UsageError(
                f"--{option} is given {len(given)} times for {count} cameras: give it {'once, or ' if once else ''}once for each"
            )
    if triggers and not cameras:
        raise UsageError("--trigger is given and no --camera: files are parts as they come, leave it out")
    if pixel_formats and not cameras:
        raise UsageError(f"--pixel-format {pixel_formats[0]} is for --camera: leave it out")
    lanes = []
    for index in range(count):
        camera = cameras[index] if cameras else None
        name = stations[index] if stations else "files" if camera is None else _name(camera)
        trigger = triggers[index % len(triggers)] if triggers else FREE
        policy = policies[index % len(policies)] if policies else None
        pixels = pixel_formats[index % len(pixel_formats)] if pixel_formats else None
        check_trigger(trigger)
        lane = LaneJob(name, recipes[index % len(recipes)], camera, tuple(sources), trigger, policy, pixels, bits)
        _check(lane)
        lanes.append(lane)
    names = [lane.name for lane in lanes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two cameras are called {name}: give --station NAME for each, in their order")
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise UsageError(
                f"the station's name is {name!r}; letters, digits, dots, dashes and underscores are possible (--station)"
            )
    return tuple(lanes)


def _check(lane: LaneJob) -> None:
    if lane.camera is None:
        return
    if lane.camera.startswith(WATCH_SCHEME):
        if lane.triggered or lane.policy is QueuePolicy.LATEST:
            raise UsageError(f"{lane.camera} gives a part for each file: leave --trigger out, and --queue latest")
        if lane.pixel_format is not None:
            raise UsageError(f"{lane.camera} gives files, and --pixel-format {lane.pixel_format} is for a camera: leave it out")
        if not os.path.isdir(folder := lane.camera.removeprefix(WATCH_SCHEME)):  # Path.is_dir raises where it may not look
            raise UsageError(f"{folder!r} is no folder that can be watched: make it, or check its name and who may read it")
        return
    if lane.bits is not None and lane.pixel_format != "Mono16":
        raise UsageError(
            f"--bits {lane.bits} is for files and for cameras that send Mono16 (--pixel-format Mono16), not for {lane.name}: leave it out"
        )
    asked = camera_address(lane.camera).is_asked
    if asked and not lane.triggered:
        raise UsageError(f"{lane.name} gives a frame only when it is asked, and nobody asks: give --trigger, or another trigger=")
    if lane.triggered and "trigger" in camera_address(lane.camera).settings and not asked:
        raise UsageError(f"{lane.name} is triggered at the camera and by --trigger: leave one of the two out")
    if lane.triggered and lane.policy is QueuePolicy.LATEST:
        raise UsageError("--queue latest would drop parts that were asked for: with --trigger take every, or block")


def _name(camera: str) -> str:
    if camera.startswith(WATCH_SCHEME):
        return Path(camera.removeprefix(WATCH_SCHEME)).resolve().name or "files"
    return camera_address(camera).name
