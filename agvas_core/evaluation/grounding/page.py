"""The figures and some of the cases as one HTML file: each image with its instruction, what was meant, and what was masked."""

import html

import numpy as np

from agvas_core.data.synthetic.captions import describe
from agvas_core.evaluation.grounding.cases import ASKED, Case, draw
from agvas_core.evaluation.grounding.measure import Grounding
from agvas_core.evaluation.grounding.table import cells, columns, sections
from agvas_core.evaluation.grounding.trial import Answer, TrialRecord
from agvas_core.evaluation.outlines import outline
from agvas_core.evaluation.page import document, overlaid

__all__ = ["render_page"]

SHOWN = {"kind": 6, "place": 2, "size": 2, "tone": 2, "caption": 6, "defect": 3, "good": 3}  # cases, the first of each task
TITLES = {
    "kind": "Two kinds, each asked for in turn",
    "place": "Two places",
    "size": "Two sizes",
    "tone": "Two tones",
    "caption": "Captions",
    "defect": "What is there and what is not",
    "good": "Good parts",
}
LEGEND = (
    "<span class=truth>asked for</span> <span class=other>other</span> <span class=mask>prediction</span>; the first cases, not "
    "chosen ones"
)


def render_page(found: Grounding) -> str:
    """The whole page; draws the images it shows once more."""
    facts = [
        f"{found.plan.images} generated images of each task, seed {found.plan.seed}",
        *found.notes,
        *(f"Of a grey image ({blank.grey}) with nothing on it: {blank.text}" for blank in found.blanks),
    ]
    parts = [
        f"<h1>{_text(found.subject)}: do words matter?</h1>",
        "<ul class=facts>" + "".join(f"<li>{_text(fact)}</li>" for fact in facts) + "</ul>",
        _figures(found),
        *(_examples(found, task) for task in SHOWN),
    ]
    return document(f"{found.subject}: grounding", parts)


def _figures(found: Grounding) -> str:
    rows = []
    for name, figures in sections(found):
        rows.append(f"<tr class=mean><td colspan={len(columns)}>{_text(name)}</td></tr>")
        rows += [f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in cells(figure))}</tr>" for figure in figures]
    head = "".join(f"<th>{_text(name)}</th>" for name in columns)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _examples(found: Grounding, task: str) -> str:
    records = [record for record in found.records if record.task == task and record.answers][: SHOWN[task]]
    figures = "".join(_case(found, record) for record in records)
    return (
        f"<section><h2>{TITLES[task]} <small>{LEGEND}</small></h2><div class=gallery>{figures}</div></section>" if figures else ""
    )


def _case(found: Grounding, record: TrialRecord) -> str:
    case = draw(record.task, found.plan.seed, record.number)
    assert case is not None, f"case {record.task} {record.number} was drawn a moment ago, and is gone"
    shown = record.named(ASKED) or record.answers  # shuffled and zeroed ones show little
    return "".join(_figure(case, answer) for answer in shown)


def _figure(case: Case, answer: Answer) -> str:
    # By name: a model without words has not answered every question of the case.
    question = next(one for one in case.questions if (one.name, one.about) == (answer.name, answer.about))
    labels = case.sample.labels
    lines = [
        ("truth", outline(np.isin(labels, question.asked))),
        ("other", outline(np.isin(labels, question.other))),
        ("mask", answer.outline),
    ]
    everything = "Everything that is anomalous." if question.mode == "direct" else "Everything that is anomalous, in words."
    said = [f"<b>{_text(answer.instruction or everything)}</b>"]
    if answer.asked_iou is not None:
        other = "" if answer.other_iou is None else f", other {answer.other_iou:.2f}"
        said.append(f"IoU asked {answer.asked_iou:.2f}{other}")
    else:
        said.append("left alone" if answer.mask_px == 0 else f"{answer.mask_px} px masked")
    if answer.text is not None:
        said.append(f"<i>{_text(answer.text)}</i>")
    if case.truth is not None:
        said.append(f"Truth: {_text(describe(case.sample.defects))}")
    picture = overlaid(np.ascontiguousarray(case.sample.image[..., ::-1]), lines)
    return f"<figure>{picture}<figcaption>{'<br>'.join(said)}</figcaption></figure>"


def _text(value: object) -> str:
    return html.escape(str(value))
