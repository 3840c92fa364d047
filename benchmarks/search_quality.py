"""Does the search discover? Best program so far by programs screened, for every strategy, over seeds.

    python -m benchmarks.search_quality --strategies portfolio,best_of_n,random --seeds 10 --programs 1000

The task: the most attention mass beyond the pages kept by rule, of what hindsight would add (`ScreenPoint.beyond`), or
with `--by output` the least error of the attention output (1 - `ScreenPoint.output_error`), at a tenth of the pages,
page size 16, one first and two last pages kept, page states at most a tenth of the KV bytes, no calibrated values. The
proposer is the grammar; strategies see what a campaign's screen tells them. A program is screened in `--layers` layers;
the best of each run is scored again in eight, on the same recording and on `--other` recordings (other prompts, other
models) that no strategy saw.

A fuller run, as in `benchmarks/results/search_quality.md`, on 16 cores with a GPU:

    python -m benchmarks.search_quality --strategies evolve,portfolio,random,best_of_n --layers 8 --programs 1000 \\
        --processes 14 --seconds 420 --device cuda --other-prompts 1 --other-models retrieval-gqa retrieval-mla

Each (strategy, seed) is a process of its own, one thread, with an equal share of `--seconds`. What is left out is said.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.base import Parent, ProposalRequest
from agents.errors import ProposerError
from agents.grammar.proposer import GrammarProposer
from search.campaign.archive import Verdict
from search.campaign.cells import cell_of
from search.campaign.fitting import fits, room
from search.campaign.strategies.base import Strategy, Tell
from search.campaign.strategies.registry import STRATEGIES
from search.config import CampaignConfig
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.cost import kv_row_bytes, state_bytes_per_token
from vortex_core.ir.flow import Flow
from vortex_core.specs import load_model

if TYPE_CHECKING:
    from evaluators.screen import ScreenPoint

BUDGET = "0.1 * length"
KNOBS: dict[str, Any] = {
    "budget": BUDGET, "page_size": 16, "keep_first": 1, "keep_last": 2, "dense_layers": (), "reuse_steps": 1,
    "reuse_layers": 1,
}  # fmt: skip
MOST_STATE = 0.10
MARKS = (50, 100, 300, 1000, 3000)
LIBRARY = ("block_topk", "quest", "rocketkv", "lserve", "lserve_centroid", "infllm")
TASK = CampaignConfig.model_validate(
    {
        "arms": [{"name": "study", "strategy": {"kind": "random"}}],
        "objective": {"target": "sglang"},
        "screen": {"most_state": MOST_STATE},
        "knobs": KNOBS,
    }
)
PLANS = {"retrieval-gqa": "skills", "retrieval-mla": "retrieval"}
LOOK_UPS: dict[str, Any] = {"retrieval_items": 4, "passages": 0, "steps": 1, "at": 1}
"""What is recorded of models that know nothing but look-ups: the step that answers."""
BLIND = "-blind"
"""Suffix of a strategy whose proposer is not told what was measured: selection alone, without the surrogate."""
CONTROLS = ("random", "best_of_n")
PREFER: dict[str, dict[str, Any]] = {
    "evolve": {"start": 40},
    "best_of_n": {"prefer": "accuracy"},
    "refine": {"prefer": "accuracy", "patience": 20},
}


@dataclass
class Run:
    """What one strategy did with one seed."""

    strategy: str
    seed: int
    best: list[float] = field(default_factory=list)  # after each program
    drafted: float = 0.0
    screened: float = 0.0
    source: str = ""
    again: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)  # the best as JSON, as many as the job keeps


def state_share(flow: Flow, geometry: Geometry) -> float:
    """Bytes of page states over bytes of keys and values."""
    return state_bytes_per_token(flow.program, flow.knobs, geometry) / kv_row_bytes(geometry, 2.0)


def search(job: dict[str, Any]) -> Run:
    """One strategy, one seed, until its programs or its time are used up."""
    import torch

    from evaluators.screen import AttentionRecording, Screener

    torch.set_num_threads(1)
    ends, run = time.time() + job["seconds"], Run(job["strategy"], job["seed"])
    recording = AttentionRecording.load(Path(job["recording"])).to(job["device"])
    screener = Screener(recording, budgets=(BUDGET,), layers=job["layers"])
    geometry = recording.geometry
    name = run.strategy.removesuffix(BLIND)
    strategy: Strategy = STRATEGIES.get(name)(run.seed, **PREFER.get(name, {}))
    proposer, model = GrammarProposer(), load_model(job["model"]).model_dump(mode="json")
    flows: dict[str, Flow] = {}
    sources: dict[str, str] = {}
    told: dict[str, Tell] = {}
    top: list[tuple[float, str]] = []
    measured: list[tuple[str, float]] = []
    blind = job["strategy"].endswith(BLIND)
    learns = run.strategy not in CONTROLS  # a control's drafts know nothing of those before

    def measure(flow: Flow) -> tuple[float, float, Verdict]:
        point = screener.score(flow, own=False).points[0]
        kept = state_share(flow, geometry) <= MOST_STATE
        error = point.beyond_se if job["by"] == "beyond" else point.output_se
        return value_of(point, job["by"]), error or 0.0, Verdict.PROVEN if kept else Verdict.FAILED

    def tell(number: int | None, flow: Flow, **more: Any) -> Tell:
        value, error, verdict = measure(flow)
        return Tell(
            number, "scored", flow.key, flow.ir_hash, value, 1.0, verdict, low=value - 1.96 * error,
            high=value + 1.96 * error, cell=cell_of(flow, geometry), size=len(flow.program.index.nodes), **more,
        )  # fmt: skip

    for name in LIBRARY:
        flow = _library(name)
        flows[flow.key], sources[flow.key] = flow, ""
        told[flow.key] = tell(None, flow)
        strategy.tell(told[flow.key])
    number = 0
    while len(run.best) < job["programs"] and time.time() < ends:
        ask = strategy.ask(number)
        strategy.tell(Tell(number, "asked", parents=ask.parents, point=ask.point, by=ask.by))
        began = time.perf_counter()
        request = ProposalRequest(
            ask.kind, ask.seed, parents=tuple(Parent(flows[k], sources[k]) for k in ask.parents), model=model,
            tried=told.keys(), point=ask.point, knobs=KNOBS, fits=fits(TASK, geometry),
            best=tuple(flows[k].doc for _, k in top[:24]) if learns else (),
            measured=measured if learns and not blind else (), room=room(TASK, geometry),
        )  # fmt: skip
        more = {"parents": ask.parents, "point": ask.point, "by": ask.by}
        try:
            proposal = asyncio.run(proposer.propose(request))
            assert proposal.flow is not None
            flow = proposal.flow
            run.drafted += time.perf_counter() - began
            began = time.perf_counter()
            found = tell(number, flow, **more)
        except ProposerError:
            strategy.tell(Tell(number, "rejected", **more))
            number += 1
            continue
        except VortexError:  # it does not fit the model
            strategy.tell(Tell(number, "stopped", flow.key, flow.ir_hash, **more))
            number += 1
            continue
        run.screened += time.perf_counter() - began
        flows[flow.key], sources[flow.key], told[flow.key] = flow, proposal.source, found
        strategy.tell(found)
        number += 1
        assert found.accuracy is not None
        if found.verdict is Verdict.PROVEN:
            measured.append((flow.doc, found.accuracy))
            top = sorted([*top, (found.accuracy, flow.key)], reverse=True)[: max(24, job["keep"])]
        run.best.append(top[0][0] if top else 0.0)
    if top:
        best = flows[top[0][1]]
        run.source = sources[best.key]
        for path in [job["recording"], *job["other"]]:
            run.again[Path(path).stem] = _again(best, path, job["device"], job["by"])
        run.kept = [flows[key].to_json() for _, key in top[: job["keep"]]]
    run.parts = dict(getattr(strategy, "shares", {}))
    return run


def _library(name: str) -> Flow:
    from vortex_core import library

    return library.load(name).flow.with_knobs(**KNOBS)


def value_of(point: ScreenPoint, by: str) -> float:
    """What programs are ranked by: mass beyond kept pages, or how much of the attention output stands."""
    return point.beyond if by == "beyond" else 1.0 - point.output_error


def _again(flow: Flow, path: str, device: str = "cpu", by: str = "beyond") -> float:
    """A program in eight layers of a recording."""
    from evaluators.screen import AttentionRecording, Screener

    screener = Screener(AttentionRecording.load(Path(path)).to(device), budgets=(BUDGET,))
    return value_of(screener.score(flow, own=False).points[0], by)


def quartiles(values: list[float]) -> str:
    """Median and the middle half."""
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "-"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def _ahead(runs: list[Run], name: str, mark: int) -> str:
    """By how much a strategy's best so far is ahead of the control's with the same seed."""
    at = {(r.strategy, r.seed): r.best[mark - 1] for r in runs if len(r.best) >= mark}
    found = [at[name, s] - at[CONTROLS[0], s] for n, s in at if n == name and (CONTROLS[0], s) in at]
    if len(found) < 3:
        return "-"
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(found, k=len(found))) for _ in range(4000))
    return f"{statistics.median(found):+.4f} [{medians[100]:+.4f}, {medians[-101]:+.4f}] ({len(found)})"


def table(runs: list[Run], library: dict[str, dict[str, float]]) -> str:
    """The results as Markdown."""
    names = list(dict.fromkeys(r.strategy for r in runs))
    lines = [
        "| strategy | runs | " + " | ".join(f"{m:,}" for m in MARKS) + " | s a program |",
        "|---" * (len(MARKS) + 3) + "|",
    ]
    for name in names:
        mine = [r for r in runs if r.strategy == name]
        cells = []
        for mark in MARKS:
            reached = [r.best[mark - 1] for r in mine if len(r.best) >= mark]
            cells.append(
                quartiles(reached) + ("" if len(reached) == len(mine) else f" [{len(reached)} runs]")
            )
        seconds = sum(r.drafted + r.screened for r in mine) / max(1, sum(len(r.best) for r in mine))
        lines.append(f"| {name} | {len(mine)} | " + " | ".join(cells) + f" | {seconds:.2f} |")
    if CONTROLS[0] in names:
        lines += [
            "",
            f"What a strategy is ahead of `{CONTROLS[0]}`, median over seeds, 95% interval by resampling them:",
            "",
        ]
        lines += [
            "| strategy | " + " | ".join(f"{m:,}" for m in MARKS) + " |",
            "|---" * (len(MARKS) + 1) + "|",
        ]
        for name in names:
            if name != CONTROLS[0]:
                lines.append(f"| {name} | " + " | ".join(_ahead(runs, name, mark) for mark in MARKS) + " |")
    stems = list(dict.fromkeys(stem for r in runs for stem in r.again))
    lines += ["", "Each run's best again, in eight layers; the library beside it:", ""]
    lines += ["| | " + " | ".join(stems) + " |", "|---" * (len(stems) + 1) + "|"]
    for name in names:
        found = [[r.again[s] for r in runs if r.strategy == name and s in r.again] for s in stems]
        lines.append(f"| {name} | " + " | ".join(quartiles(f) for f in found) + " |")
    lines += [
        f"| {n} | " + " | ".join(f"{v.get(s, float('nan')):.3f}" for s in stems) + " |"
        for n, v in library.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--recording", default=None, help="file; by default the model's, recorded where missing"
    )
    parser.add_argument("--other", nargs="*", default=[], help="recordings that no strategy sees")
    parser.add_argument(
        "--other-prompts", type=int, default=0, help="further recordings of the model, made here"
    )
    parser.add_argument("--other-models", nargs="*", default=[], help="recorded here, seen by no strategy")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--weights", help="the model's file or folder, where it is not in the cache")
    parser.add_argument("--device", default="cpu", help="where programs are screened")
    parser.add_argument("--strategies", default="portfolio,evolve,refine,tune,best_of_n,random")
    parser.add_argument(
        "--by", choices=("beyond", "output"), default="beyond", help="what programs are ranked by"
    )
    parser.add_argument(
        "--keep", type=int, default=0, help="of each run's best, how many `runs.jsonl` holds whole"
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--out", default="runs/search_quality")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    model = args.weights or args.model
    recording = args.recording or record(model, 0, out / "recording")
    others = [
        *args.other,
        *(record(model, seed, out / f"prompts-{seed}") for seed in range(1, 1 + args.other_prompts)),
        *(record(other, 0, out / Path(other).name) for other in args.other_models),
    ]
    jobs = [
        {
            "strategy": s, "seed": seed, "recording": recording, "other": others, "model": args.model,
            "programs": args.programs, "layers": args.layers, "seconds": 0.0, "device": args.device,
            "by": args.by, "keep": args.keep,
        }
        for seed in range(args.first_seed, args.first_seed + args.seeds)
        for s in args.strategies.split(",")
    ]  # fmt: skip
    for job in jobs:
        job["seconds"] = args.seconds * args.processes / len(jobs)
    runs: list[Run] = []
    fresh = multiprocessing.get_context("spawn")  # a fork of a process that computed may hang
    with ProcessPoolExecutor(args.processes, mp_context=fresh) as pool, (out / "runs.jsonl").open("a") as log:
        for run in pool.map(search, jobs):
            runs.append(run)
            log.write(json.dumps(run.__dict__) + "\n")
            log.flush()
            best = run.best[-1] if run.best else 0.0
            print(
                f"{run.strategy} {run.seed}: {len(run.best)} programs, {best:.3f}, again {run.again}",
                flush=True,
            )
    library = {
        n: {Path(p).stem: _again(_library(n), p, by=args.by) for p in [recording, *others]} for n in LIBRARY
    }
    text = table(runs, library)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def record(model: str, seed: int, path: Path) -> str:
    """A recording of a seed's prompts, at `path` and a suffix: by a model's own plan, where it has one."""
    from evaluators.plan import EvaluationPlan, load_plan
    from evaluators.worker import EvaluationWorker

    path = path.with_name(f"{path.name}.safetensors")
    if path.exists():
        return str(path)
    plan = load_plan(PLANS.get(model, "screened"))
    if model in PLANS:
        plan = EvaluationPlan.model_validate(plan.model_dump(mode="json") | {"screen": LOOK_UPS})
    made = EvaluationWorker(model, plan, device="cpu").screen_file(seed)
    assert made is not None, "the prompt store keeps nothing"
    shutil.copyfile(made, path)
    return str(path)


if __name__ == "__main__":
    main()
