"""``agvas review``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from agvas_core.contract.errors import UsageError
from agvas_runtime.web.line.review_session import Shown

__all__ = ["review"]


def review(
    state: Annotated[Path, typer.Argument(metavar="STATE", help="The --state folder of a station, also while it runs.")] = Path(
        "line"
    ),
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The review folder that training and eval read.")
    ] = Path("review"),
    show: Annotated[Shown, typer.Option(help="Which parts: rejects, passes, or all whose image is kept.")] = Shown.all,
    station: Annotated[str | None, typer.Option(metavar="NAME", help="Parts of this station alone.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|STORE",
            help="The recipe that goes, for the next version of its product; of a store it can be activated here. By default that of the "
            "newest part.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="CPU threads of the next version; all cores by default.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback AGVAS_API_KEY is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 0,
    coco: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the review folder as COCO, with masks as run lengths, and leave.")
    ] = None,
    label_studio: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as tasks of Label Studio, with brush masks, and leave.")
    ] = None,
    image_prefix: Annotated[
        str | None, typer.Option(metavar="URL", help="With --label-studio: what goes before an image's path in the folder.")
    ] = None,
) -> None:
    """Serve a page on which a person says of stored parts, by keys: agree, false reject, escape; and paints the mask.

    From what was reviewed the page makes the next version of the product, shows which verdicts of past parts would change, and activates it
    when told to.

    Ctrl-C ends it; everything that was decided is in the folder.
    """
    if image_prefix is not None and label_studio is None:
        raise UsageError("--image-prefix has no meaning without --label-studio FILE")
    if coco is not None or label_studio is not None:
        _export(out, coco, label_studio, image_prefix)
        return

    from agvas.fitting.next_version import make_next
    from agvas_runtime.web.line.next_version import NextVersion
    from agvas_runtime.web.line.page_server import PageServer, settings_for
    from agvas_runtime.web.line.review_page import review_routes
    from agvas_runtime.web.line.review_session import Session

    session = Session(state, out, shown=show, station=station)
    following = NextVersion(session, make_next, recipe=recipe, threads=threads, station=station)
    server = PageServer("review", settings_for(host, port), options=("--port", "--host"))
    count = len(session.overview()["parts"])
    print(f"{server.address} ({count} parts; Ctrl-C ends, everything decided is kept)", flush=True)
    try:
        server.run(review_routes(session, following))
    finally:
        following.close()
    print(f"ended; {out} has what was decided", file=sys.stderr)


def _export(out: Path, coco: Path | None, label_studio: Path | None, prefix: str | None) -> None:
    from agvas_runtime.web.line.review_export import PREFIX, coco_of, label_studio_of, write_json

    if coco is not None:
        table = coco_of(out)
        write_json(coco, table)
        print(f"{coco}: {len(table['images'])} images, {len(table['annotations'])} annotations")
    if label_studio is not None:
        tasks = label_studio_of(out, prefix=PREFIX if prefix is None else prefix)
        write_json(label_studio, tasks)
        print(f"{label_studio}: {len(tasks)} tasks")
