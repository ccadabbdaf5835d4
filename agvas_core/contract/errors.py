"""The exception tree, and the exit code that each branch gives a command.

    AgvasError
    ├── UsageError            2   an invalid option, path or prompt
    │   └── RecipeError       2   a recipe that is wrong, or does not suit the model or the frame
    ├── SetupError            3   the machine lacks something: a package, space, a permission
    │   ├── BundleError       3   a bundle that is broken, foreign or too new
    │   ├── OutputError       3   results cannot be written
    │   └── LedgerError       3   a ledger that is foreign, broken, in use, or contradicts itself
    ├── ParityError           4   an export that does not give the model's own answer
    ├── SourceError           5   a camera or stream that is not there, or stopped
    ├── StageError            3   an engine behind a stage is down; a run goes on, each frame NO_VERDICT
    ├── DeliveryError         -   a sink did not take a message; it stays in the outbox and is sent again
    └── ImageError            -   one image cannot be used; the run goes on and records it
        └── UnlikeError       -   the image is not of the product: NO_VERDICT, never PASS

A message says value, bound and remedy, in that order.
"""

from typing import ClassVar

__all__ = [
    "EXIT_NOT_KEPT",
    "EXIT_OK",
    "EXIT_REJECTS",
    "AgvasError",
    "BundleError",
    "DeliveryError",
    "ImageError",
    "LedgerError",
    "OutputError",
    "ParityError",
    "RecipeError",
    "SetupError",
    "SourceError",
    "StageError",
    "UnlikeError",
    "UsageError",
]

EXIT_OK = 0
EXIT_REJECTS = 1  # rejects were found and --fail-on-reject was given
EXIT_NOT_KEPT = 4  # what was asked for is written, and less is promised than was asked for, or too much was left out


class AgvasError(Exception):
    """Anything that AG-VAS refuses; ``exit_code`` is what a command ends with."""

    exit_code: ClassVar[int] = 3


class UsageError(AgvasError):
    """An invalid option, path or prompt."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that is wrong, or does not suit the model or the frame."""


class SetupError(AgvasError):
    """This machine lacks something that the work needs."""

    exit_code = 3


class BundleError(SetupError):
    """A bundle that is incomplete, changed, foreign or newer than this package."""


class OutputError(SetupError):
    """Results cannot be written."""


class LedgerError(SetupError):
    """A ledger that is foreign, broken, in use by another process, or contradicts itself."""


class ParityError(AgvasError):
    """An exported graph does not give the model's own answer."""

    exit_code = 4


class SourceError(AgvasError):
    """A camera or stream that is not there, or that stopped."""

    exit_code = 5


class StageError(AgvasError):
    """An engine behind a stage is down or does not answer. The frame becomes NO_VERDICT, and the next one is tried."""


class DeliveryError(AgvasError):
    """A sink did not take a message; it stays in the outbox and is sent again."""

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        """``permanent``: sending it again cannot help; the sink was reached and refuses this message."""
        super().__init__(message)
        self.permanent = permanent


class ImageError(AgvasError):
    """One image cannot be used; it becomes NO_VERDICT and the run goes on."""


class UnlikeError(ImageError):
    """The image is unlike every good image of its product as a whole: NO_VERDICT, and never PASS.

    Its message begins with ``START``, by which it is known where only the message arrives.
    """

    START: ClassVar[str] = "unlike:"
