"""Puts the report together. Everything shown comes from the event log; programs' text is escaped."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.io
import plotly.offline

from search.campaign.archive import Archive, Entry
from search.commands.export import models_in_words
from search.config import CampaignConfig
from search.log.files import write_atomic
from search.log.run import Run
from search.log.state import CampaignState
from search.machine import device_words
from search.report import figures
from search.tables import busy_words, metric

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def write_report(run: Run, state: CampaignState, config: CampaignConfig, path: Path) -> Path:
    """Write the report of a run to `path`; returns it."""
    write_atomic(path, render(run, state, config))
    return path


def render(run: Run, state: CampaignState, config: CampaignConfig) -> str:
    """The report as HTML."""
    assert state.started is not None
    archive = Archive(state, config.objective)
    main = [arm.name for arm in config.arms if not arm.control]
    winner = state.finished.winner if state.finished else None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["metric"] = metric
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    plots = {
        "pareto": figures.pareto(archive, main, winner),
        "progress": figures.progress(archive, main),
        "lineage": figures.lineage(archive),
        "stages": figures.stage_times(state),
    }
    return template.render(
        run=run.name,
        config=config,
        state=state,
        started=state.started,
        when=datetime.fromtimestamp(state.started_at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        archive=archive,
        measured_at=_measured_at(state.started.plan),
        devices=device_words(state.devices) or "not recorded",
        models=models_in_words({**config.model_dump()}),
        busy=busy_words(state),
        summary=state.finished.summary if state.finished else {},
        entries=[_row(entry, run, winner) for entry in archive.entries],
        stopped=_stopped(state),
        refused=_refused(state),
        rate=len(state.found) / max(state.active_seconds / 60, 1e-9),
        plotly_js=plotly.offline.get_plotlyjs(),
        plots={name: _html(name, figure) for name, figure in plots.items()},
    )


def _measured_at(plan: dict[str, Any]) -> str:
    """Where accuracy was measured, and where speed."""
    if "accuracy" not in plan:
        return "not recorded"
    tasks = ", ".join(
        f"{t['items']} x {t['task']} at {t['context']} tokens" for t in plan["accuracy"]["tasks"]
    )
    return "; ".join(
        [tasks, *(f"{words} {_points(plan[name])}" for name, words in _SPEED.items() if name in plan)]
    )


_SPEED = {"decode": "decode steps measured", "modelled": "throughput modelled"}


def _points(section: dict[str, Any]) -> str:
    """Contexts and batch of a stage about speed."""
    contexts, batch = section["contexts"], section["batch"]
    where = "at the same contexts" if contexts == "asked" else f"at {', '.join(map(str, contexts))} tokens"
    return f"{where}, batch " + (f"by memory, at most {section['most']}" if batch == "auto" else str(batch))


def _row(entry: Entry, run: Run, winner: str | None) -> dict[str, Any]:
    candidate = entry.candidate
    return {
        "entry": entry,
        "candidate": candidate,
        "winner": candidate.key == winner,
        "metrics": {**candidate.metrics(), **candidate.metrics(entry.score.purpose)},
        "source": run.files.get(candidate.source, ".py"),
    }


def _stopped(state: CampaignState) -> list[dict[str, Any]]:
    rows = []
    for candidate in state.candidates.values():
        result = candidate.failure
        if result is not None:
            error = result.failure.error if result.failure else {}
            rows.append(
                {
                    "candidate": candidate,
                    "stage": result.stage,
                    "code": error.get("code", "?"),
                    "message": error.get("message", ""),
                }
            )
    return rows


def _refused(state: CampaignState) -> list[tuple[str, str, int]]:
    """Refusals of the tracer and unanswered asks by code, with one message each."""
    errors = [p.error for p in state.proposals.values() if p.outcome in ("rejected", "failed") and p.error]
    counts = Counter(str(error.get("code")) for error in errors)
    example = {str(error.get("code")): str(error.get("message")) for error in errors}
    return [(code, example[code], n) for code, n in counts.most_common()]


def _html(name: str, figure: go.Figure) -> str:
    return str(
        plotly.io.to_html(
            figure, full_html=False, include_plotlyjs=False, div_id=name, config={"displaylogo": False}
        )
    )
