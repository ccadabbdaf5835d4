"""``agvas-export check`` from its options to its exit code: table, certificate, page."""

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from agvas_core.contract.certificate import PARITY_NAME, write_certificate
from agvas_core.contract.command_line import printable
from agvas_core.contract.errors import OutputError, UsageError
from agvas_core.contract.manifest import MANIFEST_NAME, read_manifest
from agvas_export.check import DEFAULT_LIMITS, Checked, Limits, check_bundle, refuse_failed
from agvas_export.check_page import render_page

__all__ = ["CheckJob", "run_check"]


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
        UsageError: into a bundle whose manifest vouches for the file of that name.
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


def print_table(console: Console, done: Checked) -> None:
    """What was found, for people."""
    certificate = done.certificate
    console.print(
        f"{certificate.bundle} ({certificate.precision}) against {certificate.reference}: {certificate.images} images"
        + (f", {certificate.unused} files that cannot be judged left out" if certificate.unused else "")
    )
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("engine", "joint", "tensor"):
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
