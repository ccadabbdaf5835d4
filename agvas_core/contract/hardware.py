"""What a machine computes with, in words: certificates say where they were made, and a run whether that was here."""

import platform
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict

__all__ = ["Hardware", "this_machine"]

_CPUINFO = Path("/proc/cpuinfo")
_GPUS = Path("/proc/driver/nvidia/gpus")
_MODEL = re.compile(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", re.MULTILINE)


class Hardware(BaseModel):
    """Two machines that are equal here may be expected to give the same numbers with the same software."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    """``Linux x86_64``."""
    cpu: str
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join([self.cpu, *self.gpus])


def this_machine(cpuinfo: Path = _CPUINFO, gpus: Path = _GPUS) -> Hardware:
    """Reads what the kernel says; starts no driver."""
    found = _MODEL.search(cpuinfo.read_text(encoding="utf-8", errors="replace")) if cpuinfo.is_file() else None
    cards = sorted(path.read_text(encoding="utf-8", errors="replace") for path in gpus.glob("*/information"))
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        cpu=" ".join(found[1].split()) if found else platform.processor() or platform.machine(),
        gpus=tuple(" ".join(name[1].split()) for card in cards if (name := _MODEL.search(card))),
    )
