"""The same shards on Ray Data: an actor holds one bundle, and a cluster has as many as fit.

The only module that imports Ray. What goes through Ray are numbers of shards and counts; images are read, and results written, by the
workers, so that a task that Ray runs twice does nothing twice.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray
import ray.data

from agvas_core.contract.errors import AgvasError
from agvas_runtime.batch.crew import error_of
from agvas_runtime.batch.shard_result import Done
from agvas_runtime.batch.shard_worker import ShardWorker

__all__ = ["RayCrew"]

MOST_BLOCKS: Final = 20_000  # tasks that Ray keeps count of; beyond it, a task has several shards


class RayCrew:
    """As ``Crew``. Connects to the cluster that ``RAY_ADDRESS`` names, or else runs Ray on this machine while it lasts."""

    def __init__(self, out: Path, *, workers: int, threads: int) -> None:
        self._out, self._workers, self._threads = out.resolve(), workers, threads
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        self.deaths = 0
        self._ours = not ray.is_initialized()
        if self._ours:
            away = "RAY_ADDRESS" in os.environ
            here: dict[str, Any] = {} if away else {"num_cpus": workers * threads, "include_dashboard": False, "address": "local"}
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=False, **here)

    def run(self, shards: Sequence[int]) -> Iterator[Done]:
        """Raises what a worker reports (AgvasError)."""
        if not shards:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        found = ray.data.from_items(
            [{"shard": number} for number in shards], override_num_blocks=min(len(shards), MOST_BLOCKS)
        ).map_batches(
            _Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=self._workers),
            num_cpus=self._threads,
            fn_constructor_args=(str(self._out), self._threads),
        )
        for row in found.iter_rows():
            if row["failed"]:
                raise error_of(int(row["code"]), str(row["failed"]))
            verdicts = dict(zip(("PASS", "FAIL", "NO_VERDICT"), (int(count) for count in row["verdicts"]), strict=True))
            yield Done(int(row["shard"]), int(row["images"]), verdicts)

    def close(self) -> None:
        """Ends Ray where it was ours."""
        if self._ours:
            ray.shutdown()

    def __enter__(self) -> "RayCrew":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Actor:
    """What Ray makes one of per worker."""

    def __init__(self, out: str, threads: int) -> None:
        self._error: AgvasError | None = None
        try:
            self._worker = ShardWorker(Path(out), threads=threads)
        except AgvasError as error:  # raised here, Ray would start the actor again and again
            self._error = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (number,) = batch["shard"]
        verdicts, images, failed, code = [0, 0, 0], 0, "", 0
        try:
            if self._error is not None:
                raise self._error
            done = self._worker.work(int(number))
            assert done is not None, "actors are not stopped"
            verdicts, images = [done.verdicts.get(name, 0) for name in ("PASS", "FAIL", "NO_VERDICT")], done.images
        except AgvasError as error:
            failed, code = str(error), error.exit_code
        return {
            "shard": np.array([number]),
            "images": np.array([images]),
            "verdicts": np.array([verdicts]),
            "failed": np.array([failed]),
            "code": np.array([code]),
        }
