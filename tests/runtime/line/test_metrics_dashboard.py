"""The dashboard in ``deploy/`` asks for figures that a line gives."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_figure_of_the_dashboard_is_one_that_a_line_gives() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    asked = {
        name for panel in dashboard["panels"] for each in panel["targets"] for name in re.findall(r"agvas_\w+", each["expr"])
    }
    sources = [
        (ROOT / "runtime/agvas_runtime/line" / name).read_text() for name in ("app/metrics.py", "app/run.py", "station/runner.py")
    ]
    given = set(re.findall(r"agvas_[a-z_]+", " ".join(sources)))
    assert len(asked) > 10 and asked <= given, asked - given
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
