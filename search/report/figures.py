"""The report's plots. Functions of the folded state; text that came from programs is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import plotly.graph_objects as go

from evaluators.results import Metric
from search.campaign.archive import Archive, Score, Verdict, score
from search.log.events import Purpose
from search.log.state import CampaignState, Candidate

_INK = "#1c2733"
_GREY = "#9aa5b1"
_COLOURS = ("#1764ab", "#d1661f", "#2e7d4f", "#8a3b8f", "#8c6d1f", "#3b7f8a")
_SYMBOLS = {Verdict.PROVEN: "circle", Verdict.UNCLEAR: "circle-open", Verdict.FAILED: "x-thin-open"}


def pareto(archive: Archive, main: Sequence[str], winner: str | None) -> go.Figure:
    """Accuracy against speed with 95% intervals: found programs by arm, dense, library flows, the winner.

    Small marks are the search's measurements; diamonds are the same programs on fresh items.
    """
    objective, state = archive.objective, archive.state
    figure = go.Figure()
    groups: list[tuple[str, list[Candidate], str]] = [
        ("library", [c for c in state.candidates.values() if c.reference], _INK)
    ]
    arms = sorted({c.arm for c in state.found}, key=lambda arm: (arm not in main, arm))
    for i, arm in enumerate(arms):
        role = arm if arm in main else f"{arm} (control)"
        groups.append((role, [c for c in state.found if c.arm == arm], _COLOURS[i % len(_COLOURS)]))
    for name, members, colour in groups:
        _points(figure, _scored(members, archive, "search"), name, colour, named=name == "library")
    finalists = [c for c in state.candidates.values() if c.status("fresh") != "waiting"]
    again = _scored(finalists, archive, "fresh")
    if again:
        _points(figure, again, "fresh items", "#b3261e", symbol="diamond", size=11)
    best = [(c, s) for c, s in again if c.key == winner]
    if best:
        _points(figure, best, "winner", "#b3261e", symbol="star", size=18, named=True)
    front = sorted((e.score.point for e in archive.front()), key=lambda p: p[1])
    if len(front) > 1:
        figure.add_trace(
            go.Scatter(
                x=[p[1] for p in front],
                y=[p[0] for p in front],
                mode="lines",
                name="Pareto front",
                line={"color": _GREY, "dash": "dot", "shape": "vh"},
                hoverinfo="skip",
            )
        )
    for gate in objective.gates:
        if gate.metric == objective.accuracy and gate.at_least is not None:
            figure.add_hline(y=gate.at_least, line={"color": _GREY, "width": 1}, annotation_text="gate")
    return _styled(figure, objective.speed, objective.accuracy, 520)


def progress(archive: Archive, main: Sequence[str]) -> go.Figure:
    """Hypervolume of what keeps the gates against evaluations, for each arm."""
    figure = go.Figure()
    for i, arm in enumerate(sorted({c.arm for c in archive.state.found}, key=lambda a: (a not in main, a))):
        volumes = archive.hypervolume_by_evaluation({arm})
        figure.add_trace(
            go.Scatter(
                x=list(range(1, len(volumes) + 1)),
                y=volumes,
                mode="lines+markers",
                name=arm if arm in main else f"{arm} (control)",
                line={"color": _COLOURS[i % len(_COLOURS)], "shape": "hv"},
            )
        )
    return _styled(figure, "candidates evaluated by the arm", "hypervolume above dense", 360)


def lineage(archive: Archive) -> go.Figure:
    """Every scored candidate at its number and speed, joined to its parents."""
    state, speed_name = archive.state, archive.objective.speed
    placed: dict[str, tuple[int, float]] = {}
    for candidate in state.candidates.values():
        found = candidate.metrics().get(speed_name)
        if found is not None:
            placed[candidate.key] = (candidate.number, found.value)
    xs: list[float | None] = []
    ys: list[float | None] = []
    for candidate in state.candidates.values():
        for parent in candidate.parents:
            if candidate.key in placed and parent in placed:
                (x0, y0), (x1, y1) = placed[parent], placed[candidate.key]
                xs += [x0, x1, None]
                ys += [y0, y1, None]
    figure = go.Figure()
    line = {"color": _GREY, "width": 1}
    figure.add_trace(go.Scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", showlegend=False))
    arms = ["library", *sorted({c.arm for c in state.found})]
    for arm, colour in zip(arms, (_INK, *_COLOURS), strict=False):
        members = [c for c in state.candidates.values() if c.arm == arm and c.key in placed]
        figure.add_trace(
            go.Scatter(
                x=[placed[c.key][0] for c in members],
                y=[placed[c.key][1] for c in members],
                mode="markers",
                name=arm,
                marker={"color": colour, "size": 8},
                hovertext=[_hover(c, None) + _family(c, state) for c in members],
                hoverinfo="text",
            )
        )
    return _styled(figure, "candidate number", speed_name, 420)


def stage_times(state: CampaignState) -> go.Figure:
    """Seconds by stage."""
    stages = sorted(state.stage_time.items(), key=lambda item: item[1].seconds)
    figure = go.Figure(
        go.Bar(
            x=[spent.seconds for _, spent in stages],
            y=[name for name, _ in stages],
            orientation="h",
            marker={"color": _COLOURS[0]},
            hovertext=[f"{s.runs} runs, {s.seconds / max(s.runs, 1):.2f} s each" for _, s in stages],
        )
    )
    return _styled(figure, "seconds, all workers together", "", 60 + 28 * max(len(stages), 3))


def _scored(
    candidates: Iterable[Candidate], archive: Archive, purpose: Purpose
) -> list[tuple[Candidate, Score]]:
    return [
        (c, found)
        for c in candidates
        if (found := score(c, archive.objective, purpose)) is not None and c.status(purpose) == "passed"
    ]


def _points(
    figure: go.Figure,
    members: list[tuple[Candidate, Score]],
    name: str,
    colour: str,
    *,
    symbol: str | None = None,
    size: int = 8,
    named: bool = False,
) -> None:
    if not members:
        return
    figure.add_trace(
        go.Scatter(
            x=[s.speed.value for _, s in members],
            y=[s.accuracy.value for _, s in members],
            error_x=_bars([s.speed for _, s in members], colour),
            error_y=_bars([s.accuracy for _, s in members], colour),
            mode="markers+text" if named else "markers",
            text=[escape(c.name) for c, _ in members] if named else None,
            textposition="top center",
            name=name,
            marker={
                "color": colour,
                "size": size,
                "symbol": [symbol or _SYMBOLS[s.verdict] for _, s in members],
                "line": {"width": 1.5, "color": colour},
            },
            hovertext=[_hover(c, s) for c, s in members],
            hoverinfo="text",
        )
    )


def _bars(metrics: list[Metric], colour: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [0.0 if m.high is None else m.high - m.value for m in metrics],
        "arrayminus": [0.0 if m.low is None else m.value - m.low for m in metrics],
        "color": colour,
        "thickness": 0.7,
        "width": 2,
    }


def _hover(candidate: Candidate, found: Score | None) -> str:
    lines = [f"<b>{candidate.label} {escape(candidate.name)}</b>", escape(candidate.idea[:120])]
    if found is not None:
        lines += [
            f"accuracy {found.accuracy.value:+.3f}",
            f"speed {found.speed.value:.3f} ({found.speed.how})",
        ]
        lines += [escape(words) for words in found.broken]
    return "<br>".join(line for line in lines if line)


def _family(candidate: Candidate, state: CampaignState) -> str:
    parents = [state.candidates[p].label for p in candidate.parents if p in state.candidates]
    return f"<br>from {', '.join(parents)}" if parents else ""


def _styled(figure: go.Figure, x: str, y: str, height: int) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        xaxis_title=x,
        yaxis_title=y,
        font={"family": "system-ui, sans-serif", "color": _INK},
        legend={"orientation": "h", "y": -0.2},
    )
    return figure
