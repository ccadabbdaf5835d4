"""The exception tree, and the exit code that each branch gives a command.

    AgvasError
    ├── UsageError            2   an option, path or prompt that cannot be meant
    ├── SetupError            3   the machine lacks something: a package, space, a permission
    │   ├── BundleError       3   a bundle that is broken, foreign or too new
    │   └── OutputError       3   results cannot be written
    ├── ParityError           4   an export that does not give the model's own answer
    ├── SourceError           5   a camera or stream that is not there, or stopped
    ├── StageError            3   an engine behind a stage is down; a run goes on, each frame NO_VERDICT
    └── ImageError            -   one image cannot be used; the run goes on and records it

A message says value, bound and remedy, in that order.
"""

from typing import ClassVar

__all__ = [
    "EXIT_OK",
    "EXIT_REJECTS",
    "AgvasError",
    "BundleError",
    "ImageError",
    "OutputError",
    "ParityError",
    "SetupError",
    "SourceError",
    "StageError",
    "UsageError",
]

EXIT_OK = 0
EXIT_REJECTS = 1  # rejects were found and --fail-on-reject was given


class AgvasError(Exception):
    """Anything that AG-VAS refuses; ``exit_code`` is what a command ends with."""

    exit_code: ClassVar[int] = 3


class UsageError(AgvasError):
    """The caller asked for something that cannot be meant."""

    exit_code = 2


class SetupError(AgvasError):
    """This machine lacks something that the work needs."""

    exit_code = 3


class BundleError(SetupError):
    """A bundle that is incomplete, changed, foreign or newer than this package."""


class OutputError(SetupError):
    """Results cannot be written."""


class ParityError(AgvasError):
    """An exported graph does not give the model's own answer."""

    exit_code = 4


class SourceError(AgvasError):
    """A camera or stream that is not there, or that stopped."""

    exit_code = 5


class StageError(AgvasError):
    """An engine behind a stage is down or does not answer. The frame becomes NO_VERDICT, and the next one is tried."""


class ImageError(AgvasError):
    """One image cannot be used; it becomes NO_VERDICT and the run goes on."""
