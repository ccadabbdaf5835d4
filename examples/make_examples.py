"""Makes examples/parts and examples/lid anew: pictures of the generator, with seeds that no training of ours draws.

``parts`` are twelve unlike parts, for zero-shot. ``lid`` is one product: good pictures to learn from, and parts to judge.
"""

from pathlib import Path

import cv2

from agvas_core.data.synthetic.products import SyntheticProduct, Variation
from agvas_core.data.synthetic.sample import Sample
from agvas_core.data.synthetic.synthesis import synthesize

HERE = Path(__file__).parent

PARTS_SEED, PARTS_SIZE = 20260, (360, 480)
PARTS = {
    101: "steel-pits",
    103: "rolled-thread",
    104: "felt-good",
    107: "marble-dent",
    109: "concrete-worn",
    114: "plate-crack",
    119: "valve-good",
    123: "rail-spots",
    124: "brushed-dent",
    127: "disc-patch",
    129: "leather-stain",
    131: "bolt-good",
}
LID = SyntheticProduct(27, "object", (300, 400), Variation(turn_deg=1.5, shift=0.008))
LID_GOOD, LID_GOOD_TO_JUDGE, LID_BAD_TO_JUDGE = range(16), range(40, 44), range(6)


def main() -> None:
    for index, name in PARTS.items():
        sample = synthesize(PARTS_SEED, index, PARTS_SIZE)
        assert name.endswith("-good") == (not sample.defects), f"{name} shows {len(sample.defects)} defects: choose another index"
        _write(HERE / "parts" / f"{name}.jpg", sample)
    for index in LID_GOOD:
        _write(HERE / "lid" / "good" / f"{index:02d}.jpg", LID.good(index))
    for index in LID_GOOD_TO_JUDGE:
        _write(HERE / "lid" / "judge" / f"good-{index - LID_GOOD_TO_JUDGE.start + 1}.jpg", LID.good(index))
    for index in LID_BAD_TO_JUDGE:
        sample = LID.bad(index)
        kinds = "-".join(sorted({defect.kind for defect in sample.defects}))
        _write(HERE / "lid" / "judge" / f"bad-{index + 1}-{kinds}.jpg", sample)


def _write(path: Path, sample: Sample) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])


if __name__ == "__main__":
    main()
