"""Iterations a second of the search loop itself, ours beside OpenEvolve's, with equal stubs for model and evaluator.

    pip install openevolve
    python -m benchmarks.loop_speed --candidates 10000 --openevolve 1000

The stub model answers at once with a program that is one random number; the stub evaluator reads it. What is left is
the loop: choosing parents, making requests, recording every step on disk, scoring, ranking. Ours runs one process and
three stages a candidate, finals included; OpenEvolve 0.4 runs its own defaults (five islands, MAP-Elites, prompts
logged, checkpoints) in `--workers` processes, with whole programs asked for instead of diffs. Both write to `--out`.
CPU time is of all processes,
so that other work on the machine counts less. Modules are loaded before the clock starts, on both sides (its worker
processes are forks). Numbers of OpenEvolve are left out where it is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import random
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.base import Proposal, ProposalRequest, Proposer, Usage
from evaluators.results import Metric, StageResult
from search.campaign.campaign import Campaign
from search.config import CampaignConfig
from search.log import events as ev
from search.log.run import open_run
from search.simulation import SimulatedExecutor, simulated_flow, simulated_library
from vortex_core.ir.flow import Flow

_EVALUATOR = """\
import re


def evaluate(path):
    x = float(re.search(r"x = ([0-9.]+)", open(path).read()).group(1))
    return {"combined_score": 1 - 0.3 * x * x, "speed": 1 + 2 * x}
"""
_LATER = ("moocore", "evaluators.stats")
"""What a campaign loads when it first needs it."""
_PROGRAM = "# EVOLVE-BLOCK-START\nx = 0.5\n# EVOLVE-BLOCK-END\n"


class StubProposer(Proposer):
    """Answers at once with a new point."""

    name = "stub"
    needs_language = False

    async def propose(self, request: ProposalRequest) -> Proposal:
        """See `Proposer`."""
        x = random.Random(request.seed).random()
        return Proposal(json.dumps({"x": x, "broken": False}), f"x={x}", self.name, Usage(calls=1))


class StubModel:
    """The same for OpenEvolve."""

    def __init__(self, config: Any) -> None:
        self._random = random.Random()

    async def generate(self, prompt: str, **options: Any) -> str:
        """A program."""
        return f"```python\n# EVOLVE-BLOCK-START\nx = {self._random.random():.9f}\n# EVOLVE-BLOCK-END\n```"

    async def generate_with_context(self, system: str, messages: list[dict[str, str]], **options: Any) -> str:
        """A program."""
        return await self.generate("")


class StubExecutor(SimulatedExecutor):
    """Reads a program without tracing it: one program, under as many budgets as there are points."""

    def __init__(self) -> None:
        super().__init__(lanes=2)
        self._base = simulated_flow(0.5)

    async def trace(self, source: str) -> Flow:
        """See `Executor`."""
        x = json.loads(source)["x"]
        return replace(self._base, name=f"p{x}").with_knobs(budget=str(round(1e9 * x)))

    async def measure(self, stage: str, flow: Flow, seed: int) -> StageResult:
        """What a stage finds; see `SimulatedExecutor`."""
        x = int(str(flow.knobs.budget)) / 1e9
        if stage == "static":
            return StageResult(stage, True)
        if stage == "modelled":
            return StageResult(stage, True, {"modelled_speedup_h200": Metric(1 + 2 * x, how="modelled")})
        value = -0.3 * x * x
        found = {
            "accuracy": Metric(1 + value, n=40),
            "accuracy_delta": Metric(value, value - 0.05, value + 0.05, n=40),
        }
        return StageResult(stage, True, found, {"needle": [1.0] * 40}, {"worst_task": "needle"})


def ours(candidates: int, out: Path) -> dict[str, float]:
    """A campaign to its end; iterations are its proposals."""
    for name in _LATER:
        importlib.import_module(name)
    config = CampaignConfig.model_validate(
        {
            "references": ["dense", "quest", "block_topk"],
            "objective": {"gates": [{"metric": "accuracy_delta", "at_least": -0.5}], "margin": 0.1},
            "arms": [{"name": "evolve", "strategy": {"kind": "evolve"}}],
            "limits": {"candidates": 10 * candidates, "evaluations": candidates},
        }
    )
    with open_run("loop", readonly=False, root=out) as run:
        campaign = Campaign(
            run, config, StubExecutor(), {"evolve": StubProposer()}, seed=1, model={"name": "sim"},
            library=simulated_library,
        )  # fmt: skip
        began, cpu = time.perf_counter(), _cpu()
        started = ev.CampaignStarted("loop", {}, {}, {}, {})
        state = asyncio.run(campaign.run_to_end(started, ev.SessionStarted(1, {})))
        seconds, cpu = time.perf_counter() - began, _cpu() - cpu
    return {
        "iterations": len(state.proposals),
        "seconds": seconds,
        "a second": len(state.proposals) / seconds,
        "a second of CPU": len(state.proposals) / cpu,
        "MB on disk": _megabytes(out),
        "MB at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def openevolve(iterations: int, workers: int, out: Path) -> dict[str, float]:
    """Its own loop, by its own entry point."""
    from openevolve.api import run_evolution
    from openevolve.config import Config, LLMModelConfig

    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluator.py").write_text(_EVALUATOR, encoding="utf-8")
    (out / "program.py").write_text(_PROGRAM, encoding="utf-8")
    config = Config(diff_based_evolution=False, log_level="ERROR")
    config.llm.models = [LLMModelConfig(name="stub", api_key="none", init_client=StubModel)]
    config.evaluator.parallel_evaluations = workers
    began, cpu = time.perf_counter(), _cpu()
    run_evolution(
        str(out / "program.py"), str(out / "evaluator.py"), config, iterations=iterations,
        output_dir=str(out / "run"), cleanup=False,
    )  # fmt: skip
    seconds, cpu = time.perf_counter() - began, _cpu() - cpu
    return {
        "iterations": iterations,
        "seconds": seconds,
        "a second": iterations / seconds,
        "a second of CPU": iterations / cpu,
        "MB on disk": _megabytes(out),
    }


def _cpu() -> float:
    """Seconds of CPU of this process and of those it started and waited for."""
    return sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _megabytes(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--openevolve", type=int, default=1000, help="iterations; 0: not at all")
    parser.add_argument("--workers", type=int, default=2, help="processes of OpenEvolve")
    parser.add_argument("--out", type=Path, default=Path("runs/loop_speed"))
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    rows = {"vortex-search": ours(args.candidates, args.out / "ours")}
    if args.openevolve and importlib.util.find_spec("openevolve"):
        rows["OpenEvolve"] = openevolve(args.openevolve, args.workers, args.out / "openevolve")
    for name, row in rows.items():
        print(name + ": " + ", ".join(f"{key} {value:,.1f}" for key, value in row.items()), flush=True)
    if len(rows) == 2:
        for unit in ("a second", "a second of CPU"):
            print(f"ratio, {unit}: {rows['vortex-search'][unit] / rows['OpenEvolve'][unit]:.1f}")


if __name__ == "__main__":
    main()
