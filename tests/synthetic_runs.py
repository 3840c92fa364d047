"""Runs of any size written through the event log's own interface: what readers of runs are tested on.

python -m tests.synthetic_runs 10000 /tmp/runs/big
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluators.plan import load_plan
from evaluators.results import Failure, Metric, StageResult
from search.campaign.strategies.base import randomness
from search.config import CampaignConfig
from search.log import events as ev
from search.log.run import Run, open_run
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.flow.emit import emit
from vortex_core.ir.flow import Flow

CONFIG = CampaignConfig.model_validate(
    {
        "description": "A made-up campaign.",
        "references": ["dense", "quest", "block_topk"],
        "objective": {
            "accuracy": "accuracy_delta",
            "speed": "decode_speedup",
            "gates": [{"metric": "accuracy_delta", "at_least": -0.1}],
        },
        "arms": [
            {"name": "evolve", "strategy": {"kind": "evolve"}, "share": 3},
            {"name": "random", "strategy": {"kind": "random"}, "control": True},
        ],
        "limits": {"candidates": 100_000},
    }
)
PARENTS = ("quest", "block_topk", "nsa", "lserve", "sparq", "h2o", "twilight")
PLAN = load_plan("quick").model_dump(mode="json") | {"digest": "d"}
HOSTILE = "<img src=x onerror=alert(1)>|`=cmd()`\x1b[31m"
LAYERS, HEADS = 30, 9


def flow_of(number: int) -> Flow:
    """A library flow under a budget of its own, so that every number is another candidate."""
    traced = library.load(PARENTS[number % len(PARENTS)])
    return traced.with_knobs(budget=str(256 + number)).flow


def candidate_events(run: Run, number: int, keys: list[str], *, hostile: bool) -> Iterator[ev.Event]:
    """One ask with all that follows from it; the new candidate's key is added to `keys`."""
    rng = randomness(11, number)
    arm = "random" if number % 4 == 3 else "evolve"
    parents = tuple(rng.sample(keys, min(len(keys), 1 + (number % 5 == 0)))) if keys else ()
    kind = ("seed", "mutate", "crossover")[len(parents)]
    yield ev.Asked(number, arm, kind, parents, number, "grammar")
    if number % 11 == 7:
        error = VortexError("VF012", f"no dimension {HOSTILE if hostile else 'tok'}", "name one that it has")
        yield ev.Rejected(number, error.to_json(), 0.01)
        return
    flow = flow_of(number)
    name = HOSTILE if hostile and number % 9 == 2 else f"{flow.name}_{number}"
    source = emit(flow.program, flow.knobs, f"flow_{number}", flow.doc)
    idea = HOSTILE if hostile else f"budget {256 + number}, {flow.name} as it is"
    yield ev.Proposed(number, run.files.put(source, ".py"), idea, "grammar", 0.02, 500, 80, 0.002, 1)
    program = run.files.put_json(flow.program.to_json(locations=False))
    knobs = flow.knobs.to_json()
    yield ev.Admitted(flow.key, flow.ir_hash, name, flow.doc, run.files.put(source, ".py"), program, knobs,
                      number, False, 0.1)  # fmt: skip
    yield from results(flow.key, "search", 0, number)
    keys.append(flow.key)


def results(key: str, purpose: ev.Purpose, seed: int, number: int) -> Iterator[ev.Event]:
    """The stages of one candidate: made-up numbers of a fixed seed."""
    rng = randomness(seed + 5, number)
    if number % 13 == 5 and purpose == "search":
        failure = Failure.of(VortexError("VV104", "recall 0.31 is below 0.50", "keep more pages"))
        stopped = StageResult(
            "recall", False, {"recall": Metric(0.31, 0.2, 0.4)}, failure=failure, seconds=0.2
        )
        yield ev.StageFinished(key, purpose, "recall", seed, stopped.to_json(), "engine 0")
        yield ev.CandidateFinished(key, purpose, seed, False)
        return
    lost = rng.random() * 0.3
    items = {task: [float(rng.random() > lost) for _ in range(n)]
             for task, n in (("needle@2048", 30), ("multikey@4096", 20))}  # fmt: skip
    answers = [score for scores in items.values() for score in scores]
    share = sum(answers) / len(answers)
    tasks = {task: {"accuracy": sum(s) / len(s), "dense": 1.0, "n": len(s)} for task, s in items.items()}
    speed = 1 + 3 * lost + rng.random()
    by_layer = [round(1 - lost * rng.random(), 3) for _ in range(LAYERS)]
    by_head = ["".join(f"{int(255 * min(1, v * (0.8 + 0.2 * rng.random()))):02x}" for _ in range(HEADS))
               for v in by_layer]  # fmt: skip
    stages = (
        StageResult("recall", True, {"recall": Metric(sum(by_layer) / LAYERS, min(by_layer), max(by_layer))},
                    info={"recall_by_layer": by_layer, "recall_by_head": by_head}, seconds=0.2),
        StageResult("accuracy", True, {
            "accuracy": Metric(share, share - 0.1, min(1.0, share + 0.1), n=50),
            "accuracy_delta": Metric(share - 1, share - 1.1, share - 0.93, n=50)}, items,
            {"tasks": tasks, "worst_task": min(tasks, key=lambda t: tasks[t]["accuracy"]),
             "measured_on": "NVIDIA H999"}, seconds=1.5),
        StageResult("decode", True, {
            "decode_speedup": Metric(speed, speed * 0.97, speed * 1.03, unit="x", n=6),
            "density": Metric(0.1 + lost / 3),
            **{f"decode_speedup@{n}": Metric(speed * s, speed * s * 0.97, speed * s * 1.03, unit="x")
               for n, s in ((2048, 0.8), (4096, 1.2))}},
            info={"points": {str(n): {"batch": 8, "step_ms_p50": 3 / speed, "step_ms_p95": 4 / speed,
                                      "dense_ms_p50": 3.0, "roofline_share": 0.7, "density": 0.1}
                             for n in (2048, 4096)}}, seconds=2.0),
    )  # fmt: skip
    for result in stages:
        yield ev.StageFinished(key, purpose, result.stage, seed, result.to_json(), "engine 0")
    yield ev.CandidateFinished(key, purpose, seed, True)


def write_run(root: Path, name: str, candidates: int, *, hostile: bool = False, finish: bool = True) -> None:
    """Write `root/name` with so many asks."""
    keys: list[str] = []
    settings: dict[str, Any] = {"campaign": CONFIG.model_dump(mode="json"), "model": CONFIG.model, "seed": 0,
                                "proposers": {}}  # fmt: skip
    with open_run(name, readonly=False, root=root) as run:
        begin: list[ev.Event] = [
            ev.CampaignStarted(
                name, settings, PLAN, {"python": "3.11", "torch": "2"}, {"processor": "a CPU"}
            ),
            ev.SessionStarted(1, {"limits": CONFIG.limits.model_dump()}),
            ev.EnginesStarted(({"kind": "cuda", "name": "NVIDIA H999", "host": "here", "ranks": 1},)),
        ]
        for i, reference in enumerate(("dense", "quest", "block_topk")):
            traced = library.load(reference)
            program = run.files.put_json(traced.program.to_json(locations=False))
            source = run.files.put(library.source(reference), ".py")
            begin.append(ev.Admitted(traced.key, traced.ir_hash, traced.name, traced.doc, source, program,
                                     traced.knobs.to_json(), None, True, 0.01))  # fmt: skip
            begin += results(traced.key, "search", 0, 1000 + i)
            keys.append(traced.key)
        run.store.append(*begin)
        for start in range(0, candidates, 500):
            batch: list[ev.Event] = []
            for number in range(start, min(candidates, start + 500)):
                batch += candidate_events(run, number, keys, hostile=hostile)
            run.store.append(*batch)
        if finish:
            _finish(run, keys)


def _finish(run: Run, keys: list[str]) -> None:
    from search.campaign.archive import Archive
    from search.campaign.comparison import against_control, compare
    from search.log.run import read_state

    archive = Archive(read_state(run), CONFIG.objective)
    found, library_flow = archive.ranked(1), archive.best(reference=True)
    assert found is not None
    finalists = [found.candidate.key, *([library_flow.candidate.key] if library_flow else [])]
    run.store.append(ev.FinalistsChosen(tuple(finalists)))
    for i, key in enumerate(finalists):
        run.store.append(*results(key, "fresh", 1_000_000, 2000 + 3 * i))
    state = read_state(run)
    ours = state.candidates[finalists[0]]
    theirs = state.candidates[finalists[1]] if len(finalists) > 1 else None
    compared = compare(ours, theirs, CONFIG.objective, "fresh") if theirs else None
    summary = {
        "statement": compared.words if compared else f"{ours.label} {ours.name} won.",
        "against_library": compared.to_json() if compared else None,
        "control": against_control(state, CONFIG.objective, {"evolve"}, {"random"}),
        "verdict": "unclear",
    }
    run.store.append(ev.CampaignFinished("candidates", ours.key, summary))


if __name__ == "__main__":
    where = Path(sys.argv[2])
    write_run(where.parent, where.name, int(sys.argv[1]), hostile="--hostile" in sys.argv)
