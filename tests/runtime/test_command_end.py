"""How a command ends when something hostile stands in a message, or something unheard of happens."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from agvas.run import run as app
from agvas_core.contract.command_line import Terminated, exit_code_of
from agvas_core.contract.errors import SourceError


def test_a_message_is_one_line_that_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise SourceError("the camera answers 404 \x1b[2Jnice\ntry\r\n\udcff \u202egnp")

    assert exit_code_of(lambda: work, name="agvas-run", arguments=[]) == 5
    said = capsys.readouterr().err
    assert said == "agvas-run: the camera answers 404 \ufffd[2Jnice try \ufffd \ufffdgnp\n"


@pytest.mark.parametrize(("error", "code", "word"), [(KeyboardInterrupt, 130, "interrupted"), (Terminated, 143, "terminated")])
def test_whoever_ended_a_command_is_told_apart(
    capsys: pytest.CaptureFixture[str], error: type[KeyboardInterrupt], code: int, word: str
) -> None:
    def work() -> None:
        raise error

    assert exit_code_of(lambda: work, name="agvas serve-lmm", arguments=[]) == code
    assert capsys.readouterr().err == f"agvas serve-lmm: {word}\n"


def test_what_is_no_exception_is_a_bug_and_no_reject(capsys: pytest.CaptureFixture[str]) -> None:
    class Panic(BaseException):  # as the Rust code of tokenizers raises
        pass

    def work() -> None:
        raise Panic("index out of bounds")

    assert exit_code_of(lambda: work, name="agvas-run", arguments=[]) == 70
    assert "index out of bounds" in capsys.readouterr().err


def test_a_folder_whose_name_is_no_unicode_can_be_named(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("a.png", np.full((64, 64, 3), 99, np.uint8))
    arguments = ["a.png", "--model", str(tiny_bundle), "--out", "o\udcff"]
    assert exit_code_of(lambda: app, name="agvas-run", arguments=arguments) == 0
    assert "results  o\ufffd" in capsys.readouterr().out
