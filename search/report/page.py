"""Puts the report together: one HTML file that loads nothing, quick at ten thousand candidates.

What every reader sees first is HTML; the rest is data, deflated, that the page's own script draws. Text that came from
programs is data to the script and escaped by the template: neither ever becomes markup.
"""

from __future__ import annotations

import base64
import json
import shlex
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from search.campaign.archive import Archive
from search.commands.card import models_in_words
from search.config import CampaignConfig
from search.log.files import write_atomic
from search.log.run import Run
from search.log.state import CampaignState, Candidate
from search.machine import device_words
from search.report import data
from search.report.headline import headline
from search.report.program import program_page
from search.tables import GATES, busy_words, metric
from vortex_core.errors import VortexError
from vortex_core.text import MAX_SOURCE, visible_lines

_HERE = Path(__file__).parent
_LIBRARIES = ("d3.min.js", "plot.min.js", "diff.min.js")
_WHOLE = 40  # candidates of the ranking whose page the report carries
_MAPS = 12  # and how many of them say where they pay, which takes a twentieth of a second each
_SOURCES = 1_000_000  # bytes that deflated sources may take


def write_report(run: Run, state: CampaignState, config: CampaignConfig, path: Path) -> Path:
    """Write the report of a run to `path`; returns it."""
    write_atomic(path, render(run, state, config))
    return path


def render(run: Run, state: CampaignState, config: CampaignConfig, *, live: bool = False) -> str:
    """The report as HTML.

    Args:
        live: for a page that is served: it looks for news and shows them.
    """
    assert state.started is not None
    archive = Archive(state, config.objective)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["metric"] = metric
    template = environment.from_string((_HERE / "page.html.j2").read_text(encoding="utf-8"))
    main = {arm.name for arm in config.arms if not arm.control}
    table = data.candidates(archive, main, config.screen)
    opens = _winner(state) or (archive.entries[0].candidate.label if archive.entries else None)
    pages = _pages(run, archive, config, [row["id"] for row in table])
    return template.render(
        run=run.name,
        live=live,
        config=config,
        state=state,
        started=state.started,
        when=datetime.fromtimestamp(state.started_at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headline=headline(archive, config),
        summary=state.finished.summary if state.finished else {},
        measured_at=_measured_at(state.started.plan),
        devices=device_words(state.devices) or "not recorded",
        models=models_in_words({**config.model_dump()}),
        busy=busy_words(state),
        rate=len(state.found) / max(state.active_seconds / 60, 1e-9),
        first=archive.entries[:20],
        gates=GATES,
        failures=data.failures(state),
        lessons=data.lessons(archive),
        stages=sorted(state.stage_time.items(), key=lambda item: -item[1].seconds),
        commands=_commands(run.name, state, config),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        libraries=[(_HERE / "vendor" / name).read_text(encoding="utf-8") for name in _LIBRARIES],
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        data=_packed(
            {
                "run": run.name,
                "accuracy": config.objective.accuracy,
                "speed": config.objective.speed,
                "how": next((e.score.speed.how for e in archive.entries), "measured"),
                "gate": next(
                    (g.at_least for g in config.objective.gates if g.metric == config.objective.accuracy),
                    None,
                ),
                "screen": config.screen.accuracy if config.screen is not None else None,
                "winner": _winner(state),
                "opens": opens,
                "over": {
                    c.label: over
                    for c in state.candidates.values()
                    if c.reference and (over := data.crossover(c.metrics()))
                },
                "candidates": table,
                "progress": data.progress(archive),
            }
        ),
        opening=_packed(_only(pages, archive, opens)),
        pages=_packed(pages),
    )


def _winner(state: CampaignState) -> str | None:
    key = state.finished.winner if state.finished else None
    return state.candidates[key].label if key in state.candidates else None


def _packed(value: Any) -> str:
    """JSON, deflated, in base64: what a page's script unpacks with the browser's own DecompressionStream."""
    text = json.dumps(value, separators=(",", ":"), default=str)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _only(pages: dict[str, Any], archive: Archive, opens: str | None) -> dict[str, Any]:
    """Of `_pages`, what shows the candidate that a report opens with: the rest is unpacked when it is asked for."""
    shown = [c for c in archive.state.candidates.values() if c.label == opens]
    parents = [
        archive.state.candidates[key] for c in shown for key in c.parents if key in archive.state.candidates
    ]
    sources = {c.label: c.source for c in [*shown, *parents] if c.label in pages["sources"]}
    return {
        "pages": {c.label: pages["pages"][c.label] for c in shown if c.label in pages["pages"]},
        "sources": sources,
        "texts": {name: pages["texts"][name] for name in sources.values()},
    }


def _pages(run: Run, archive: Archive, config: CampaignConfig, order: list[str]) -> dict[str, Any]:
    """The pages of the best, and every source as far as there is room, best first."""
    entries = {e.candidate.key: e for e in archive.entries}
    state = archive.state
    keep = [state.finished.winner] if state.finished and state.finished.winner else []
    whole = {}
    for n, c in enumerate(data.chosen(archive, _WHOLE, keep)[: 4 * _WHOLE]):
        found = program_page(run, c, config, pays=n < _MAPS or c.reference or c.key in keep)
        whole[c.label] = data.details(c, entries.get(c.key)) | found
    by_label = {c.label: c for c in state.candidates.values()}
    sources: dict[str, str] = {}
    texts: dict[str, str] = {}
    spent, squeeze = 0, zlib.compressobj(9)
    for label in order:
        c = by_label[label]
        if c.source not in texts:
            text = _source(run, c)
            spent += len(squeeze.compress(text.encode())) + len(squeeze.flush(zlib.Z_SYNC_FLUSH))
            if spent > _SOURCES:
                break
            texts[c.source] = text
        sources[label] = c.source
    return {"pages": whole, "sources": sources, "texts": texts}


def _source(run: Run, c: Candidate) -> str:
    try:
        return visible_lines(run.files.get(c.source, ".py"), MAX_SOURCE)
    except VortexError as error:
        return f"# {error.message}"


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


def _commands(run: str, state: CampaignState, config: CampaignConfig) -> list[tuple[str, str]]:
    """What to type to get this again, or to go on from here."""
    assert state.started is not None
    seed = str(state.started.settings.get("seed", 0))
    again = [
        "vortex-search",
        "--model",
        config.model,
        "--proposer",
        config.proposer,
        "--seed",
        seed,
        "--run",
        run,
    ]
    found = [("resume, or run again under another name", shlex.join(again)),
             ("the ranking in a terminal", shlex.join(["vortex-search", "leaderboard", run]))]  # fmt: skip
    if state.finished and state.finished.winner:
        found += [("take the winner away", shlex.join(["vortex-search", "export", run, "--winner", "--out", "winner"])),
                  ("measure it again", "vortex-search verify winner")]  # fmt: skip
    return found
