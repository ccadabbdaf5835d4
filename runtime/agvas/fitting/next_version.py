"""The next version of a product from a review folder: a new folder, whole or not at all; the product of now is only read."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from agvas.fitting.fit import fit
from agvas_core.contract.errors import OutputError
from agvas_runtime.bundle import load_bundle
from agvas_runtime.web.line.next_version import Made

__all__ = ["make_next"]


def make_next(
    review: Path, model: str, out: Path, progress: Callable[[str, int, int], None], *, name: str, threads: int | None = None
) -> Made:
    """As ``agvas fit --review REVIEW -o OUT``; a product learns on (``--add``), and a bundle that was never fitted is fitted.

    Args:
        review: folder of ``agvas review --out``.
        model: product or bundle that the line runs.
        out: a name that is free.
        name: of the product, where there is none yet.

    Raises:
        AgvasError: as of ``fit``; ``out`` is not there then.
    """
    bundle = load_bundle(model)
    part = out.parent / f".{out.name}.{os.getpid()}.next"
    try:
        if bundle.product is None:
            fitted = fit([], part, review=review, model=model, name=name, threads=threads, progress=progress)
        else:
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(bundle.folder, part)
            asked = bundle.product.promise.asked
            fitted = fit([], part, review=review, add=True, max_false_reject=asked, threads=threads, progress=progress)
        part.rename(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror}): choose a folder with space and permission") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Made(out, fitted.statement, tuple(fitted.warnings))
