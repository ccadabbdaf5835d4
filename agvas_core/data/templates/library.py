"""Templates as they are drawn from: read, checked, extended by a user's own folder.

library = load_library(Path("my_templates"))      # or None for ours alone
library.words, library[Task.DIRECT].instructions

A user's folder has files of the same names. What they list is added to ours; with ``replace = true`` it stands alone.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import StrictModel
from agvas_core.data.templates.rules import RULES, Task, check_line

__all__ = ["Library", "TaskTemplates", "load_library"]

Dialogue = tuple[tuple[str, str], ...]
_WORDS: Final = "words"


class _File(StrictModel):
    """One template file."""

    replace: bool = False
    words: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    dialogues: tuple["_Dialogue", ...] = ()


class _Dialogue(StrictModel):
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TaskTemplates:
    """What may be said in one task; ``dialogues`` where its turns belong together."""

    instructions: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    """Answers for an image without anomalies."""
    dialogues: tuple[Dialogue, ...] = ()


@dataclass(frozen=True)
class Library:
    """All templates; ``words`` is what ``{class_name}`` becomes where anomalies are meant."""

    words: tuple[str, ...]
    tasks: Mapping[Task, TaskTemplates] = field(repr=False)

    def __getitem__(self, task: Task) -> TaskTemplates:
        return self.tasks[task]


def load_library(folder: Path | None = None) -> Library:
    """Our templates, and those of ``folder`` with them.

    Raises:
        UsageError: no such folder, a file that is none of ours by name, or a line that cannot be used; file and line are named.
    """
    own = resources.files("agvas_core.data.templates")
    names = (_WORDS, *Task)
    files = {name: _parse((own / f"{name}.toml").read_text(encoding="utf-8"), f"{name}.toml") for name in names}
    if folder is not None:
        for name, theirs in _user_files(folder).items():
            files[name] = theirs if theirs.replace else _together(files[name], theirs)
    if not files[_WORDS].words:
        raise UsageError(f"{_WORDS}.toml leaves no word for {{class_name}}: list one at least")
    tasks = {task: _task(task, files[task]) for task in Task}
    return Library(files[_WORDS].words, tasks)


def _user_files(folder: Path) -> dict[str, _File]:
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is {'a file' if folder.exists() else 'not there'}: name a folder of template files, such as direct.toml"
        )
    paths = sorted(folder.glob("*.toml"))
    known = (_WORDS, *Task)
    if foreign := [path for path in paths if path.stem not in known]:
        raise UsageError(f"{foreign[0]} is named after no task; there are {', '.join(f'{name}.toml' for name in known)}")
    if not paths:
        raise UsageError(f"{folder} has no .toml file: name a folder of template files, such as direct.toml")
    files = {}
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read as UTF-8 text: {error}") from error
        files[path.stem] = _parse(text, str(path))
    return files


def _parse(text: str, where: str) -> _File:
    try:
        table: dict[str, Any] = tomllib.loads(text)
        found = _File.model_validate(table)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UsageError(f"{where}: {key}: {first['msg']}; a file may have {', '.join(_File.model_fields)}") from error
    stem = Path(where).stem
    if stem == _WORDS:
        if set(table) - {"replace", "words"}:
            raise UsageError(f"{where}: it can have words and replace only")
        return found
    task = Task(stem)
    _check(task, found, where)
    return found


def _check(task: Task, file: _File, where: str) -> None:
    """Each line against the rules of its task."""
    rule = RULES[task]
    if file.words:
        raise UsageError(f"{where}: words belong into {_WORDS}.toml")
    used = [name for name in ("instructions", "answers", "refusals", "dialogues") if getattr(file, name)]
    if wrong := [name for name in used if name not in rule.lists]:
        raise UsageError(f"{where}: {wrong[0]} have no meaning for {task}; it takes {', '.join(rule.lists)}")
    for name in ("instructions", "answers", "refusals"):
        for number, line in enumerate(getattr(file, name)):
            carried = check_line(line, rule.allowed(name), f"{where}: {name}[{number}]")
            if name == "answers" and carried != 1:
                raise UsageError(
                    f"{where}: answers[{number}] carries the anchors {carried} times, not once: {line!r}; write {{anchors}} once"
                )
            if name != "answers" and carried:
                raise UsageError(f"{where}: {name}[{number}] must not carry the anchors: {line!r}")
            if name == "instructions" and rule.needed and f"{{{rule.needed}}}" not in line:
                raise UsageError(f"{where}: instructions[{number}] never says {{{rule.needed}}}: {line!r}")
    for number, dialogue in enumerate(file.dialogues):
        carried = 0
        for instruction, answer in dialogue.turns:
            if check_line(instruction, rule.allowed("instructions"), f"{where}: dialogues[{number}]"):
                raise UsageError(f"{where}: dialogues[{number}]: an instruction must not carry the anchors: {instruction!r}")
            carried += check_line(answer, rule.allowed("answers"), f"{where}: dialogues[{number}]")
        if carried != rule.anchored:
            raise UsageError(
                f"{where}: dialogues[{number}] carries the anchors {carried} times; {task} needs {int(rule.anchored)}"
            )


def _together(ours: _File, theirs: _File) -> _File:
    lists = ("words", "instructions", "answers", "refusals", "dialogues")
    return ours.model_copy(update={name: getattr(ours, name) + getattr(theirs, name) for name in lists})


def _task(task: Task, file: _File) -> TaskTemplates:
    for name in RULES[task].lists:
        if not getattr(file, name):
            raise UsageError(f"{task}.toml replaces ours and has no {name}: list one at least")
    dialogues = tuple(dialogue.turns for dialogue in file.dialogues)
    return TaskTemplates(file.instructions, file.answers, file.refusals, dialogues)
