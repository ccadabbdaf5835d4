"""From the options of ``agvas-run`` and the environment to a line that runs, or is looked at before it runs.

Secrets stand in the environment alone: AGVAS_MQTT_PASSWORD, AGVAS_WEBHOOK_SECRET, AGVAS_API_KEY.
"""

import os
from collections.abc import Mapping
from typing import Any

from agvas_core.contract.network import KEY_VARIABLE
from agvas_runtime.line.line_run import LineJob, Page, run_line
from agvas_runtime.line.preflight import preflight
from agvas_runtime.line.queue_policy import QueuePolicy
from agvas_runtime.sinks.open_sink import Secrets

__all__ = ["run_with_options", "secrets_of"]


def secrets_of(environment: Mapping[str, str]) -> Secrets:
    """What sinks and triggers must know and nobody may read."""
    webhook = environment.get("AGVAS_WEBHOOK_SECRET")
    return Secrets(
        environment.get("AGVAS_MQTT_PASSWORD"), webhook.encode() if webhook else None, environment.get(KEY_VARIABLE) or None
    )


def run_with_options(options: Mapping[str, Any], *, check: bool, page: Page | None = None) -> int:
    """Runs the line, or its pre-flight check; returns the exit code."""
    policies = tuple(QueuePolicy(name) for name in options["policies"])
    job = LineJob(**{**options, "policies": policies}, secrets=secrets_of(os.environ))
    return preflight(job) if check else run_line(job, page=page)
