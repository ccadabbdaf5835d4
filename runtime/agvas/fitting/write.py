"""Writing a product: whole, or not at all.

Everything is written into a new folder beside the target and renamed at the end. Until then the earlier product, if there is one, is
untouched, and what is unfinished has a name that no command takes for a product.
"""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.certificate import PARITY_NAME
from agvas_core.contract.decision import BALANCED, STRICT, Decision, OperatingPoint
from agvas_core.contract.errors import BundleError, OutputError, UsageError
from agvas_core.contract.manifest import (
    BANK,
    SCHEMA_VERSION,
    read_manifest,
    sha256_of,
    write_manifest,
)
from agvas_core.contract.product import HEAD, LOCATE, PRODUCT, REPORT, Product
from agvas_runtime.bundle import Bundle, load_bundle
from agvas_runtime.images.locate import Locator

__all__ = ["check_target", "write_product"]


def check_target(out: Path, *, add: bool) -> None:
    """Raises UsageError where ``out`` is something else than a product or a free name; with ``add`` it must be a product."""
    if not out.exists() and not out.is_symlink():
        if add:
            raise UsageError(f"{out} does not exist; --add needs a product that was made with agvas fit GOOD -o {out}")
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file; a product is a folder: choose another name with -o")
    if not any(out.iterdir()) and not add:
        return
    try:
        manifest = read_manifest(out)
    except BundleError as error:
        if add:
            raise
        raise UsageError(f"{out} has other files in it and is no product; choose another name with -o") from error
    if manifest.product is None:
        raise UsageError(f"{out} is a bundle that was never fitted; choose another name with -o")


def write_product(
    out: Path,
    bundle: Bundle,
    product: Product,
    bank: NDArray[np.float32],
    report: str,
    points: tuple[OperatingPoint, OperatingPoint],
    head: bytes | None = None,
    locator: Locator | None = None,
) -> Bundle:
    """Writes the folder and loads it once, so that what is renamed to ``out`` is known to be whole.

    Args:
        bundle: that it is made from; a product, where one grows.
        points: balanced and strict; of the crop, where the part is located.
        head: graph of a new fitted head; where it is None and the product has a head, that of ``bundle`` stays.
        locator: how the part is found, where the product locates it.

    Raises:
        OutputError: no space or permission; ``out`` is as it was.
    """
    part = out.parent / f".{out.name}.{os.getpid()}.part"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        _fill(part, bundle, product, bank, report, points, head, locator)
        load_bundle(part)
        _put(part, out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror}): choose a folder with space and permission") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return load_bundle(out)


def _fill(
    part: Path,
    bundle: Bundle,
    product: Product,
    bank: NDArray[np.float32],
    report: str,
    points: tuple[OperatingPoint, OperatingPoint],
    head: bytes | None,
    locator: Locator | None,
) -> None:
    ours = {PRODUCT, BANK, REPORT} | ({HEAD} if head is not None else set()) | ({LOCATE} if locator is not None else set())
    unused = {name for name, known in ((HEAD, product.head), (LOCATE, product.locate)) if known is None}
    names = [name for name in bundle.manifest.files if name not in ours | unused]
    certificate = [PARITY_NAME] if (bundle.folder / PARITY_NAME).is_file() else []
    for name in [*names, *certificate]:
        # A copy, and no hard link: what changes a file of the product in its place must not change the model that it was made from.
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, part / name)
    if head is not None:
        (part / HEAD).write_bytes(head)
    if locator is not None and not cv2.imwrite(str(part / LOCATE), locator.template):
        raise OSError(0, f"{LOCATE} is not written")
    np.save(part / BANK, bank, allow_pickle=False)
    text = json.dumps(product.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (part / PRODUCT).write_text(text + "\n", encoding="utf-8")
    (part / REPORT).write_text(report, encoding="utf-8")
    files = {name: bundle.manifest.files[name] for name in names} | {name: sha256_of(part / name) for name in sorted(ours)}
    # A score is the mean of the highest pixels of a crop: the same number of them is a smaller share of the frame.
    share = 1.0 if product.locate is None else product.locate.share
    balanced, strict = (point.model_copy(update={"image_share": point.image_share * share}) for point in points)
    references = bundle.manifest.references
    manifest = bundle.manifest.model_copy(
        update={
            "schema_version": SCHEMA_VERSION,
            "name": product.name,
            "created": product.created,
            "product": PRODUCT,
            "references": None if references is None else references.model_copy(update={"max_rows": len(bank)}),
            "decision": Decision(alpha=bundle.manifest.decision.alpha, operating_points={BALANCED: balanced, STRICT: strict}),
            "provenance": {**bundle.manifest.provenance, "base": product.base},
            "files": dict(sorted(files.items())),
        }
    )
    write_manifest(part, manifest)
    for path in part.iterdir():  # on disk before the rename is
        with suppress(OSError), path.open("rb") as file:
            os.fsync(file.fileno())


def _put(part: Path, out: Path) -> None:
    """Renames ``part`` to ``out``; what was there goes away only once the new one has its place."""
    if not out.exists():
        part.rename(out)
        return
    old = out.parent / f".{out.name}.{os.getpid()}.old"
    out.rename(old)
    try:
        part.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
