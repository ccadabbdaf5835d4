"""What happens while frames come faster than they are judged, by name."""

from enum import StrEnum

__all__ = ["QueuePolicy"]


class QueuePolicy(StrEnum):
    """Whatever goes unseen is counted, and stands in the ledger with the part that follows."""

    EVERY = "every"
    """Each frame is a part. One that finds no room is NO_VERDICT; files wait. For files and triggers."""
    LATEST = "latest"
    """The newest frame counts, and those that it replaces are dropped. For a camera that runs free."""
    BLOCK = "block"
    """The source, or whoever triggers, is made to wait."""
