"""The command ``agvas``: a table of verbs. Nothing of a verb is imported before it is asked for.

``agvas-run`` and ``agvas-export`` are names of the verbs ``run`` and ``export``.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

from agvas_core import __version__
from agvas_core.contract.command_line import exit_code_of, prepared, run_command
from agvas_core.contract.errors import UsageError

__all__ = ["GROUPS", "VERBS", "Verb", "agvas_export", "agvas_run", "build", "main"]

PICTURES: Final = "Look at pictures"
LINE: Final = "Run a line"
MODEL: Final = "Make a model"
MACHINE: Final = "This machine"


class Verb(NamedTuple):
    """One row of the table."""

    name: str
    """What is typed after ``agvas``; of two words the first is a group."""
    place: str
    """``module:function``, or ``module:app`` of a verb that has subcommands."""
    panel: str
    """Of the help."""
    summary: str
    """One line of the help."""
    examples: tuple[str, ...]
    """At the end of the verb's own help."""

    def load(self) -> Any:
        """Imports the function or app."""
        module, _, name = self.place.partition(":")
        return getattr(import_module(module), name)


VERBS: Final = (
    Verb(
        "run",
        "agvas.run:run",
        PICTURES,
        "Find anomalies in files, folders, videos or a camera.",
        (
            "agvas run parts/",
            "agvas run 'parts/*.png' --out runs/first --save mask,jsonl --fail-on-reject",
            "agvas run --camera 0 --limit 100 --threshold 0.6",
            "agvas run parts/ --config run.yaml",
        ),
    ),
    Verb(
        "batch",
        "agvas_runtime.batch.cli:batch",
        PICTURES,
        "Inspect images by the million: in shards, by several workers, results as Parquet.",
        ("agvas batch archive/ -o runs/archive", "agvas batch list.txt -o runs/list --recipe bolt.yaml --workers 8"),
    ),
    Verb(
        "serve",
        "agvas_runtime.web.cli:serve",
        PICTURES,
        "Serve a model over HTTP, with a page to try it on.",
        ("agvas serve", "agvas serve nano --port 8080 --workers 2 --threads 4"),
    ),
    Verb(
        "eval",
        "agvas_core.evaluation.cli:evaluate",
        PICTURES,
        "Score a model, a product or score maps on data sets with masks.",
        (
            "agvas eval --data sets/ --model nano",
            "agvas eval --data sets/ --shots 0,1,4,16 --seeds 3",
            "agvas eval --data sets/ --set bottle --predictions maps/ --protocol resized-256",
        ),
    ),
    Verb(
        "line",
        "agvas.line:line",
        LINE,
        "Inspect parts on a line: a verdict for each by a recipe, in a ledger, until stopped.",
        (
            "agvas line --camera genicam://CAM1 --recipe bolt.yaml --check",
            "agvas line --camera genicam://CAM1 --recipe bolt.yaml --trigger http:8090 --sink mqtt://broker/parts --page 8080",
            "agvas line --camera watch:incoming --recipe recipes/ --sink jsonl:verdicts.jsonl",
        ),
    ),
    Verb(
        "calibrate",
        "agvas.fitting.calibrate_cli:calibrate",
        LINE,
        "Set a product's or a recipe's thresholds from good parts, with a bound on false rejects.",
        (
            "agvas calibrate --good good/ --bad bad/ --product bolt",
            "agvas calibrate --good good/ --bad bad/ --recipe bolt.yaml --max-false-reject 0.02",
        ),
    ),
    Verb(
        "recipe new",
        "agvas_runtime.line.recipe.cli:new",
        LINE,
        "Write a recipe with every key explained.",
        ("agvas recipe new bolt --product products/bolt", "agvas recipe new bolt --image parts/001.png"),
    ),
    Verb(
        "recipe lint",
        "agvas_runtime.line.recipe.cli:lint",
        LINE,
        "Say what is wrong with a recipe, and what is odd.",
        ("agvas recipe lint bolt.yaml",),
    ),
    Verb(
        "recipe list",
        "agvas_runtime.line.recipe.cli:list_recipes",
        LINE,
        "Show the activations of a store.",
        ("agvas recipe list --store recipes",),
    ),
    Verb(
        "recipe diff",
        "agvas_runtime.line.recipe.cli:diff",
        LINE,
        "Show what two recipes differ in.",
        ("agvas recipe diff bolt.yaml bolt-calibrated.yaml",),
    ),
    Verb(
        "recipe activate",
        "agvas_runtime.line.recipe.cli:activate",
        LINE,
        "Make a recipe the active one.",
        ("agvas recipe activate bolt-calibrated.yaml --store recipes",),
    ),
    Verb(
        "recipe rollback",
        "agvas_runtime.line.recipe.cli:rollback",
        LINE,
        "Go back to the recipe that was active before.",
        ("agvas recipe rollback --store recipes",),
    ),
    Verb(
        "ledger show",
        "agvas_runtime.line.ledger.cli:show",
        LINE,
        "Show the last parts of a ledger.",
        ("agvas ledger show line",),
    ),
    Verb(
        "ledger verify",
        "agvas_runtime.line.ledger.cli:verify",
        LINE,
        "Check that every part has exactly one verdict.",
        ("agvas ledger verify line --images --delivered",),
    ),
    Verb(
        "ledger export",
        "agvas_runtime.line.ledger.cli:export",
        LINE,
        "Write a ledger as a table.",
        ("agvas ledger export line --format csv -o parts.csv",),
    ),
    Verb(
        "review",
        "agvas.review:review",
        LINE,
        "Look at stored parts in the browser and say what they really are.",
        ("agvas review line",),
    ),
    Verb(
        "replay",
        "agvas_runtime.line.app.replay_cli:replay_command",
        LINE,
        "Judge stored parts again, by a new recipe or by their own.",
        ("agvas replay line --recipe bolt-v2.yaml", "agvas replay line --last 100"),
    ),
    Verb(
        "fit",
        "agvas.fitting.cli:fit",
        MODEL,
        "Make a product of images of good parts: references, thresholds, limits, report.",
        (
            "agvas fit good/ -o bracket",
            "agvas fit good/ -o bracket --bad defective/ --max-false-reject 0.02",
            "agvas fit more/ -o bracket --add",
        ),
    ),
    Verb(
        "train",
        "agvas_core.train.cli:train",
        MODEL,
        "Train a model on procedural images or on data sets.",
        ("agvas train --preset nano --out runs/nano", "agvas train --preset nano-decoder --sets reviewed --out runs/station"),
    ),
    Verb(
        "export",
        "agvas.export:app",
        MODEL,
        "Turn a checkpoint into a bundle, check it; one ONNX or OpenVINO file; TensorRT engines.",
        (
            "agvas export bundle runs/nano -o runs/bundle",
            "agvas export check runs/bundle --data parts/",
            "agvas export onnx runs/lid -o lid.onnx",
            "agvas export trt runs/bundle --precision fp16",
        ),
    ),
    Verb(
        "model",
        "agvas_core.model.cli:model",
        MODEL,
        "Show the parts of a model: parameters, what is trained, views, tokens.",
        ("agvas model ov-7b",),
    ),
    Verb(
        "synth",
        "agvas_core.data.synthetic.cli:synth",
        MODEL,
        "Write synthetic images with masks and captions.",
        ("agvas synth generated --count 100 --size 640x480",),
    ),
    Verb(
        "data check",
        "agvas_core.data.datasets.cli:check",
        MODEL,
        "Say what training data a folder has, and what is wrong with it.",
        ("agvas data check sets/",),
    ),
    Verb(
        "data hashes",
        "agvas_core.data.datasets.cli:hashes",
        MODEL,
        "Write the hashes of test images, which a training then refuses.",
        ("agvas data hashes test-sets/ -o test-images.json",),
    ),
    Verb(
        "data instruct",
        "agvas_core.data.instruct.cli:instruct",
        MODEL,
        "Have a vision-language model describe each anomaly of a set.",
        ("agvas data instruct sets/ texts.jsonl --endpoint http://127.0.0.1:8000/v1 --model NAME --preview look/",),
    ),
    Verb(
        "data review",
        "agvas_core.data.instruct.cli:review",
        MODEL,
        "Review such descriptions in the browser.",
        ("agvas data review texts.jsonl",),
    ),
    Verb(
        "profile",
        "agvas_runtime.profile.cli:profile",
        MACHINE,
        "Measure how fast a bundle runs here.",
        ("agvas profile", "agvas profile parts/ --rate 600/min --soak 10m", "agvas profile --tune"),
    ),
    Verb(
        "doctor",
        "agvas_runtime.doctor:doctor",
        MACHINE,
        "Say what this machine can run, and what is missing.",
        ("agvas doctor",),
    ),
    Verb(
        "serve-lmm",
        "agvas_runtime.stages.vllm.serve:serve_lmm",
        MACHINE,
        "Serve a bundle's language model with vLLM.",
        ("agvas serve-lmm runs/lmm",),
    ),
)

GROUPS: Final = {
    "data": (MODEL, "Data sets for training: look at what is there, write instructions for it."),
    "ledger": (LINE, "The ledger of a line: count it, look at it, export it."),
    "recipe": (LINE, "Recipes: what decides about one product, as a file with versions."),
}

# What users of other tools type, and what does it here.
OTHER_WORDS: Final = {
    "predict": "run",
    "segment": "run",
    "inspect": "run",
    "detect": "run",
    "infer": "run",
    "test": "eval",
    "val": "eval",
    "validate": "eval",
    "benchmark": "profile",
    "bench": "profile",
    "check": "doctor",
}

# Everything after the verb's name belongs to the verb, its --help too.
_PASS_ON: Final = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}


def build(verbs: tuple[Verb, ...] = VERBS) -> typer.Typer:
    """The command over a table of verbs."""

    class Verbs(TyperGroup):
        """Names the nearest verb for one that does not exist, and imports a verb whose options a shell completes."""

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            # A shell completes: the names are known without importing anything, the options are not.
            path = [*ctx.command_path.split()[1:], *args[:1]]
            if args and args[0] not in self.commands and not args[0].startswith("-"):
                raise _unknown(args[0], path[:-1], list(self.commands))
            name, command, rest = super().resolve_command(ctx, args)
            if ctx.resilient_parsing:
                command = next((prepared(verb.load()) for verb in verbs if verb.name.split() == path), command)
            return name, command, rest

    app = typer.Typer(
        name="agvas",
        cls=Verbs,
        help="Visual anomaly segmentation: look at pictures, run a line, make and export a model.",
        epilog=_paragraphs(("agvas run examples/parts", "agvas VERB --help")),
        add_completion=True,
        rich_markup_mode="rich",
        no_args_is_help=True,
    )

    @app.callback(invoke_without_command=True)
    def top(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
        if version:
            print(f"agvas {__version__}")
            raise typer.Exit

    groups: dict[str, typer.Typer] = {}
    for verb in verbs:
        name, space, below = verb.name.partition(" ")
        into = app
        if space:
            if name not in groups:
                panel, text = GROUPS.get(name, (verb.panel, ""))
                groups[name] = typer.Typer(cls=Verbs, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")
                groups[name].callback()(lambda: None)  # without it, a group of one verb would be that verb
                app.add_typer(groups[name], name=name, help=text, rich_help_panel=panel)
            into = groups[name]
        shown = None if space else verb.panel
        into.command(below or name, help=verb.summary, context_settings=dict(_PASS_ON), rich_help_panel=shown)(_runner(verb))
    return app


def _runner(verb: Verb) -> Callable[[typer.Context], None]:
    def run(context: typer.Context) -> None:
        name = f"agvas {verb.name}"
        raise typer.Exit(exit_code_of(verb.load, name=name, arguments=context.args, examples=verb.examples))

    return run


def _unknown(name: str, group: list[str], known: list[str]) -> UsageError:
    from agvas_core.contract.validation import nearest

    if not group and (other := OTHER_WORDS.get(name)):
        summary = next(verb.summary for verb in VERBS if verb.name == other)
        return UsageError(f"there is no verb {name!r}; did you mean agvas {other}? {summary}")
    typed = " ".join(["agvas", *group])
    near = nearest(name, known)
    hint = f"did you mean {typed} {near}?" if near else f"{typed} --help lists them"
    return UsageError(f"{typed} has no verb {name!r}; {hint}")


def _paragraphs(lines: tuple[str, ...]) -> str:
    return "\n\n".join(("Examples:", *lines))


def main() -> NoReturn:
    """Entry point of ``agvas``."""
    if "_AGVAS_COMPLETE" in os.environ:  # a shell asks what may follow
        build()(prog_name="agvas")
        sys.exit(0)
    run_command(build, name="agvas")


def agvas_run() -> NoReturn:
    """Entry point of ``agvas-run``."""
    _alias("run", "agvas-run")


def agvas_export() -> NoReturn:
    """Entry point of ``agvas-export``."""
    _alias("export", "agvas-export")


def _alias(name: str, program: str) -> NoReturn:
    verb = next(verb for verb in VERBS if verb.name == name)
    examples = tuple(example.replace(f"agvas {name}", program) for example in verb.examples)
    run_command(verb.load, name=program, examples=examples)


if __name__ == "__main__":
    main()
