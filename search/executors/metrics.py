"""Prometheus metrics, kept and served by Ray: every node has a port for them, and Ray writes the list of nodes that a
Prometheus server reads (`prom_metrics_service_discovery.json` in its folder)."""

from __future__ import annotations

from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]


@cache
def _stage_seconds() -> Any:
    return Histogram(
        "vortex_stage_seconds", "Seconds that stages ran", boundaries=_SECONDS,
        tag_keys=("campaign", "stage", "role"),
    )  # fmt: skip


@cache
def _stage_runs() -> Any:
    return Counter(
        "vortex_stage_runs",
        "Stages run, by how they ended",
        tag_keys=("campaign", "stage", "role", "outcome"),
    )


@cache
def _gauge(name: str, what: str) -> Any:
    return Gauge(name, what, tag_keys=("campaign",))


def stage_ran(campaign: str, stage: str, role: str, outcome: str, seconds: float) -> None:
    """Count one stage, in the process that ran it."""
    tags = {"campaign": campaign, "stage": stage, "role": role}
    _stage_seconds().observe(seconds, tags=tags)
    _stage_runs().inc(1.0, tags=tags | {"outcome": outcome})


_GAUGES = {
    "programs": "Distinct programs finished",
    "evaluations": "Candidates finished",
    "proposals": "Proposals asked for",
    "engines": "Engines at work for the campaign",
    "coming": "Engines that are being started or wait for a place",
    "queue": "Stages that wait for a worker",
    "running": "Stages, traces and proposals under way",
    "dollars": "Spent on proposers with a known price",
    "gpu_seconds": "GPU-seconds held",
    "infrastructure_failures": "Failures that were nobody's result",
    "doubled": "Stages given to a second worker because they took so long",
}


def campaign_stands(campaign: str, values: dict[str, float]) -> None:
    """Where a campaign stands, said by its driver."""
    for name, value in values.items():
        _gauge(f"vortex_{name}", _GAUGES[name]).set(value, tags={"campaign": campaign})
