"""``agvas data instruct`` against a real server: what is written, what is rejected, and what a kill costs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import OutputError, UsageError
from agvas_core.data.datasets.record import Family
from agvas_core.data.instruct.cli import instruct
from agvas_core.data.instruct.entry import read_instruct
from agvas_core.data.instruct.journal import Journal, read_lines

MakeSet = Callable[..., Path]


def run(chat: Any, data: Path, out: Path, *options: str) -> int:
    words = [str(data), str(out), "--endpoint", chat.url, "--model", "a-model", "--image-px", "64", "--retries", "0", *options]
    return exit_code_of(lambda: instruct, name="agvas data instruct", arguments=words)


def lines(path: Path) -> list[dict[str, Any]]:
    return [line for _, line in read_lines(path)]


def answer_of(chat: Any) -> dict[str, str]:
    """The good answer of the conftest."""
    found: dict[str, str] = json.loads(json.loads(type(chat.plan(0, None))().body)["choices"][0]["message"]["content"])
    return found


def says(chat: Any, text: str | None, finish: str = "stop") -> Any:
    body = {
        "choices": [{"message": {"content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }
    return type(chat.plan(0, None))(body=json.dumps(body).encode())


def answers(chat: Any, **changes: Any) -> Any:
    return says(chat, json.dumps({**answer_of(chat), **changes}))


def test_each_anomalous_image_becomes_one_line_that_training_reads(
    chat: Any, make_set: MakeSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_set(bad=3), tmp_path / "out" / "instruct.jsonl"
    assert run(chat, root, out) == 0
    found = lines(out)
    assert [line["image"] for line in sorted(found, key=lambda line: str(line["image"]))] == [
        f"plate/test/dark_spot/00{number}.png" for number in range(3)
    ]
    first = found[0]
    assert first["root"] == "../parts" and first["mask"].startswith("plate/ground_truth/dark_spot/00")
    assert (first["category"], first["kind"], first["model"], first["review"]) == ("plate", "dark spot", "a-model", "pending")
    assert first["endpoint"] == chat.url.split("/")[2] and len(first["prompt"]) == 16
    records = read_instruct(out)
    assert [record.family for record in records] == [Family.INSTRUCT] * 3
    assert records[0].texts is not None and records[0].texts.summary == answer_of(chat)["Summary"]
    assert records[0].mask is not None and records[0].mask.read((96, 128)).any()
    assert all(len(asked.pictures) == 3 for asked in chat.asked)
    assert 'the category "plate" with an anomaly of the kind "dark spot"' in chat.asked[0].said
    said = capsys.readouterr().err
    assert "3 done" in said and "3 requests" in said and "3,000 tokens in, 300 out" in said


def test_data_and_file_may_move_together_and_the_data_alone_with_a_word(chat: Any, make_set: MakeSet, tmp_path: Path) -> None:
    root, out = make_set(bad=1), tmp_path / "instruct.jsonl"
    assert run(chat, root, out, "--quiet") == 0
    (tmp_path / "there").mkdir()
    root.rename(tmp_path / "there" / "parts")
    out.rename(tmp_path / "there" / "instruct.jsonl")
    (record,) = read_instruct(tmp_path / "there" / "instruct.jsonl")
    assert record.image.is_file()
    (tmp_path / "there" / "parts").rename(tmp_path / "elsewhere")
    (record,) = read_instruct(tmp_path / "there" / "instruct.jsonl", root=tmp_path / "elsewhere")
    assert record.image.is_file()


def test_an_invalid_answer_is_asked_for_again_with_the_reason(chat: Any, make_set: MakeSet, tmp_path: Path) -> None:
    boxed = answers(chat, Observation="The spot inside the bounding box is dark and round.")
    chat.follow(says(chat, "no JSON"), boxed)
    assert run(chat, make_set(bad=1), tmp_path / "o.jsonl", "--attempts", "3", "--quiet") == 0
    assert "no JSON object" in chat.asked[1].said
    assert '"bounding box" (box)' in chat.asked[2].said
    roles = [message["role"] for message in chat.asked[2].body["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"], "only the last bad answer is repeated"
    assert len(lines(tmp_path / "o.jsonl")) == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda chat: says(chat, "I cannot help with that."), "no JSON object"),
        (lambda chat: says(chat, None), "no JSON object"),
        (lambda chat: says(chat, '{"Expectation": "It is ', finish="length"), "cut off for its length"),
        (lambda chat: answers(chat, Explanation="The mask shows a dark spot on the left side."), '"mask" (mask)'),
        (lambda chat: answers(chat, Summary="Segment the dark spot on the left."), "has the marks none"),
        (lambda chat: type(chat.plan(0, None))(status=400, body=b"context too long"), "HTTP 400: context too long"),
    ],
)
def test_what_stays_invalid_is_rejected_with_its_reason_and_not_asked_again(
    chat: Any, make_set: MakeSet, tmp_path: Path, make: Callable[[Any], Any], reason: str
) -> None:
    root, out, rejects = make_set(bad=1), tmp_path / "o.jsonl", tmp_path / "o.rejects.jsonl"
    bad = make(chat)
    chat.plan = lambda number, request: bad
    assert run(chat, root, out, "--attempts", "2", "--quiet") == 0
    assert lines(out) == []
    (line,) = lines(rejects)
    assert reason in line["reason"] and line["key"] == "parts/plate/test/dark_spot/000.png"
    asked = len(chat.asked)
    assert run(chat, root, out, "--quiet") == 0 and len(chat.asked) == asked
    chat.follow()
    chat.asked.clear()
    assert run(chat, root, out, "--retry-rejects", "--quiet") == 0
    assert len(lines(out)) == 1
    assert run(chat, root, out, "--quiet") == 0
    assert lines(rejects) == [], "a sample that has an answer is no reject any more"


def test_broken_images_and_empty_masks_are_listed_and_nothing_is_sent_for_them(
    chat: Any, make_set: MakeSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_set(bad=3)
    pictures = sorted((root / "plate" / "test" / "dark_spot").iterdir())
    pictures[0].write_bytes(pictures[0].read_bytes()[:300])
    (root / "plate" / "ground_truth" / "dark_spot" / "001_mask.png").unlink()
    assert run(chat, root, tmp_path / "o.jsonl") == 0
    assert len(lines(tmp_path / "o.jsonl")) == len(chat.asked) == 1
    (line,) = lines(tmp_path / "o.rejects.jsonl")
    assert "000.png" in line["reason"]
    said = capsys.readouterr().err
    assert "left out" in said and "001.png" in said


def test_an_endpoint_that_is_down_ends_the_run_and_costs_no_sample(
    chat: Any, make_set: MakeSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_set(bad=9), tmp_path / "o.jsonl"
    broken = type(chat.plan(0, None))(status=500, body=b"out of memory")
    chat.plan = lambda number, request: type(broken)() if number < 2 else broken
    assert run(chat, root, out, "--concurrency", "1") == 3
    assert len(chat.asked) == 7 and len(lines(out)) == 2
    said = capsys.readouterr().err
    assert "no answer for 5 samples in a row (HTTP 500: out of memory" in said
    chat.follow()
    assert run(chat, root, out, "--quiet") == 0
    assert len({line["image"] for line in lines(out)}) == len(lines(out)) == 9


def test_single_samples_without_an_answer_are_left_for_the_next_run(
    chat: Any, make_set: MakeSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.follow(type(chat.plan(0, None))(status=502, body=b""))
    root, out = make_set(bad=3), tmp_path / "o.jsonl"
    assert run(chat, root, out, "--concurrency", "1") == 3
    assert "1 samples got no answer" in capsys.readouterr().err
    assert len(lines(out)) == 2 and not (tmp_path / "o.rejects.jsonl").exists()
    assert run(chat, root, out, "--quiet") == 0 and len(lines(out)) == 3


def test_a_wrong_key_ends_the_run_at_once(
    chat: Any, make_set: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-1234567890")
    refusal = type(chat.plan(0, None))(status=401, body=b"bad key sk-1234567890")
    chat.plan = lambda number, request: refusal
    assert run(chat, make_set(bad=8), tmp_path / "o.jsonl", "--key-env", "MY_KEY", "--concurrency", "1") == 3
    assert chat.asked[0].headers["Authorization"] == "Bearer sk-1234567890" and len(chat.asked) == 1
    assert "sk-1234567890" not in capsys.readouterr().err + "".join(path.read_text() for path in tmp_path.glob("*.jsonl"))


def test_no_key_is_taken_from_a_variable_that_was_not_named(
    chat: Any, make_set: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.delenv("AGVAS_API_KEY", raising=False)
    root = make_set(bad=1)
    assert run(chat, root, tmp_path / "o.jsonl", "--quiet") == 0
    assert "Authorization" not in chat.asked[0].headers
    assert run(chat, root, tmp_path / "p.jsonl", "--key-env", "NOT_SET_AT_ALL") == 2
    monkeypatch.setenv("AGVAS_API_KEY", "two\nlines")
    assert run(chat, root, tmp_path / "q.jsonl") == 2
    assert "two" not in capsys.readouterr().err


def test_questions_go_out_together_and_no_more_than_asked_for(chat: Any, make_set: MakeSet, tmp_path: Path) -> None:
    slow = type(chat.plan(0, None))(wait_s=0.2)
    chat.plan = lambda number, request: slow
    assert run(chat, make_set(bad=8), tmp_path / "o.jsonl", "--concurrency", "3", "--quiet") == 0
    assert 2 <= chat.most_at_once <= 3
    assert len(lines(tmp_path / "o.jsonl")) == 8


def test_a_preview_sends_nothing(chat: Any, make_set: MakeSet, tmp_path: Path) -> None:
    root = make_set(bad=1)
    assert run(chat, root, tmp_path / "o.jsonl", "--preview", str(tmp_path / "look"), "--body", '{"max_tokens": null}') == 0
    assert chat.asked == [] and not (tmp_path / "o.jsonl").exists()
    names = sorted(path.name for path in (tmp_path / "look").iterdir())
    assert names == ["picture_1.jpg", "picture_2.jpg", "picture_3.jpg", "request.json"]
    request = json.loads((tmp_path / "look" / "request.json").read_text())
    assert request["messages"][-1]["content"][0]["image_url"]["url"] == "picture_1.jpg"


def test_a_list_serves_where_the_folders_have_no_layout(chat: Any, make_set: MakeSet, tmp_path: Path) -> None:
    root = make_set(bad=2)
    entries = [
        {"img_path": "plate/test/good/000.png", "category": "plate", "anomaly": 0},
        {
            "img_path": "plate/test/dark_spot/001.png",
            "mask_path": "plate/ground_truth/dark_spot/001_mask.png",
            "category": "plate",
            "specie": "burn",
            "anomaly": 1,
        },
    ]
    (root / "meta_mine.json").write_text(json.dumps(entries))
    assert run(chat, root / "meta_mine.json", tmp_path / "o.jsonl", "--quiet") == 0
    (line,) = lines(tmp_path / "o.jsonl")
    assert (line["dataset"], line["kind"], line["image"]) == ("mine", "burn", "plate/test/dark_spot/001.png")
    assert len(chat.asked[0].pictures) == 3
    (root / "meta_mine.json").write_text('[{"img_path": "a.png", "category": "plate"}]')
    assert run(chat, root / "meta_mine.json", tmp_path / "p.jsonl") == 2


def test_limits_take_the_same_samples_each_time(chat: Any, make_set: MakeSet, tmp_path: Path) -> None:
    root = make_set(bad=6)
    for name in ("a.jsonl", "b.jsonl"):
        assert run(chat, root, tmp_path / name, "--limit", "2", "--seed", "3", "--quiet") == 0
    one, other = ({line["image"] for line in lines(tmp_path / name)} for name in ("a.jsonl", "b.jsonl"))
    assert one == other and len(one) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--body", "[1]"], "--body is '[1]'"),
        (["--body", '{"messages": []}'], "without messages"),
        (["--prompt", "nowhere"], "has none of system.txt"),
        (["--set", "nothing"], "--set is 'nothing'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_before_anything_is_asked(
    chat: Any, make_set: MakeSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(chat, make_set(bad=1), tmp_path / "o.jsonl", *options) == 2
    assert message in capsys.readouterr().err and chat.asked == []


# --- what a kill costs


COMMAND = "import sys; from agvas_core.contract.command_line import run_command; from agvas_core.data.instruct.cli import instruct; run_command(lambda: instruct, name='agvas data instruct')"  # fmt: skip


def heed_interrupts() -> None:
    """A shell that puts its tests into the background has them ignore SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(chat: Any, data: Path, out: Path) -> subprocess.Popen[str]:
    words = [str(data), str(out), "--endpoint", chat.url, "--model", "m", "--image-px", "64", "--concurrency", "2"]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=heed_interrupts,
    )


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_kill_9_loses_at_most_what_was_in_flight_and_doubles_nothing(chat: Any, make_set: MakeSet, tmp_path: Path) -> None:
    root, out = make_set(bad=12), tmp_path / "o.jsonl"
    slow = type(chat.plan(0, None))(wait_s=0.05)
    chat.plan = lambda number, request: slow
    for asked_before in (3, 7):
        process = started(chat, root, out)
        wait_for(lambda at_least=asked_before: len(chat.asked) >= at_least)
        process.kill()
        process.communicate()
        wait_for(lambda: chat.now == 0)
        assert len(chat.asked) - len(lines(out)) <= 2 * (1 if asked_before == 3 else 2), "more was lost than was in flight"
    assert run(chat, root, out, "--quiet") == 0
    assert Counter(line["image"] for line in lines(out)) == Counter(
        f"plate/test/dark_spot/{number:03d}.png" for number in range(12)
    )
    assert len(chat.asked) <= 12 + 2 * 2


def test_a_line_that_was_cut_short_is_asked_for_again(chat: Any, make_set: MakeSet, tmp_path: Path) -> None:
    root, out = make_set(bad=2), tmp_path / "o.jsonl"
    assert run(chat, root, out, "--quiet") == 0
    whole = out.read_bytes()
    for kept in range(whole.index(b"\n") + 1, len(whole), 97):
        out.write_bytes(whole[:kept])
        assert len(read_instruct(out)) == 1, "half a line is no sample"
        assert run(chat, root, out, "--quiet") == 0
        assert sorted(line["image"][-7:] for line in lines(out)) == ["000.png", "001.png"]
    out.write_bytes(whole[:-1])  # an editor that leaves no newline
    asked = len(chat.asked)
    assert run(chat, root, out, "--quiet") == 0
    assert out.read_bytes() == whole and len(chat.asked) == asked


@pytest.mark.skipif(os.name == "nt", reason="signals of this kind are POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_the_command_in_order(
    chat: Any, make_set: MakeSet, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    slow = type(chat.plan(0, None))(wait_s=0.3)
    chat.plan = lambda number, request: type(slow)() if number < 2 else slow
    process = started(chat, make_set(bad=30), tmp_path / "o.jsonl")
    wait_for(lambda: len(chat.asked) >= 4)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said and "tokens in" in said and ("interrupted" if code == 130 else "terminated") in said
    assert len(lines(tmp_path / "o.jsonl")) >= 2


def test_two_processes_do_not_write_into_one_file(
    chat: Any, make_set: MakeSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_set(bad=1), tmp_path / "o.jsonl"
    with Journal(out):
        assert run(chat, root, out) == 2
    assert "is being written by another process" in capsys.readouterr().err and chat.asked == []


def test_somebody_elses_file_is_left_as_it_is(chat: Any, make_set: MakeSet, tmp_path: Path) -> None:
    root = make_set(bad=1)
    for text in ("[\n 1\n]", "a,b\n1,2", '{\n "a": 1\n}', '{"other": 1}\n'):
        (tmp_path / "theirs.json").write_text(text)
        assert run(chat, root, tmp_path / "theirs.json") == 2
        assert (tmp_path / "theirs.json").read_text() == text


def test_a_line_that_cannot_be_written_leaves_the_file_whole(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "j.jsonl"
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with Journal(path) as journal:
            journal.append({"n": 1})
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # stands for a disk that is full
            with pytest.raises(OutputError, match="cannot write"):
                journal.append({"n": "x" * 1000})
            journal.append({"n": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert lines(path) == [{"n": 1}, {"n": 2}]


def test_one_journal_serves_many_threads_of_readers(tmp_path: Path) -> None:
    """A reader never sees half a line, whenever it looks."""
    path, wrong = tmp_path / "j.jsonl", []
    with Journal(path) as journal:
        journal.append({"n": -1})

        def look() -> None:
            for _ in range(200):
                if any(set(line) != {"n"} for line in lines(path)):
                    wrong.append(1)

        thread = threading.Thread(target=look)
        thread.start()
        for number in range(100):
            journal.append({"n": number, **({} if number >= 0 else {"never": 1})})
        thread.join()
    assert wrong == [] and len(lines(path)) == 101


def test_two_lines_on_one_sample_are_refused_when_read(chat: Any, make_set: MakeSet, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    assert run(chat, make_set(bad=1), out, "--quiet") == 0
    out.write_text(out.read_text() * 2)
    with pytest.raises(UsageError, match=r"line 2: parts/plate/test/dark_spot/000\.png stands in line 1 already"):
        read_instruct(out)
