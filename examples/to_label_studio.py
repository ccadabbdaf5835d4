"""A run as pre-annotations for Label Studio, so that a person corrects outlines instead of drawing them.

    agvas run examples/parts --out runs/parts
    python examples/to_label_studio.py runs/parts --prefix /data/local-files/?d= > tasks.json

In Label Studio make a project with the labelling setup below, then Import tasks.json. ``--prefix`` is what stands before each
picture's path: of Label Studio's local files (LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true), or the address of a server.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SETUP = """\
<View>
  <Image name="image" value="$image" zoom="true"/>
  <PolygonLabels name="label" toName="image"><Label value="anomaly" background="#ff8c00"/></PolygonLabels>
  <Choices name="verdict" toName="image"><Choice value="PASS"/><Choice value="FAIL"/></Choices>
</View>
"""


def task(line: dict[str, Any], prefix: str) -> dict[str, Any]:
    """One picture with its outlines and verdict; without a prediction where there is no verdict."""
    data = {"image": prefix + line["name"], "agvas_verdict": line["verdict"]}
    if line["verdict"] == "NO_VERDICT":
        return {"data": data}
    size = {"original_width": line["width"], "original_height": line["height"], "image_rotation": 0}
    shared = {"to_name": "image", **size}
    verdict = {"choices": [line["verdict"]]}
    result: list[dict[str, Any]] = [{"id": "verdict", "type": "choices", "from_name": "verdict", "value": verdict, **shared}]
    for number, region in enumerate(line["regions"]):
        value = {"points": points(region, line["width"], line["height"]), "closed": True, "polygonlabels": ["anomaly"]}
        named = {"id": f"region-{number}", "type": "polygonlabels", "from_name": "label"}
        result.append({**named, "value": value, "score": region["max_score"], **shared})
    return {"data": data, "predictions": [{"model_version": line["bundle"], "score": line["score"], "result": result}]}


def points(region: dict[str, Any], width: int, height: int) -> list[list[float]]:
    """The outline in per cent of the sides; of a region too thin for a polygon its box."""
    outline = [(x + 0.5, y + 0.5) for x, y in region["polygon"]]
    if len(outline) < 3:
        x, y, w, h = region["box"]
        outline = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    return [[round(100 * x / width, 4), round(100 * y / height, 4)] for x, y in outline]


def tasks(run: Path, prefix: str) -> Iterator[dict[str, Any]]:
    """Of every line of a run's results.jsonl."""
    with (run / "results.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield task(json.loads(line), prefix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of agvas run")
    parser.add_argument("--prefix", default="", help="before the path of each picture")
    parser.add_argument("--setup", action="store_true", help="print the labelling setup of the project instead")
    arguments = parser.parse_args()
    if arguments.setup:
        print(SETUP, end="")
    else:
        json.dump(list(tasks(arguments.run, arguments.prefix)), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
