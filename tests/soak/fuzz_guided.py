"""Malformed recipes and images, made by what they reach: atheris (libFuzzer) changes bytes so that new lines of the readers are run.

    pip install atheris
    python tests/soak/fuzz_guided.py images --seconds 300
    python tests/soak/fuzz_guided.py recipes --seconds 300

It leads through Python alone: through YAML and the recipe's checks, through what reads the headers and ends of image files; not through OpenCV's
decoders. A case that raises anything but an AgvasError, takes longer than HANG_S or more than 2 GiB ends the run, is written to
crash-*, and the exit code is not 0.
"""

import argparse
import contextlib
import inspect
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["yaml"]):
    import yaml  # noqa: F401  # before the others import it

from fuzz_line import FULL, HANG_S, recipe_cases
from fuzz_values import MAX_PIXELS, SEEDS

from agvas_core.contract.errors import AgvasError
from agvas_runtime.images import header as image_header
from agvas_runtime.images import rgb
from agvas_runtime.images import whole as image_whole
from agvas_runtime.images.read import decode_image
from agvas_runtime.line.recipe import file as recipe_file

for module in (image_header, image_whole, rgb, recipe_file):  # one by one: the hook cannot see through an editable install
    for function in vars(module).values():
        if inspect.isfunction(function) and function.__module__ == module.__name__:
            atheris.instrument_func(function)


def recipe(data: bytes) -> None:
    recipe_cases(data)[1]()


def image(data: bytes) -> None:
    decode_image(data, max_pixels=MAX_PIXELS)


TARGETS = {"recipes": (recipe, [FULL.encode()]), "images": (image, SEEDS)}


def main() -> None:
    """libFuzzer says what it does, and ends the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    call, seeds = TARGETS[arguments.target]

    def one(data: bytes) -> None:
        with contextlib.suppress(AgvasError):
            call(data)

    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    limits = [f"-max_total_time={arguments.seconds}", f"-seed={arguments.seed}", f"-timeout={HANG_S:.0f}", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *limits, "-max_len=8192", "-print_final_stats=1", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
