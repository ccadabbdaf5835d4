"""``agvas-export check`` from its options to its exit code: table, certificate, page."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from agvas_core.contract.certificate import PARITY_NAME, read_certificate, write_certificate
from agvas_core.contract.command_line import printable
from agvas_core.contract.errors import BundleError, OutputError, UsageError
from agvas_core.contract.manifest import MANIFEST_NAME, read_manifest
from agvas_core.contract.pages.document import Tile, cells, data_uri, document, escaped
from agvas_export.check import DEFAULT_LIMITS, Checked, Limits, Unlike, check_bundle, images_in, refuse_failed

__all__ = ["CheckJob", "render_page", "run_check"]


# Images that an engine judges otherwise than the model, side by side: one HTML file that opens from disk.


_WIDTH_PX = 300
_BOTH, _REFERENCE, _ENGINE = (120, 200, 120), (230, 120, 40), (60, 90, 240)  # BGR

_STYLE = """
td:nth-child(2), th:nth-child(2), td:nth-child(3), th:nth-child(3) { text-align: left; }
tr.wrong td { color: var(--orange); font-weight: 600; }
.unlike { margin: 0 0 20px; } .unlike figcaption { font-weight: 400; } .unlike figcaption span { margin: 0; }
.unlike div { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 220px), 300px)); gap: 10px; }
.unlike img { width: 100%; border-radius: 6px; display: block; } .unlike .flipped { color: var(--orange); font-weight: 600; }
i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 1em; }
"""


def render_page(done: Checked) -> str:
    """The page, whole."""
    certificate = done.certificate
    rows = "".join(
        f'<tr class="{"right" if joint.holds else "wrong"}">'
        f"{cells('td', [each.backend, joint.joint, joint.tensor, f'{joint.error:.1e}', f'{joint.tolerance:.0e}'])}</tr>"
        for each in certificate.backends
        for joint in each.joints
    )
    head = cells("th", ["engine", "stage", "tensor", "error", "allowed"])
    more = f" The worst {len(done.unlike)} are shown." if done.differing > len(done.unlike) else ""
    legend = (
        f"<p class=quiet>Images whose verdict or mask differs: {done.differing}.{more} Marked by<i style='background:#78c878'></i>"
        f"both<i style='background:#2878e6'></i>the model only<i style='background:#f05a3c'></i>the engine only; right, where their "
        f"score maps differ, and by how much at most.</p>"
    )
    body = (
        f'<section class="panel"><h2>Errors of each engine</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
        f'<section class="panel"><h2>Images that differ</h2>{legend}{"".join(map(_figure, done.unlike))}</section>'
    )
    return document(
        f"{certificate.bundle}: parity {'passed' if certificate.passed else 'failed'}",
        body,
        summary=f"{certificate.images} images, {certificate.precision}, on {certificate.hardware}, "
        f"{certificate.created:%Y-%m-%d %H:%M} UTC; reference {certificate.reference}.",
        tiles=[
            Tile(
                f"{len(each.flips)} of {certificate.images}",
                f"verdicts flipped, {each.backend}",
                f"IoU of masks {each.min_mask_iou:.4f} at least",
            )
            for each in certificate.backends
        ],
        style=_STYLE,
    )


def _figure(each: Unlike) -> str:
    verdict = each.engine.verdict if each.engine else "NO_VERDICT"
    flipped = f'<span class="flipped">{each.reference.verdict} became {verdict}</span>'
    words = flipped if verdict != each.reference.verdict else f"{verdict} both"
    off = f", score {each.reference.score:.4f} and {each.engine.score:.4f}" if each.engine else ""
    pictures = [each.image, marked(each)]
    if each.engine is not None:
        pictures.append(difference(each))
    largest = f", maps differ by up to {each.largest:.1e}" if each.engine else ""
    shown = "".join(f'<img alt="" src="{data_uri(picture[..., ::-1], 2 * _WIDTH_PX, 85)}">' for picture in pictures)
    return (
        f'<figure class="unlike"><figcaption><b>{escaped(each.name)}</b> on {escaped(each.backend)}: {words}, mask IoU {each.iou:.4f}{off}'
        f"{largest}</figcaption><div>{shown}</div></figure>"
    )


def marked(each: Unlike) -> NDArray[np.uint8]:
    """The image, RGB, with what both mark, and either alone."""
    own = each.engine.mask if each.engine else np.zeros_like(each.reference.mask)
    out = each.image.copy()
    truth = each.reference.mask
    for mask, (blue, green, red) in ((truth & own, _BOTH), (truth & ~own, _REFERENCE), (own & ~truth, _ENGINE)):
        out[mask] = (0.35 * out[mask] + 0.65 * np.array([red, green, blue])).astype(np.uint8)
    return out


def difference(each: Unlike) -> NDArray[np.uint8]:
    """Where the score maps differ, the largest difference white; RGB."""
    assert each.engine is not None
    off = np.abs(each.engine.score_map - each.reference.score_map)
    grey = np.asarray(255 * off / max(float(off.max()), 1e-9), np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


@dataclass(frozen=True)
class CheckJob:
    """What the options ask for."""

    bundle: str
    data: Path
    checkpoint: str | None = None
    backends: tuple[str, ...] = ()
    prompt: str | None = None
    limits: Limits = DEFAULT_LIMITS
    limit: int | None = None
    out: Path | None = None
    report: Path | None = None


def run_check(job: CheckJob) -> None:
    """Checks, prints, writes.

    Raises:
        ParityError: the certificate says no; it is written even so.
        AgvasError: as ``check_bundle``; or the certificate has no place.
    """
    folder = find_folder(job.bundle)
    place = certificate_place(folder, job.out)
    if job.out is None and job.limit is not None:
        refuse_smaller(place, min(job.limit, len(images_in(job.data))))
    console = Console(stderr=True, highlight=False)
    with console.status("starting") as status:
        done = check_bundle(
            folder,
            job.data,
            checkpoint=job.checkpoint,
            backends=job.backends or None,
            instruction=job.prompt,
            limits=job.limits,
            limit=job.limit,
            progress=lambda step: status.update(printable(step)),
        )
    write_certificate(place, done.certificate)
    print_table(Console(highlight=False), done)
    print(f"certificate: {place}")
    if done.unlike:
        print(f"to look at:  {write_page(job.report or Path('runs/check') / done.certificate.bundle, done)}")
    refuse_failed(done.certificate, read_manifest(folder))


def find_folder(bundle: str) -> Path:
    """The folder of a bundle, or of the one that ships under that name with the runtime.

    Raises:
        UsageError: neither.
    """
    folder = Path(bundle).expanduser()
    if folder.is_dir():
        return folder
    # By its place, not by import: the export knows no runtime.
    from importlib.util import find_spec

    spec = find_spec("agvas_runtime")
    for home in (spec.submodule_search_locations or []) if spec else []:
        shipped = Path(home) / "bundles" / bundle
        if (shipped / MANIFEST_NAME).is_file() and Path(bundle).name == bundle:
            return shipped
    if folder.is_file():
        raise UsageError(f"{bundle} is a file: unpack the bundle, for the certificate goes into its folder")
    raise UsageError(f"there is no bundle {bundle!r}: give the folder that agvas-export bundle wrote")


def certificate_place(folder: Path, out: Path | None) -> Path:
    """Where the certificate goes, known before the minutes of work.

    Raises:
        UsageError: into a bundle whose manifest has a hash for the file of that name.
        OutputError: a folder that cannot be written.
    """
    place = out or folder / PARITY_NAME
    if out is None and PARITY_NAME in read_manifest(folder).files:
        raise UsageError(
            f"{folder / MANIFEST_NAME} lists {PARITY_NAME}, as bundles from before certificates do: export the bundle again, or give the "
            "certificate another place with --out FILE"
        )
    if not place.parent.is_dir():
        raise OutputError(f"{place.parent} is not there: make it, or give another place with --out FILE")
    return place


def refuse_smaller(place: Path, images: int) -> None:
    """A check of a few images does not take the place of a certificate of many.

    Raises:
        UsageError: the bundle has one that passed, of more images.
    """
    try:
        there = read_certificate(place)
    except BundleError:
        return  # damaged: any other is better
    if there is not None and there.passed and there.images > images:
        raise UsageError(
            f"{place} is a certificate of {there.images} images, and {images} are to be checked: leave --limit out, or give the smaller one "
            "another place with --out FILE"
        )


def print_table(console: Console, done: Checked) -> None:
    """What was found, for people."""
    certificate = done.certificate
    console.print(
        f"{certificate.bundle} ({certificate.precision}) against {certificate.reference}: {certificate.images} images"
        + (f", {certificate.unused} files that cannot be judged left out" if certificate.unused else "")
    )
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("engine", "stage", "tensor"):
        table.add_column(name)
    for name in ("error", "allowed"):
        table.add_column(name, justify="right")
    for each in certificate.backends:
        for joint in each.joints:
            style = "" if joint.holds else "bold red"
            table.add_row(each.backend, joint.joint, joint.tensor, f"{joint.error:.1e}", f"{joint.tolerance:.0e}", style=style)
    console.print(table)
    for each in certificate.backends:
        console.print(
            f"{each.backend}: {len(each.flips)} of {certificate.images} verdicts flipped, mask IoU {each.min_mask_iou:.4f} at least, "
            f"{each.mean_mask_iou:.4f} on average, {each.seconds / certificate.images:.2f} s an image"
        )
    for name, why in done.skipped.items():
        console.print(f"{name}: left out, {why}", markup=False)


def write_page(folder: Path, done: Checked) -> Path:
    """Writes the page of images that differ and returns its path."""
    path = folder / "index.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(render_page(done), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): give another place with --report DIR") from error
    return path
