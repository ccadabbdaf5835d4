"""Takes a shard to its results: the same on one machine and on a cluster."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agvas_core.contract.errors import ImageError, SourceError, UsageError
from agvas_runtime.batch.claim import Claim
from agvas_runtime.batch.look import open_look
from agvas_runtime.batch.picture_store import PictureStore
from agvas_runtime.batch.plan import Shard, read_plan
from agvas_runtime.batch.shard_result import Done, read_done, write_result
from agvas_runtime.frame import Frame

__all__ = ["ShardWorker"]


class ShardWorker:
    """One bundle, loaded once, and any number of shards, one after the other."""

    def __init__(self, out: Path, *, threads: int | None = None, stopped: Callable[[], bool] = lambda: False) -> None:
        """Args:
        stopped: asked after each image; True ends the shard without a trace.

        Raises:
            AgvasError: there is no plan in ``out``, or its model cannot be opened.
        """
        plan = read_plan(out)
        if plan is None:
            raise UsageError(f"{out} has no plan: agvas batch makes one")
        self.out, self.plan, self._stopped = out, plan, stopped
        self._pictures = PictureStore(plan.job.base, max_pixels=plan.job.max_pixels, bits=plan.job.bits)
        self._look = open_look(plan.job, threads=threads)

    def work(self, number: int) -> Done | None:
        """Looks at every image of a shard, and writes its results; None where it was stopped before the end.

        A shard that is done is not done again.

        Raises:
            SourceError: the images' folder or store is away; nothing is written then.
            OutputError: the results cannot be written.
        """
        claim = Claim(self.out, number)
        try:
            if (done := read_done(self.out, self.plan, number)) is not None:
                return done
            rows = []
            with_care = claim.careful
            for row in self._look(self._frames(self.plan.shard(self.out, number), claim), with_care):
                rows.append(row)
                if self._stopped():
                    return None
            self._check_source()
            assert [row["index"] for row in rows] == [number * self.plan.shard_images + i for i in range(self.plan.size(number))]
            return write_result(self.out, self.plan, number, rows)
        finally:
            claim.finish()

    def _frames(self, shard: Shard, claim: Claim) -> Iterator[Frame]:
        self._check_source()
        for index, name in enumerate(shard.names, shard.first):
            path = Path(name)
            if deaths := claim.deadly(index):
                yield Frame(
                    name,
                    index,
                    error=ImageError(f"{deaths} workers died while they looked at it: look at it yourself"),
                    path=path,
                )
                continue
            if claim.careful:
                claim.at(index)
            start = time.perf_counter()
            try:
                image = self._pictures.read(name)
            except ImageError as error:
                yield Frame(name, index, error=error, path=path)
            else:
                yield Frame(name, index, image=image, path=path, read_ms=(time.perf_counter() - start) * 1000)

    def _check_source(self) -> None:
        """A disk that is gone must not look like a million files that are gone."""
        job = self.plan.job
        root = os.path.join(job.base, job.source)
        if self.plan.from_folder and not os.path.isdir(root):
            raise SourceError(f"{root} is away: bring it back, and run the same command again; what is done is kept")
