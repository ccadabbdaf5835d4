"""``agvas data instruct``: texts about anomalies from a vision-language model."""

import asyncio
import base64
import json
import os
import webbrowser
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agvas_core.contract.command_line import INPUT, MODEL, OUTPUT, SPEED, printable
from agvas_core.contract.errors import OutputError, SetupError, UsageError
from agvas_core.data.datasets.anomalies import MVTEC, listed_records
from agvas_core.data.datasets.catalog import find_training_sets
from agvas_core.data.datasets.layouts import list_name
from agvas_core.data.datasets.record import Family
from agvas_core.data.instruct.endpoint import Address, Endpoint, RateLimit, RetryPolicy
from agvas_core.data.instruct.generation import Generation, Outcome, pictures_of, rejects_path
from agvas_core.data.instruct.prompt import Prompt, load_prompt
from agvas_core.data.instruct.review import Review
from agvas_core.data.instruct.review_server import ReviewServer
from agvas_core.data.instruct.samples import Found, Sample, limited, samples_of

__all__ = ["instruct", "review", "write_preview"]


# What would be sent about a sample, as files for a person to look at before anything leaves the machine.


def write_preview(folder: Path, sample: Sample, pictures: Sequence[str], prompt: Prompt, keys: Mapping[str, Any]) -> None:
    """Writes picture_1.jpg and so on, and request.json, which names them where the pictures would stand.

    Args:
        pictures: data URLs, as they would be sent.
        keys: of the request besides its messages.

    Raises:
        OutputError: the folder cannot be written.
    """
    names = [f"picture_{number}.jpg" for number in range(1, len(pictures) + 1)]
    request = {**keys, "messages": prompt.messages(sample.category, sample.kind, names)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, url in zip(names, pictures, strict=True):
            (folder / name).write_bytes(base64.b64decode(url.partition(",")[2]))
        (folder / "request.json").write_text(json.dumps(request, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}; choose a folder with space and permission") from error


KEY_VARIABLE: Final = (
    "AGVAS_API_KEY"  # of its own: a key for one provider must not go to another because its variable happens to be set
)
LISTED: Final = 5


def instruct(
    data: Annotated[Path, typer.Argument(help="Folder of a set, or of several; or a list, meta_<set>.json.")],
    out: Annotated[Path, typer.Argument(help="File of JSON lines; one that is there is gone on with.")],
    endpoint: Annotated[
        str,
        typer.Option(metavar="URL", help="OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1.", rich_help_panel=MODEL),
    ],
    model: Annotated[str, typer.Option(help="The model, as the endpoint calls it.", rich_help_panel=MODEL)],
    key_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable with the API key.", rich_help_panel=MODEL)
    ] = KEY_VARIABLE,
    only: Annotated[
        str | None, typer.Option("--set", metavar="NAME", help="The set of this name alone.", rich_help_panel=INPUT)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="At most N images of each kind of each category.", rich_help_panel=INPUT),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which images --limit takes.", rich_help_panel=INPUT)] = 0,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Questions at a time.", rich_help_panel=SPEED)] = 4,
    rate: Annotated[
        float | None, typer.Option(min=0.01, metavar="N", help="At most N requests a minute.", rich_help_panel=SPEED)
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, max=100, help="How often to repeat a request that failed.", rich_help_panel=SPEED)
    ] = 6,
    attempts: Annotated[
        int, typer.Option(min=1, max=20, help="How many answers to ask for until one is valid.", rich_help_panel=SPEED)
    ] = 3,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="For a whole answer.", rich_help_panel=MODEL)] = 180,
    image_px: Annotated[
        int, typer.Option(min=64, max=4096, help="Longest side of the pictures that are sent.", rich_help_panel=INPUT)
    ] = 1024,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="Of the model's choice of words.", rich_help_panel=MODEL)
    ] = 0.4,
    max_tokens: Annotated[int, typer.Option(min=64, help="Longest answer.", rich_help_panel=MODEL)] = 1500,
    body: Annotated[
        str, typer.Option(metavar="JSON", help="Further keys of the request; null takes one out.", rich_help_panel=MODEL)
    ] = "{}",
    prompt: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with system.txt, example.json, ... in place of ours.", rich_help_panel=INPUT),
    ] = None,
    retry_rejects: Annotated[
        bool, typer.Option("--retry-rejects", help="Ask again about what was rejected.", rich_help_panel=OUTPUT)
    ] = False,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the first request into DIR and send nothing.", rich_help_panel=OUTPUT),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Have a vision-language model describe each anomaly of a set (Anomaly-Instruct20K): checked JSON lines for review and training."""
    console = Console(stderr=True)
    spoken = load_prompt(prompt)
    address, key = Address.of(endpoint), api_key(key_env)
    keys = {"temperature": temperature, "max_tokens": max_tokens, **_json_object(body)}
    samples = find_samples(data, only, console, quiet=quiet)
    if limit is not None:
        samples = limited(samples, limit, seed)
    if preview is not None:
        write_preview(preview, samples[0], pictures_of(samples[0], image_px), spoken, {"model": model, **keys})
        return
    if key and not address.encrypted and not address.loopback:
        console.print(f"the key goes to {address.host} unencrypted: use https where you can", style="yellow", markup=False)
    asked = Endpoint(address, model, key, RateLimit(rate), RetryPolicy(retries=retries), timeout, keys)
    with Generation(out, spoken, asked, attempts, concurrency, image_px) as generation:
        todo = generation.remaining(samples, retry_rejects=retry_rejects)
        try:
            _run(generation, todo, console, quiet=quiet)
        except KeyboardInterrupt as error:  # Typer would forget which signal it was
            raise typer.Abort from error
        finally:
            if not quiet:
                _summary(generation, samples, todo, console)
    if generation.tally.unanswered:
        raise SetupError(f"{generation.tally.unanswered} samples got no answer from {address.host}: run the same command again")


def api_key(variable: str) -> str | None:
    """The key in an environment variable; None where it is not set, as for servers of one's own.

    Raises:
        UsageError: it cannot be a key, or the default was not meant and the named one is not set.
    """
    key = os.environ.get(variable, "").strip()
    if not key and variable != KEY_VARIABLE:
        raise UsageError(f"--key-env is {variable}, which is not set: export {variable}=...")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"{variable} has spaces, line breaks or letters that no key has: set it again")
    return key or None


def find_samples(data: Path, only: str | None, console: Console, *, quiet: bool = True) -> list[Sample]:
    """The anomalous images in a folder of sets or on a list.

    Raises:
        UsageError: none is there, or two cannot be told apart.
    """
    found: list[Found] = []
    if data.is_file():
        found.append(samples_of(listed_records(data), data.parent, list_name(data)))
    else:
        for one in find_training_sets(data, only, everything=True):
            if one.adapter.family is Family.ANOMALY:  # any folder in MVTec's layout is a set of its own
                name = one.root.resolve().name if one.adapter is MVTEC else one.adapter.name
                found.append(samples_of(one.records(), one.root, name))
    samples = [sample for group in found for sample in group.samples]
    if not samples:
        raise UsageError(f"{data} has no anomalous image with a mask: name the folder of an anomaly set, or a list of its images")
    twice = [key for key, times in Counter(sample.key for sample in samples).items() if times > 1]
    if twice:
        raise UsageError(f"{data} has two samples of the name {twice[0]}: write the sets into two files, or rename a folder")
    for group in found if not quiet else ():
        _notes(group, console)
    return samples


def _notes(found: Found, console: Console) -> None:
    for reason in found.unusable[:LISTED]:
        console.print(f"left out: {printable(reason)}", style="yellow", markup=False, soft_wrap=True)
    if len(found.unusable) > LISTED:
        console.print(f"left out: {len(found.unusable) - LISTED} more for lack of a mask", style="yellow", markup=False)
    if found.alone:
        listed = ", ".join(map(printable, found.alone[:LISTED])) + (" ..." if len(found.alone) > LISTED else "")
        console.print(f"no normal image in {listed}: asked with two pictures", style="yellow", markup=False, soft_wrap=True)


def _run(generation: Generation, todo: list[Sample], console: Console, *, quiet: bool) -> None:
    columns = (TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet, transient=True) as progress:
        task = progress.add_task("", total=len(todo), note="")

        def advance(_: Outcome) -> None:
            tally = generation.tally
            progress.update(task, advance=1, note=f"{tally.rejected} rejected" if tally.rejected else "")

        asyncio.run(generation.run(todo, advance))


def _summary(generation: Generation, samples: list[Sample], todo: list[Sample], console: Console) -> None:
    tally, spent = generation.tally, generation.endpoint.spent
    lines = [
        f"{len(samples)} samples: {len(samples) - len(todo)} were there, {tally.done} done, {tally.rejected} rejected, {tally.unanswered} unanswered, "
        f"in {generation.out}",
        f"{spent.requests} requests, {spent.failed} failed, {tally.asked_again} asked again for a valid answer; "
        f"{spent.prompt_tokens:,} tokens in, {spent.completion_tokens:,} out"
        + (f", {spent.without_usage} answers without a count" if spent.without_usage else ""),
    ]
    if tally.rejected:
        lines.append(f"why some were rejected: {rejects_path(generation.out)}")
    unreadable = {reason for shelf in {sample.references for sample in todo} for reason in shelf.unreadable}
    lines += [f"not a reference: {printable(reason)}" for reason in sorted(unreadable)[:LISTED]]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f'--body is {text!r}: {error}; it must be a JSON object such as {{"top_p": 0.9}}') from error
    if not isinstance(value, dict) or value.keys() & {"messages", "model", "stream"}:
        raise UsageError(f"--body is {text!r}; it must be a JSON object without messages, model and stream")
    return value


# ``agvas data review``: a person's word on generated texts. Needs nothing but the base install.


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
