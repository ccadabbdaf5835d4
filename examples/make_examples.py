"""Makes examples/parts anew: pictures of the generator (seed 20260), which nano's training never drew (its seed is another)."""

from pathlib import Path

import cv2

from agvas_core.data.synthetic.synthesis import synthesize

SEED, SIZE = 20260, (360, 480)
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


def main() -> None:
    folder = Path(__file__).parent / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in PARTS.items():
        sample = synthesize(SEED, index, SIZE)
        assert name.endswith("-good") == (not sample.defects), f"{name} shows {len(sample.defects)} defects: choose another index"
        cv2.imwrite(str(folder / f"{name}.jpg"), cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])


if __name__ == "__main__":
    main()
