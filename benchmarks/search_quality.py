"""Does the search discover? Best program so far by programs screened, for every strategy, over seeds.

    python -m benchmarks.search_quality --strategies portfolio,best_of_n,random --seeds 10 --programs 1000

The task: the most attention mass beyond the pages kept by rule, of what hindsight would add (`ScreenPoint.beyond`), or
with `--by output` the least error of the attention output (1 - `ScreenPoint.output_error`), at a tenth of the pages,
page size 16, one first and two last pages kept, page states at most a tenth of the KV bytes, no calibrated values. The
proposer is the grammar; strategies see what a campaign's screen tells them. Who reads more pages than the budget allows
a kv head, as query heads that select apart do, is not kept. A program is screened in `--layers` layers;
the best of each run is scored again in eight, on the same recording and on `--other` recordings (other prompts, other
models) that no strategy saw.

A fuller run, as in `benchmarks/results/search_quality.md`, on many cores:

    python -m benchmarks.search_quality --strategies evolve,portfolio,best_of_n,random --layers 8 \\
        --programs 1000,3000 --processes 12 --seconds 900 --other-prompts 1 --other-models retrieval-gqa retrieval-mla

Each (strategy, seed) computes in one thread. All go on to the first of `--programs` seed by seed, then to the next,
until `--seconds` are over: whole sets of seeds come first. What was reached is in `--out` at once, in `runs.jsonl`, and
what was measured of every program in `measured/`: started again, a run that was cut drafts its programs once more and
screens none twice. What is left out is said.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import shutil
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.base import Parent, ProposalRequest
from agents.errors import ProposerError
from agents.grammar.proposer import GrammarProposer
from search.campaign.archive import Verdict
from search.campaign.cells import cell_of
from search.campaign.fitting import fits, room
from search.campaign.strategies.base import Ask, Strategy, Tell
from search.campaign.strategies.registry import STRATEGIES
from search.config import CampaignConfig
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.cost import kv_row_bytes, state_bytes_per_token
from vortex_core.ir.flow import Flow
from vortex_core.specs import load_model

if TYPE_CHECKING:
    from evaluators.screen import Screener, ScreenPoint

BUDGET = "0.1 * length"
KNOBS: dict[str, Any] = {
    "budget": BUDGET, "page_size": 16, "keep_first": 1, "keep_last": 2, "dense_layers": (), "reuse_steps": 1,
    "reuse_layers": 1,
}  # fmt: skip
MOST_STATE = 0.10
MARKS = (50, 100, 300, 1000, 3000)
ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""For processes of one thread each: what a surrogate solves would take every core in all of them."""
BEST = 24
"""Programs whose descriptions drafts learn from."""
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
    """What one strategy did with one seed, so far."""

    strategy: str
    seed: int
    best: list[float] = field(default_factory=list)  # after each program
    spent: list[float] = field(default_factory=list)  # seconds, likewise
    drafted: float = 0.0
    screened: float = 0.0
    source: str = ""
    again: dict[str, dict[str, float]] = field(default_factory=dict)  # by recording, the best at every stop
    parts: dict[str, float] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)  # the best as JSON, as many as the job keeps


def state_share(flow: Flow, geometry: Geometry) -> float:
    """Bytes of page states over bytes of keys and values."""
    return state_bytes_per_token(flow.program, flow.knobs, geometry) / kv_row_bytes(geometry, 2.0)


class Measured:
    """What was measured in one run, by program, in a file of JSON lines: the first says of what task.

    Args:
        path: of the file, made where it is missing.
        task: whatever else what was measured depends on.

    Raises:
        ValueError: the file speaks of another task.
    """

    def __init__(self, path: Path, task: dict[str, Any]) -> None:
        self.path = path
        self._known: dict[str, tuple[float, float, float] | None] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(json.dumps(task) + "\n", encoding="utf-8")
        first, *rest = path.read_text(encoding="utf-8").split("\n")
        if first != json.dumps(task):
            raise ValueError(f"{path} was measured by {first}: give another --out")
        for line in rest[:-1]:  # the last is empty, or was cut
            key, found = json.loads(line)
            self._known[key] = None if found is None else tuple(found)
        whole = path.with_suffix(".new")
        whole.write_text("\n".join([first, *rest[:-1]]) + "\n", encoding="utf-8")
        whole.replace(path)

    def of(self, flow: Flow, screener: Screener, by: str) -> tuple[float, float, float] | None:
        """What a program is ranked by, its standard error, and the share of pages read; None where it does not fit."""
        if flow.key not in self._known:
            found = None
            with suppress(VortexError):
                point = screener.score(flow, own=False).points[0]
                error = point.beyond_se if by == "beyond" else point.output_se
                found = value_of(point, by), error or 0.0, point.density
            self._known[flow.key] = found
            with self.path.open("a", encoding="utf-8") as log:
                log.write(json.dumps([flow.key, found]) + "\n")
        return self._known[flow.key]


class Search:
    """One strategy with one seed.

    Args:
        job: see `main`.
        screener: of the recording that the strategy sees.
    """

    def __init__(self, job: dict[str, Any], screener: Screener) -> None:
        self.job, self.screener, self.geometry = job, screener, screener.recording.geometry
        task = {name: job[name] for name in ("recording", "layers", "by", "strategy", "seed")}
        self.known = Measured(
            Path(job["measured"]), {**task, "knobs": KNOBS, "recording": Path(task["recording"]).name}
        )
        self.run = Run(job["strategy"], job["seed"])
        self.blind = job["strategy"].endswith(BLIND)
        name = job["strategy"].removesuffix(BLIND)
        self.learns = name not in CONTROLS  # a control's drafts know nothing of those before
        self.strategy: Strategy = STRATEGIES.get(name)(job["seed"], **PREFER.get(name, {}))
        self.proposer, self.model = GrammarProposer(), load_model(job["model"]).model_dump(mode="json")
        self.flows: dict[str, Flow] = {}
        self.sources: dict[str, str] = {}
        self.top: list[tuple[float, str]] = []
        self.measured: list[tuple[str, float]] = []
        self.number = 0
        self.allowed = screener.hindsight(_library("block_topk"))[0].density
        for library in map(_library, LIBRARY):
            found = self._measured(None, library)
            assert found is not None
            self._keep(library, "", found)

    def go(self, programs: int, ends: float) -> None:
        """Screen until there are so many programs, or the clock says `ends`."""
        began, before = time.time(), self.run.spent[-1] if self.run.spent else 0.0
        while len(self.run.best) < programs and time.time() < ends:
            if self._step():
                self.run.best.append(round(self.top[0][0], 6) if self.top else 0.0)
                self.run.spent.append(round(before + time.time() - began, 3))

    def _step(self) -> bool:
        """One ask; whether it led to a program that was screened."""
        number, self.number = self.number, self.number + 1
        ask = self.strategy.ask(number)
        more: dict[str, Any] = {"parents": ask.parents, "point": ask.point, "by": ask.by}
        self.strategy.tell(Tell(number, "asked", **more))
        began = time.perf_counter()
        try:
            proposal = asyncio.run(self.proposer.propose(self._request(ask)))
        except ProposerError:
            self.strategy.tell(Tell(number, "rejected", **more))
            return False
        finally:
            self.run.drafted += time.perf_counter() - began
        assert proposal.flow is not None
        flow, began = proposal.flow, time.perf_counter()
        found = self._measured(number, flow, **more)
        self.run.screened += time.perf_counter() - began
        if found is None:
            self.strategy.tell(Tell(number, "stopped", flow.key, flow.ir_hash, **more))
            return False
        self._keep(flow, proposal.source, found)
        assert found.accuracy is not None
        if found.verdict is Verdict.PROVEN:
            self.measured.append((flow.doc, found.accuracy))
            best = sorted([*self.top, (found.accuracy, flow.key)], reverse=True)
            self.top = best[: max(BEST, self.job["keep"])]
        return True

    def _request(self, ask: Ask) -> ProposalRequest:
        return ProposalRequest(
            ask.kind, ask.seed, parents=tuple(Parent(self.flows[k], self.sources[k]) for k in ask.parents),
            model=self.model, tried=self.flows.keys(), point=ask.point, knobs=KNOBS, fits=fits(TASK, self.geometry),
            best=tuple(self.flows[k].doc for _, k in self.top[:BEST]) if self.learns else (),
            measured=self.measured if self.learns and not self.blind else (), room=room(TASK, self.geometry),
        )  # fmt: skip

    def _measured(self, number: int | None, flow: Flow, **more: Any) -> Tell | None:
        found = self.known.of(flow, self.screener, self.job["by"])
        if found is None:
            return None
        value, error, density = found
        kept = state_share(flow, self.geometry) <= MOST_STATE and density <= 1.001 * self.allowed
        return Tell(
            number, "scored", flow.key, flow.ir_hash, value, 1.0, Verdict.PROVEN if kept else Verdict.FAILED,
            low=value - 1.96 * error, high=value + 1.96 * error, cell=cell_of(flow, self.geometry),
            size=len(flow.program.index.nodes), **more,
        )  # fmt: skip

    def _keep(self, flow: Flow, source: str, found: Tell) -> None:
        self.flows[flow.key], self.sources[flow.key] = flow, source
        self.strategy.tell(found)

    def stop(self) -> Run:
        """What is to be known of it here: the best again, on every recording."""
        if self.top:
            best = self.flows[self.top[0][1]]
            self.run.source = self.sources[best.key]
            self.run.again[str(len(self.run.best))] = {
                Path(path).stem: _again(best, path, self.job["device"], self.job["by"])
                for path in [self.job["recording"], *self.job["other"]]
            }
            self.run.kept = [self.flows[key].to_json() for _, key in self.top[: self.job["keep"]]]
        self.run.parts = dict(getattr(self.strategy, "shares", {}))
        return self.run


_under_way: dict[str, Search] = {}
"""Of this process, between two of their stops, by the file of what they measured."""


def search(job: dict[str, Any]) -> Run | None:
    """Go on with one strategy and one seed, to the job's programs or the end of its time; None where that is over."""
    import torch

    if time.time() >= job["ends"]:
        return None
    torch.set_num_threads(1)
    who = job["measured"]
    if who not in _under_way:
        _under_way[who] = Search(job, _screener(job["recording"], job["device"], job["layers"]))
    found = _under_way[who]
    found.go(job["programs"], job["ends"])
    return found.stop()


@lru_cache(maxsize=8)
def _screener(path: str, device: str, layers: int) -> Screener:
    """What a process screens with; dense attention is computed once for all of its runs."""
    from evaluators.screen import AttentionRecording, Screener

    recording = AttentionRecording.load(Path(path)).to(device)
    return Screener(recording, budgets=(BUDGET,), layers=layers)


def in_turn(jobs: list[dict[str, Any]], processes: int) -> Iterator[Run]:
    """Runs as they stop. The jobs of one run are one process's, one after another."""
    fresh = multiprocessing.get_context("spawn")  # a fork of a process that computed may hang
    os.environ.update(ALONE)
    pools = [ProcessPoolExecutor(1, mp_context=fresh) for _ in range(processes)]
    whose: dict[tuple[str, int], ProcessPoolExecutor] = {}
    try:
        under_way = []
        for job in jobs:
            pool = whose.setdefault((job["strategy"], job["seed"]), pools[len(whose) % processes])
            under_way.append(pool.submit(search, job))
        for done in as_completed(under_way):
            if (run := done.result()) is not None:
                yield run
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)


def _library(name: str) -> Flow:
    from vortex_core import library

    return library.load(name).flow.with_knobs(**KNOBS)


def value_of(point: ScreenPoint, by: str) -> float:
    """What programs are ranked by: mass beyond kept pages, or how much of the attention output stands."""
    return point.beyond if by == "beyond" else 1.0 - point.output_error


def _again(flow: Flow, path: str, device: str = "cpu", by: str = "beyond") -> float:
    """A program in eight layers of a recording."""
    return value_of(_screener(path, device, 8).score(flow, own=False).points[0], by)


def _hindsight(path: str, by: str) -> float:
    """The pages of most mass, in eight layers: 1 by mass, and by the output what programs can hope for."""
    return value_of(_screener(path, "cpu", 8).hindsight(_library("block_topk"))[0], by)


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
    again: dict[tuple[str, int], list[dict[str, float]]] = {}
    for r in runs:
        for stop, values in r.again.items():
            again.setdefault((r.strategy, int(stop)), []).append(values)
    stems = list(dict.fromkeys(stem for values in again.values() for stem in values[0]))
    lines += ["", "Each run's best again, in eight layers, by programs; the library beside it:", ""]
    lines += ["| | runs | " + " | ".join(stems) + " |", "|---" * (len(stems) + 2) + "|"]
    for (name, stop), values in sorted(again.items(), key=lambda a: (names.index(a[0][0]), a[0][1])):
        cells = [quartiles([v[s] for v in values]) for s in stems]
        lines.append(f"| {name}, {stop:,} | {len(values)} | " + " | ".join(cells) + " |")
    lines += [
        f"| {n} | | " + " | ".join(f"{v.get(s, float('nan')):.3f}" for s in stems) + " |"
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
    parser.add_argument("--programs", default="1000", help="where all stop and are looked at, e.g. 1000,3000")
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
    ends = time.time() + args.seconds
    jobs = [
        {
            "strategy": s, "seed": seed, "recording": recording, "other": others, "model": args.model,
            "programs": int(programs), "layers": args.layers, "ends": ends, "device": args.device, "by": args.by,
            "keep": args.keep, "measured": str(out / "measured" / f"{s}-{seed}.jsonl"),
        }
        for programs in args.programs.split(",")
        for seed in range(args.first_seed, args.first_seed + args.seeds)
        for s in args.strategies.split(",")
    ]  # fmt: skip
    runs: dict[tuple[str, int], Run] = {}
    with (out / "runs.jsonl").open("a") as log:
        for run in in_turn(jobs, args.processes):
            runs[run.strategy, run.seed] = run
            log.write(json.dumps(run.__dict__) + "\n")
            log.flush()
            best = run.best[-1] if run.best else 0.0
            print(f"{run.strategy} {run.seed}: {len(run.best)} programs, {best:.3f}", flush=True)
    library = {
        n: {Path(p).stem: _again(_library(n), p, by=args.by) for p in [recording, *others]} for n in LIBRARY
    }
    library["hindsight"] = {Path(p).stem: _hindsight(p, args.by) for p in [recording, *others]}
    order = {name: i for i, name in enumerate(args.strategies.split(","))}
    text = table([runs[k] for k in sorted(runs, key=lambda k: (order[k[0]], k[1]))], library)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def record(model: str, seed: int, path: Path) -> str:
    """A recording of a seed's prompts, at `path` and a suffix: by a model's own plan, where it has one."""
    from evaluators.plan import EvaluationPlan, load_plan
    from evaluators.worker import EvaluationWorker

    path = path.with_name(f"{path.name}.safetensors")
    if path.exists():
        return str(path)
    asked = load_plan(PLANS.get(model, "screened")).model_dump(mode="json")
    if model in PLANS:
        asked |= {"screen": LOOK_UPS}
    else:  # no more is read than is recorded: on two cores all prompts of a model of 1.5 billion weights take long
        for task in asked["accuracy"]["tasks"]:
            task["items"] = asked["screen"]["retrieval_items"]
        asked["perplexity"]["items"] = asked["screen"]["passages"]
    plan = EvaluationPlan.model_validate(asked)
    made = EvaluationWorker(model, plan, device="cpu").screen_file(seed)
    assert made is not None, "the prompt store keeps nothing"
    shutil.copyfile(made, path)
    return str(path)


if __name__ == "__main__":
    main()
