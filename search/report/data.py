"""A run as plain values for its report: everything shown comes from the event log. No HTML here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from evaluators.results import Metric
from search.campaign.archive import Archive, Entry, Score, reference_point, sealed_verdict, worth
from search.campaign.front import hypervolumes
from search.campaign.tiers import tiers
from search.config import Screen
from search.log.state import USER, CampaignState, Candidate
from vortex_core.text import visible

_COLUMNS = ("accuracy", "decode_speedup", "recall", "density", "perplexity_ratio")


def candidates(archive: Archive, main: set[str], screen: Screen | None = None) -> list[dict[str, Any]]:
    """Every candidate: ranked ones first and in order, then those that were only screened, best first; parents are
    positions in this list."""
    state = archive.state
    ranked = [(e.candidate, e) for e in archive.entries]
    seen = {c.key for c, _ in ranked}
    rest: list[tuple[Candidate, Entry | None]] = [
        (c, None) for c in state.candidates.values() if c.key not in seen
    ]
    if screen is not None:
        worth_of = {c.key: on.value if (on := _screened(c, screen.accuracy)) else -1.0 for c, _ in rest}
        rest.sort(key=lambda pair: -worth_of[pair[0].key])
    ordered: list[tuple[Candidate, Entry | None]] = [*ranked, *rest]
    place = {c.key: i for i, (c, _) in enumerate(ordered)}
    tier = tiers(archive.entries)
    return [_candidate(c, e, archive, place, tier.get(c.key), main, screen) for c, e in ordered]


def _screened(c: Candidate, name: str) -> Metric | None:
    """A metric of the screen, of its fullest look."""
    return {**c.metrics("screen"), **c.metrics("full_screen")}.get(name)


def _candidate(
    c: Candidate,
    entry: Entry | None,
    archive: Archive,
    place: dict[str, int],
    tier: int | None,
    main: set[str],
    screen: Screen | None,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": c.label, "n": visible(c.name, 100), "a": c.arm, "p": [place[k] for k in c.parents if k in place],
        "at": round((c.finished_at or c.admitted_at) - archive.state.started_at, 1),
    }  # fmt: skip
    if c.reference:
        found["lib"] = 1
    elif c.arm not in main and c.arm != USER:
        found["ctl"] = 1
    if c.idea:
        found["i"] = visible(c.idea, 240)
    seen = _screened(c, screen.accuracy) if screen is not None else None
    if seen is not None:
        found["sc"] = [_triple(seen), _triple(_screened(c, archive.objective.speed))]
    if entry is None:
        found["st"] = c.ended or ("screened" if seen is not None else "not finished")
        failure = c.failure
        if failure is not None and failure.failure is not None:
            error = failure.failure.error
            found["err"] = [str(error.get("code", "?")), visible(error.get("message", ""))]
        metrics = c.metrics()
    else:
        s = entry.score
        sealed = sealed_verdict(c, archive.objective)
        found |= {"r": entry.rank, "v": int(s.verdict), "t": tier, "f": entry.front, "on": s.purpose,
                  "q": _triple(s.accuracy), "s": _triple(s.speed)}  # fmt: skip
        if s.broken:
            found["g"] = list(s.broken)
        if sealed is not None:
            found["sealed"] = int(sealed)
        metrics = {**c.metrics(), **c.metrics(s.purpose)}
    found["m"] = [_triple(metrics.get(name)) for name in _COLUMNS]
    tasks = _tasks(c, entry.score if entry else None)
    if tasks:
        found["w"] = min(tasks, key=lambda row: row["accuracy"] - row["dense"])
    return found


def _triple(metric: Metric | None) -> list[float] | None:
    """Value, and interval where there is one."""
    if metric is None:
        return None
    values = (
        [metric.value]
        if metric.low is None or metric.high is None
        else [metric.value, metric.low, metric.high]
    )
    return [float(f"{v:.5g}") for v in values]


def _tasks(c: Candidate, found: Score | None) -> list[dict[str, Any]]:
    """Accuracy by task and context beside dense's, of the items the candidate is ranked by."""
    purpose = found.purpose if found else "search"
    table: dict[str, Any] = {}
    for result in c.stages(purpose):
        table |= result.info.get("tasks", {})
    return [{"task": name, **values} for name, values in table.items()]


def details(c: Candidate, entry: Entry | None) -> dict[str, Any]:
    """What a candidate's own page shows beside its row: all stages, tasks, maps, percentiles."""
    purposes: dict[str, list[Any]] = {}
    for purpose, results in c.results.items():
        purposes[purpose] = [
            [r.stage, round(r.seconds, 3), r.passed,
             {n: [*(_triple(m) or ()), m.unit, m.how] for n, m in r.metrics.items()}]
            for r in results.values()
        ]  # fmt: skip
    info = c.info()
    recall, decode = info.get("recall", {}), info.get("decode", {})
    return {
        "ir": c.ir_hash, "key": c.key, "knobs": c.knobs, "doc": visible(c.doc, 1000), "by": c.proposer,
        "stages": purposes, "tasks": _tasks(c, entry.score if entry else None),
        "heads": recall.get("recall_by_head"), "layers": recall.get("recall_by_layer"),
        "points": decode.get("points"), "lost": info.get("accuracy", {}).get("lost_items", [])[:4],
        "over": crossover(c.metrics()),
    }  # fmt: skip


def crossover(metrics: dict[str, Metric]) -> list[list[float]]:
    """Speed-up by context, `[[tokens, value, low, high], ...]`: where it pays and where it does not."""
    found = []
    for name, metric in metrics.items():
        head, _, at = name.partition("@")
        if head == "decode_speedup" and at.isdigit():
            low, high = (metric.low, metric.high) if metric.low is not None and metric.high is not None else (
                metric.value, metric.value)  # fmt: skip
            found.append([float(at), metric.value, low, high])
    return sorted(found)


def progress(archive: Archive) -> dict[str, list[list[float]]]:
    """By arm: `[evaluations, seconds, dollars, hypervolume]` after each finished candidate that changed it."""
    state, objective = archive.state, archive.objective
    reference = reference_point(objective)
    found: dict[str, list[list[float]]] = {}
    for arm in sorted({c.arm for c in state.found}):
        done = [c for c in state.found if c.finished_at is not None and c.arm == arm]
        done.sort(key=lambda c: (c.finished_at or 0.0, c.number))
        volumes = hypervolumes((worth(c, objective) for c in done), reference)
        paid = accumulate(_dollars(c, state) for c in done)
        points: list[list[float]] = []
        for n, (c, volume, dollars) in enumerate(zip(done, volumes, paid, strict=True), 1):
            if not points or volume != points[-1][3] or n == len(done):
                points.append([n, round((c.finished_at or 0) - state.started_at, 1), round(dollars, 5),
                               float(f"{volume:.6g}")])  # fmt: skip
        found[arm] = points
    return found


def _dollars(c: Candidate, state: CampaignState) -> float:
    proposal = None if c.proposal is None else state.proposals[c.proposal]
    return (proposal.dollars or 0.0) if proposal else 0.0


def failures(state: CampaignState) -> list[dict[str, Any]]:
    """Refusals of the tracer, unanswered asks and stops of stages by code, the most frequent first, with examples."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[list[str]]] = {}

    def add(where: str, who: str, error: dict[str, Any]) -> None:
        group = where, str(error.get("code", "?"))
        counts[group] += 1
        shown = examples.setdefault(group, [])
        if len(shown) < 3:
            shown.append([who, visible(error.get("message", ""))])

    for p in state.proposals.values():
        if p.outcome in ("rejected", "failed") and p.error:
            add("before any stage", f"proposal {p.id}", p.error)
    for c in state.candidates.values():
        if (result := c.failure) is not None and result.failure is not None:
            add(result.stage, f"{c.label} {c.name}", result.failure.error)
    return [{"where": w, "code": code, "times": n, "examples": examples[w, code]}
            for (w, code), n in counts.most_common()]  # fmt: skip


def lessons(archive: Archive, most: int = 8) -> list[str]:
    """What the run says about its own search, counted, not guessed."""
    state = archive.state
    said: list[str] = []
    by_request: dict[str, list[bool]] = {}
    front = {e.candidate.key for e in archive.front() if not e.candidate.reference}
    for c in state.found:
        if c.proposal is not None:
            by_request.setdefault(state.proposals[c.proposal].request, []).append(c.key in front)
    for request, hits in sorted(by_request.items(), key=lambda item: -sum(item[1])):
        said.append(f"{request}: {sum(hits)} of {len(hits)} candidates are on the front")
    outcomes = Counter(p.outcome for p in state.proposals.values())
    if state.proposals:
        became = ", ".join(f"{n} were {word}" for word, n in outcomes.most_common())
        said.append(f"of {len(state.proposals)} proposals {became}")
    for first in failures(state)[:1]:
        said.append(f"the most frequent end: {first['code']} in {first['where']}, {first['times']} times")
    return said[:most]


def chosen(archive: Archive, limit: int, keep: Iterable[str] = ()) -> list[Candidate]:
    """The candidates whose whole page a report carries: the first `limit` of the ranking, what is in `keep`, and the
    ancestors of both."""
    state = archive.state
    wanted: dict[str, Candidate] = {}
    todo = [e.candidate.key for e in archive.entries[:limit]] + list(keep)
    todo += [c.key for c in state.candidates.values() if c.reference]
    while todo:
        key = todo.pop(0)
        if key in state.candidates and key not in wanted:
            wanted[key] = state.candidates[key]
            todo += state.candidates[key].parents
    return list(wanted.values())
