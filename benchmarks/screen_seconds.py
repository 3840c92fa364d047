"""Where the core-seconds of a screened program go: python -m benchmarks.screen_seconds --recording FILE

Drawn programs and children of measured ones, at the knobs and bounds of the campaign `default`, take the steps that
driver and workers take with them. Computing time of one thread, milliseconds a program; no cluster, so that neither
waiting nor Ray is in it. A recording is made by `benchmarks.search_quality`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from agents.base import Parent, ProposalRequest
from agents.grammar.proposer import GrammarProposer
from benchmarks.screen_choice import KNOBS
from benchmarks.search_quality import TASK
from evaluators.plan import EvaluationPlan, load_plan
from evaluators.screen import AttentionRecording, Screener
from evaluators.worker import run_cpu_stage
from search.campaign.fitting import fits, room
from search.executors.screening import BUDGET
from search.executors.workers import received, sent
from vortex_core.ir.flow import Flow
from vortex_core.ir.verify import verify
from vortex_core.specs import load_model

T = TypeVar("T")
MODEL = "smollm2-135m"


def main() -> None:
    """Print a Markdown table."""
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recording", type=Path, required=True, help="of SmolLM2-135M")
    parser.add_argument("--programs", type=int, default=60, help="drawn, and as many children")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recording, plan = AttentionRecording.load(args.recording), load_plan("screened")
    few, many = (
        Screener(recording, budgets=(BUDGET,), layers=3),
        Screener(recording, budgets=(BUDGET,), layers=8),
    )
    proposer, model = GrammarProposer(), load_model(MODEL).model_dump(mode="json")
    asked: dict[str, Any] = {
        "model": model, "knobs": KNOBS, "fits": fits(TASK, recording.geometry), "room": room(TASK, recording.geometry),
    }  # fmt: skip
    taken: dict[str, list[float]] = defaultdict(list)

    def timed(what: str, work: Callable[[], T]) -> T:
        began = time.process_time()
        found = work()
        taken[what].append(1000 * (time.process_time() - began))
        return found

    def drafted(what: str, request: ProposalRequest) -> Flow:
        flow = timed(what, lambda: asyncio.run(proposer.propose(request))).flow
        assert flow is not None
        return flow

    def screened(flow: Flow) -> float:
        timed("driver: verified, as JSON", lambda: (verify(flow.program), sent(flow)))
        data = sent(flow)
        flow = timed("worker: read and verified", lambda: received(data))
        for stage in ("static", "modelled"):
            timed(f"worker: {stage}", lambda stage=stage: run_cpu_stage(stage, flow, MODEL, plan, 0, None))
        found = timed("worker: scored in three layers", lambda: few.score(flow)).own
        assert found is not None
        return found.beyond

    tried: dict[str, None] = {}
    measured: list[tuple[str, float]] = []
    flows: list[Flow] = []
    for n in range(args.programs):
        flow = drafted("driver: drawn from nothing", ProposalRequest("seed", n, tried=tried.keys(), **asked))
        value = screened(flow)
        if n == 0:
            taken.clear()  # whatever is made once
            continue
        tried[flow.key] = None
        flows.append(flow)
        measured.append((flow.doc, value))
    best = sorted(zip(measured, flows, strict=True), key=lambda pair: -pair[0][1])[:8]
    for n in range(args.programs):
        parent = best[n % len(best)][1]
        request = ProposalRequest(
            "mutate", n, parents=(Parent(parent, ""),), tried=tried.keys(), measured=tuple(measured), **asked
        )
        flow = drafted("driver: a child of 128 drafts", request)
        measured.append((flow.doc, screened(flow)))
        tried[flow.key] = None
    for _, flow in best:
        timed("worker: scored in eight layers, who goes on", lambda flow=flow: many.score(flow))
    raw = plan.model_dump(mode="json")
    for _ in range(5):
        timed("(worker: a plan read, once a process)", lambda: EvaluationPlan.model_validate(raw))
    print("| what | median, ms | mean, ms |\n|---|---|---|")
    for what, found in taken.items():
        print(f"| {what} | {statistics.median(found):.1f} | {statistics.mean(found):.1f} |")


if __name__ == "__main__":
    main()
