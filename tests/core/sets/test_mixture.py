"""The mixture: the paper's shares and anchors, balanced, the same for every rank, worker and resume; broken images are passed over."""

import json
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.prompts import ANCHORS, Anchor
from agvas_core.data.datasets.record import Family, Record
from agvas_core.data.mixture.config import PAPER_SHARES, MixtureConfig, Source
from agvas_core.data.mixture.example import Example, SkipLog
from agvas_core.data.mixture.mixture import Mixture, positions
from agvas_core.data.mixture.pool import chosen, even_quotas
from agvas_core.data.templates.rules import Task

Make = Callable[..., Path]


@pytest.fixture
def table(make: Make, instruct_folder: Path) -> dict[str, Any]:
    """A mixture of one or two small sets in each source."""
    sets = [
        {"name": name, "path": make(name)} for name in ("ade20k", "paco-lvis", "refcoco", "goodsad", "real-iad", "llava-150k")
    ]
    return {"seed": 3, "sets": [*sets, {"name": "instruct", "path": instruct_folder}]}


@pytest.fixture
def mixture(table: dict[str, Any]) -> Mixture:
    return Mixture.load(MixtureConfig(**table))


def digest(example: Example) -> tuple[Any, ...]:
    mask = None if example.mask is None else example.mask.tobytes()
    return (
        example.index,
        example.source,
        example.task,
        example.dataset,
        example.name,
        example.image.tobytes(),
        mask,
        example.turns,
    )


def digest_of(job: tuple[MixtureConfig, int]) -> tuple[Any, ...]:
    config, index = job
    return digest(Mixture.load(config)[index])


def test_the_defaults_are_the_papers() -> None:
    config = MixtureConfig(sets=())
    assert config.used_shares() == pytest.approx({Source.GENERAL: 0.4, Source.INSTRUCT: 0.25, Source.SEG: 0.25, Source.VQA: 0.1})
    assert (config.seg.limit, config.seg.normal_fraction) == (20_000, 0.5)
    assert set(config.instruct.tasks) == {Task.DIRECT, Task.DESCRIBE, Task.DESCRIBE_PLUS, Task.EXPLAIN}


def test_sources_come_as_often_as_their_shares_say(mixture: Mixture) -> None:
    counts = Counter(mixture[index].source for index in range(600))
    for source, share in PAPER_SHARES.items():
        assert abs(counts[source] / 600 - share) < 4 * (share * (1 - share) / 600) ** 0.5, source


def test_each_source_supervises_its_anchors_and_no_others(mixture: Mixture) -> None:
    expected = {
        Source.GENERAL: (Anchor.SEG,),
        Source.INSTRUCT: (Anchor.NOR, Anchor.ANO, Anchor.SEG),
        Source.SEG: (Anchor.NOR, Anchor.ANO, Anchor.SEG),
        Source.VQA: (),
    }
    seen = set()
    for index in range(200):
        example = mixture[index]
        anchors = sum(turn.answer.count(ANCHORS) for turn in example.turns)
        seen.add((example.source, anchors))
        assert (example.mask is not None) == bool(example.supervised) == (anchors == 1)
        assert example.supervised == (expected[example.source] if anchors else ())
        if example.mask is not None:
            assert example.mask.shape == example.image.shape[:2] and example.mask.any() == (example.anomalous is not False)
        assert not any(ANCHORS in turn.instruction or "{" in turn.instruction for turn in example.turns)
    assert seen == {(Source.GENERAL, 1), (Source.INSTRUCT, 1), (Source.SEG, 1), (Source.SEG, 0), (Source.VQA, 0)}


def test_general_answers_carry_the_anchors_that_the_source_says(table: dict[str, Any]) -> None:
    for anchors, carried in (("all", tuple(Anchor)), ("supervised", (Anchor.SEG,))):
        mixture = Mixture.load(MixtureConfig(**table, general={"anchors": anchors}))
        seen = {(example.source, example.carried) for example in map(mixture.__getitem__, range(60)) if example.mask is not None}
        assert seen == {(Source.GENERAL, carried), (Source.INSTRUCT, tuple(Anchor)), (Source.SEG, tuple(Anchor))}


def test_an_image_is_asked_about_several_things_once_each(table: dict[str, Any], make: Make) -> None:
    """As LISA asks; in the referring sets a thing is a record, and those of one image belong together."""
    root = next(one["path"] for one in table["sets"] if one["name"] == "refcoco")
    refs = pickle.loads((root / "refcoco/refs(unc).p").read_bytes())
    instances = json.loads((root / "refcoco/instances.json").read_text())
    instances["annotations"].append(instances["annotations"][0] | {"id": 12, "segmentation": [[0, 0, 5, 0, 5, 3, 0, 3]]})
    (root / "refcoco/instances.json").write_text(json.dumps(instances))
    sentences = [{"sent": "the corner", "sent_id": 3}]
    refs.append(refs[0] | {"ref_id": 7, "ann_id": 12, "sentences": sentences})
    (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))
    one = Mixture.load(MixtureConfig(**table, shares={"general": 1}))
    three = Mixture.load(MixtureConfig(**table, shares={"general": 1}, general={"questions": 3}))
    counts = {"ade20k": 2, "paco-lvis": 1, "refcoco": 2}  # things whose masks differ: PACO's two have the same
    seen = set()
    for index in range(60):
        example = three[index]
        assert digest(example) == digest(one[index]) and not one[index].more
        asked = example.exchanges
        seen.add(example.dataset)
        assert len(asked) == counts[example.dataset]
        assert len({exchange.mask.tobytes() for exchange in asked if exchange.mask is not None}) == len(asked)
        assert len({exchange.turns[0].instruction for exchange in asked}) == len(asked)
    assert seen == set(counts)
    with pytest.raises(ValidationError, match=r"seg\.questions is 2"):
        MixtureConfig(**table, seg={"questions": 2})


def test_normal_and_anomalous_are_balanced_however_many_there_are(table: dict[str, Any]) -> None:
    root = next(one["path"] for one in table["sets"] if one["name"] == "goodsad")
    for number in range(30):  # 32 normal, 2 anomalous
        cv2.imwrite(str(root / f"drink_bottle/train/good/{number + 10}.png"), np.zeros((8, 8, 3), np.uint8))
    mixture = Mixture.load(MixtureConfig(**table, shares={"seg": 1}))
    assert mixture.pools[Source.SEG].counts() == {False: 33, True: 2}
    anomalous = sum(bool(mixture[index].anomalous) for index in range(300))
    assert abs(anomalous - 150) < 4 * (300 * 0.25) ** 0.5


def test_a_good_part_gets_an_empty_mask_or_a_refusal_as_it_was_asked(table: dict[str, Any]) -> None:
    mixture = Mixture.load(MixtureConfig(**table, shares={"seg": 1}))
    seen = set()
    for index in range(80):
        example = mixture[index]
        refused = example.mask is None
        seen.add((example.task, bool(example.anomalous), refused))
        if not example.anomalous and not refused:
            assert example.mask is not None and not example.mask.any()
    assert seen == {
        (Task.DIRECT, True, False),
        (Task.DIRECT, False, False),
        (Task.REJECTION, True, False),
        (Task.REJECTION, False, True),
        (Task.DESCRIBE, False, True),  # the modes of table 4 on a normal image
        (Task.EXPLAIN, False, True),
    }


def test_instruct_tells_its_texts_in_the_order_of_each_mode(table: dict[str, Any]) -> None:
    tasks = {task: 1 for task in (*MixtureConfig(sets=()).instruct.tasks, Task.DIALOGUE, Task.CONVERSATION)}
    mixture = Mixture.load(MixtureConfig(**table, shares={"instruct": 1}, instruct={"tasks": tasks}))
    first: dict[Task, Example] = {}
    for index in range(100):
        first.setdefault(mixture[index].task, mixture[index])
    assert set(first) == set(tasks)
    assert first[Task.DESCRIBE].answer.index("chip") < first[Task.DESCRIBE].answer.index(ANCHORS)
    assert first[Task.DESCRIBE_PLUS].instruction.startswith("A good bottle has a smooth, closed rim. ")
    assert first[Task.EXPLAIN].answer.index(ANCHORS) < len(first[Task.EXPLAIN].answer) - len(ANCHORS) - 10
    assert first[Task.CONVERSATION].mask is None and not first[Task.CONVERSATION].supervised
    dialogue = first[Task.DIALOGUE]
    assert len(dialogue.history) == len(dialogue.turns) - 1 >= 1 and dialogue.mask is not None


def test_an_example_depends_on_its_number_alone(mixture: Mixture, table: dict[str, Any]) -> None:
    forwards = [digest(mixture[index]) for index in range(24)]
    again = Mixture.load(MixtureConfig(**table))
    assert [digest(again[index]) for index in reversed(range(24))][::-1] == forwards
    assert again.fingerprint == mixture.fingerprint
    other = Mixture.load(MixtureConfig(**{**table, "seed": 4}))
    assert [digest(other[index]) for index in range(24)] != forwards


def test_the_order_in_which_sets_are_written_makes_no_difference(mixture: Mixture, table: dict[str, Any]) -> None:
    turned = Mixture.load(MixtureConfig(**{**table, "sets": table["sets"][::-1]}))
    assert turned.fingerprint == mixture.fingerprint
    assert [digest(turned[index]) for index in range(24)] == [digest(mixture[index]) for index in range(24)]


def test_another_process_makes_the_same_example(mixture: Mixture) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        assert list(processes.map(digest_of, [(mixture.config, 5), (mixture.config, 11)])) == [
            digest(mixture[5]),
            digest(mixture[11]),
        ]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_a_step_has_the_same_examples_however_many_ranks_share_it(world_size: int) -> None:
    for step in (0, 7):
        parts = [positions(step, batch=80, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert [index for part in parts for index in part] == list(range(step * 80, step * 80 + 80))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UsageError, match="a batch of 80 cannot be shared by 3 processes"):
        positions(0, batch=80, rank=0, world_size=3)
    with pytest.raises(UsageError, match="rank is 4; of 4 processes the last is 3"):
        positions(0, batch=80, rank=4, world_size=4)


def test_a_broken_image_is_replaced_counted_and_listed_and_the_others_stay(table: dict[str, Any], tmp_path: Path) -> None:
    root = next(one["path"] for one in table["sets"] if one["name"] == "goodsad")
    for number in range(3):
        cv2.imwrite(str(root / f"drink_bottle/train/good/{number + 10}.png"), np.full((8, 8, 3), number, np.uint8))
    table["sets"] = [one for one in table["sets"] if one["name"] in ("goodsad", "real-iad")]
    config = MixtureConfig(**table, shares={"seg": 1})
    before = [Mixture.load(config)[index] for index in range(60)]
    name = "drink_bottle/train/good/11.png"
    (root / name).write_bytes((root / name).read_bytes()[:30])
    mixture, log = Mixture.load(config), SkipLog()
    hit = 0
    for old in before:
        new = mixture[old.index]
        log.add(new.skipped)
        if old.name == name:
            hit += 1
            assert new.name != name and [skip.name for skip in new.skipped] == [name] * len(new.skipped)
            assert (new.source, new.anomalous) == (old.source, old.anomalous)  # the balance stays
            assert digest(new) == digest(Mixture.load(config)[old.index])
        else:
            assert digest(new) == digest(old) and new.skipped == ()
    assert hit and len(log) >= hit and log.images == 1
    log.save(tmp_path / "run/skipped.jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert (row["name"], row["times"]) == (name, len(log))
    assert "cut short" in row["reason"] or "cannot be decoded" in row["reason"]


def test_data_that_are_broken_altogether_end_the_run_in_words(make: Make) -> None:
    root = make("road")
    (root / "image/001.jpg").write_bytes(b"")
    mixture = Mixture.load(MixtureConfig(sets=({"name": "road", "path": root},), shares={"seg": 1}))
    with pytest.raises(ImageError, match=r"16 records of seg in a row cannot be used.*agvas data check"):
        mixture[0]


def test_an_empty_mask_is_passed_over(make: Make) -> None:
    root = make("real-iad")
    cv2.imwrite(str(root / "realiad_1024/audiojack/NG/HS/S0002/b.png"), np.zeros((24, 32), np.uint8))
    mixture = Mixture.load(
        MixtureConfig(sets=({"name": "real-iad", "path": root},), shares={"seg": 1}, seg={"normal_fraction": 0})
    )
    with pytest.raises(ImageError, match="the mask of anomaly is empty"):
        mixture[0]


@pytest.mark.parametrize("dropped", list(Source))
def test_any_source_can_be_left_out_and_the_others_share_its_part(dropped: Source, table: dict[str, Any]) -> None:
    mixture = Mixture.load(MixtureConfig(**table, drop=[dropped]))
    assert dropped not in mixture.shares and sum(mixture.shares.values()) == pytest.approx(1)
    left = {source: share for source, share in PAPER_SHARES.items() if source != dropped}
    assert mixture.shares == pytest.approx({source: share / sum(left.values()) for source, share in left.items()})
    assert dropped not in {mixture[index].source for index in range(60)}


def test_a_partial_table_keeps_the_other_defaults() -> None:
    config = MixtureConfig.model_validate({"sets": [], "seg": {"limit": 10}})
    assert (config.seg.limit, config.seg.spread, config.seg.tasks) == (10, "images", {Task.DIRECT: 0.75, Task.REJECTION: 0.25})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"shares": {"seg": -1}}, "shares.seg is -1"),
        ({"shares": {"seg": 1}, "drop": ["seg"]}, "no source is left"),
        ({"seg": {"tasks": {"explain": 1}}}, "seg.tasks has explain; for seg there are: direct, rejection"),
        ({"instruct": {"tasks": {}}}, "instruct.tasks is empty"),
        ({"general": {"tasks": {"direct": 1}}}, "the record decides"),
        ({"seg": {"tasks": {"direct": 0}}}, "nor all 0"),
        ({"seg": {"limits": 3}}, "limits"),
        ({"seg": {"normal_tasks": {"describe-plus": 1}}}, "seg.normal_tasks has describe-plus"),
        ({"general": {"supervise": ["SAG"]}}, "supervise has 'SAG'; there are NOR, ANO, SEG"),
        ({"general": {"families": {"general": 0}}}, "a weight is above 0"),
        ({"allow_test_sets": ["MVTec"]}, "allow_test_sets has 'MVTec'; there are MVTec-AD"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MixtureConfig.model_validate({"sets": [], **table})


def test_sets_that_do_not_fit_are_refused_in_words(table: dict[str, Any], make: Make) -> None:
    goods = {"name": "goodsad", "path": make("goodsad")}
    for sets, shares, said in (
        ([goods], {"seg": 1, "vqa": 1}, r'the source vqa has a share of 1 and no record.*drop = \["vqa"\]'),
        (
            [{**goods, "source": "instruct"}],
            {"instruct": 1},
            "goodsad .anomaly. cannot be in the source instruct: it belongs to seg",
        ),
        ([goods, goods], {"seg": 1}, "two sets of the source seg are called goodsad: give one of them a label"),
        ([{**goods, "splits": ["val"]}], {"seg": 1}, "has no record in the splits val; it has test, train"),
        ([{**goods, "path": "no"}], {"seg": 1}, "no is not there: name the folder of goodsad"),
        ([{**goods, "name": "goods"}], {"seg": 1}, "no set 'goods'; known are ade20k"),
    ):
        with pytest.raises(UsageError, match=said):
            Mixture.load(MixtureConfig.model_validate({"sets": sets, "shares": shares}))
    both = MixtureConfig.model_validate({"sets": [goods, {**goods, "label": "more"}], "shares": {"seg": 1}})
    assert len(Mixture.load(both).pools[Source.SEG]) == 6


def records(name: str, normal: int, anomalous: int) -> list[Record]:
    kinds = [False] * normal + [True] * anomalous
    return [Record(name, Family.ANOMALY, Path(f"{n}.png"), f"{n}.png", "train", anomalous=bad) for n, bad in enumerate(kinds)]


def test_a_limit_takes_half_of_each_and_as_evenly_over_the_sets_as_they_reach() -> None:
    sets = {"road": records("road", 0, 5), "large": records("large", 900, 300), "other": records("other", 100, 100)}
    kept = chosen(sets, 200, 0.5, 0)
    count = {name: Counter(record.anomalous for record in found) for name, found in kept.items()}
    assert count["road"][True] == 5
    assert sum(one[True] for one in count.values()) == sum(one[False] for one in count.values()) == 100
    assert abs(count["large"][True] - count["other"][True]) <= 1 and count["large"][False] == count["other"][False] == 50
    assert chosen(sets, 200, 0.5, 0) == kept != chosen(sets, 200, 0.5, 1)
    assert sum(map(len, chosen(sets, 10**6, 0.5, 0).values())) == 1405
    assert sum(map(len, chosen({"road": records("road", 0, 50)}, 20, 0.5, 0).values())) == 20


def test_quotas_add_up_and_leave_nobody_behind() -> None:
    assert even_quotas({"a": 3, "b": 100, "c": 100}, 101) == {"a": 3, "b": 49, "c": 49}
    assert even_quotas({"a": 3, "b": 4}, 100) == {"a": 3, "b": 4}


def test_own_templates_are_used(table: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "direct.toml").write_text('replace = true\ninstructions = ["Los."]\nanswers = ["Sure, {anchors}."]\n')
    mixture = Mixture.load(MixtureConfig(**table, shares={"seg": 1}, seg={"tasks": {"direct": 1}}, templates=folder))
    assert {mixture[index].instruction for index in range(10)} == {"Los."}


def test_a_mixture_travels_to_worker_processes(mixture: Mixture) -> None:
    assert digest(pickle.loads(pickle.dumps(mixture))[7]) == digest(mixture[7])


def test_no_torch_is_drawn_in() -> None:
    code = "import sys, agvas_core.data.mixture.mixture, agvas_core.data.datasets.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_general_sets_come_by_family_as_lisa_draws_them(table: dict[str, Any]) -> None:
    mixture = Mixture.load(MixtureConfig(**table, shares={"general": 1}))  # two sets by name, one by expression
    counts = Counter(mixture[index].dataset for index in range(400))
    assert abs(counts["refcoco"] / 400 - 3 / 12) < 4 * (0.25 * 0.75 / 400) ** 0.5
    assert abs(counts["ade20k"] - counts["paco-lvis"]) < 4 * (400 * 0.375 * 2) ** 0.5


def test_general_masks_teach_other_anchors_where_seg_is_left_out(table: dict[str, Any]) -> None:
    config = MixtureConfig(**table, shares={"general": 1}, general={"supervise": ["NOR", "ANO"]})
    assert Mixture.load(config)[0].supervised == (Anchor.NOR, Anchor.ANO)
    assert MixtureConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_limit_at_random_follows_the_size_of_the_sets() -> None:
    sets = {"road": records("road", 0, 10), "large": records("large", 990, 990)}
    kept = chosen(sets, 400, 0.5, 0, "random")
    assert {name: len(found) for name, found in kept.items()}["large"] > 380
    assert sum(record.anomalous is True for found in kept.values() for record in found) == 200
    assert chosen(sets, 400, 0.5, 0, "random") == kept != chosen(sets, 400, 0.5, 1, "random")


def test_views_of_one_part_are_held_out_together(make: Make) -> None:
    root = make("real-iad")
    rows = []
    for part in range(40):
        for view in range(1, 6):
            name = f"OK/S{part:04d}/audiojack_{part:04d}_OK_C{view}_1.jpg"
            rows.append({"category": "audiojack", "anomaly_class": "OK", "image_path": name, "mask_path": None})
            (root / "realiad_1024/audiojack" / name).parent.mkdir(parents=True, exist_ok=True)
    path = root / "realiad_jsons/realiad_jsons/audiojack.json"
    path.write_text(json.dumps({"meta": {"normal_class": "OK", "prefix": "audiojack/"}, "train": rows, "test": []}))
    one = {"name": "real-iad", "path": root}
    mixture = Mixture.load(MixtureConfig(sets=(one,), shares={"seg": 1}, held_out=0.3))
    views = Counter(record.image.parent.name for record in mixture.held_out)
    assert 4 < len(views) < 25 and set(views.values()) == {5}
    first = Mixture.load(MixtureConfig(sets=({**one, "only": "*_C1_*"},), shares={"seg": 1}))
    assert len(first.pools[Source.SEG]) == 40
    with pytest.raises(UsageError, match="no record whose name is like"):
        Mixture.load(MixtureConfig(sets=({**one, "only": "*_C9_*"},), shares={"seg": 1}))


def test_table_5_takes_its_sets_alone_and_wants_them_all(table: dict[str, Any], make: Make) -> None:
    names = ("road", "miad", "gc10", "dtd-synthetic", "zju-leaper", "real-iad", "goodsad")
    sets = [{"name": name, "path": make(name)} for name in names]
    mixture = Mixture.load(MixtureConfig(sets=sets, shares={"seg": 1}, composition="table-5"))
    assert set(mixture.listed[Source.SEG]) == set(names) - {"goodsad"}
    with pytest.raises(UsageError, match="lacks road"):
        Mixture.load(MixtureConfig(sets=sets[1:], shares={"seg": 1}, composition="table-5"))
