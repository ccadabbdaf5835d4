"""What would be sent about a sample, as files for a person to look at before anything leaves the machine."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agvas_core.contract.errors import OutputError
from agvas_core.data.instruct.prompt import Prompt
from agvas_core.data.instruct.samples import Sample

__all__ = ["write_preview"]


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
