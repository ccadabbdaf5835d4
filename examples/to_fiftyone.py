"""A run as a FiftyOne data set: look at it, sort by score, filter by verdict.

pip install fiftyone
agvas run examples/parts --out runs/parts --save mask,score,jsonl
python examples/to_fiftyone.py runs/parts --name parts
fiftyone app launch parts
"""

import argparse
import json
from pathlib import Path
from typing import Any

import fiftyone as fo


def sample(line: dict[str, Any], run: Path) -> fo.Sample:
    """One picture with verdict, outlines, and mask and score map where the run saved them."""
    made = fo.Sample(filepath=str(Path(line["name"]).resolve()))
    made["verdict"] = fo.Classification(label=line["verdict"], confidence=line["score"])
    width, height = line["width"], line["height"]
    outlines = []
    for region in line["regions"]:
        rings = [region["polygon"], *region["holes"]]
        shares = [[((x + 0.5) / width, (y + 0.5) / height) for x, y in ring] for ring in rings]
        outlines.append(fo.Polyline(label="anomaly", points=shares, closed=True, filled=True, confidence=region["max_score"]))
    made["anomalies"] = fo.Polylines(polylines=outlines)
    if "mask" in line["files"]:
        made["mask"] = fo.Segmentation(mask_path=str((run / line["files"]["mask"]).resolve()))
    if "score" in line["files"]:
        made["score_map"] = fo.Heatmap(map_path=str((run / line["files"]["score"]).resolve()))
    return made


def dataset(run: Path, name: str) -> fo.Dataset:
    """A persistent data set of every line of a run's results.jsonl."""
    with (run / "results.jsonl").open(encoding="utf-8") as lines:
        samples = [sample(json.loads(line), run) for line in lines]
    made = fo.Dataset(name, persistent=True, overwrite=True)
    made.add_samples(samples)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of agvas run")
    parser.add_argument("--name", default="agvas", help="of the data set; one of that name is replaced")
    arguments = parser.parse_args()
    print(dataset(arguments.run, arguments.name))


if __name__ == "__main__":
    main()
