"""``agvas data review``: a person's word on generated texts. Needs nothing but the base install."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from agvas_core.contract.errors import SetupError
from agvas_core.data.instruct.prompt import load_prompt
from agvas_core.data.instruct.review import Review
from agvas_core.data.instruct.review_server import ReviewServer

__all__ = ["review"]


def review(
    file: Annotated[Path, typer.Argument(help="What agvas data instruct wrote.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes a free one.")] = 0,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the set, where it has moved.")] = None,
    prompt: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with the forbidden.toml that instruct was given.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve a page on this machine on which a person accepts, edits or rejects each text, with keys."""
    with Review(file, load_prompt(prompt).wording, root=root) as session:
        try:
            server = ReviewServer(session, port=port)
        except OSError as error:
            raise SetupError(
                f"port {port} cannot be used: {error.strerror}; choose another with --port, or 0 for a free one"
            ) from error
        with server:
            print(f"{server.url} ({len(session)} entries; Ctrl-C ends, everything decided is kept)", flush=True)
            if open_page:
                webbrowser.open(server.url)
            try:
                server.serve_forever()
            except KeyboardInterrupt as error:  # Typer would forget which signal it was
                raise typer.Abort from error
