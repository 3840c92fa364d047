"""Whatever an agent writes: sparse steps of programs that nobody tuned the compiler for.

    python -m benchmarks.programs --seed 1 --out benchmarks/results

Every library flow that needs no learned values, programs grown and varied by the grammar from a seed, and the programs
in `benchmarks/found` (written by a language model on recorded attention) run one layer's decode step: is it what the
fp64 oracle selects, how long does it take to compile, how long is a step over its floor (the bytes it must move over
the measured copy bandwidth), and where does the time go. `--dry` runs all but the timing under Triton's interpreter.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from agents.base import Parent, ProposalRequest
from agents.grammar.proposer import GrammarProposer
from benchmarks import needs
from benchmarks.kernels_timing import Report, copy_bandwidth, count_launches, null_chain_time
from vortex_core import library
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.compiler.oracle import OracleFlow
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.compiler.triton.generate import generate
from vortex_core.compiler.triton.launch_config import Configs, FlowConfig, ScoreConfig, default_configs
from vortex_core.compiler.triton.tuning.timing import graph_time
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.flow import Flow
from vortex_core.ir.graph import Graph, GraphBuilder
from vortex_core.ir.launches import step_cost
from vortex_core.kernels.decode.plan import AttentionPlan
from vortex_core.page_list import PageList, one_list_a_sequence
from vortex_core.sandbox.jail import run

FOUND = Path(__file__).parent / "found"
LAYERS = 3  # copies of KV and states, so that a layer's bytes have left the L2 when it runs again
SCALE = 128**-0.5
# Largest difference of a chosen and a left page's score, in standard deviations of a row: what fp32 rounding explains.
GAP = 1e-3


@dataclass(frozen=True)
class Shape:
    """What a step is run on. `pool`: pages of the cache, each read by many sequences where they are few."""

    batch: int
    length: int
    geometry: Geometry
    page: int
    budget: int
    device: str
    pool: int

    @property
    def pages(self) -> int:
        """Pages of a sequence."""
        return self.length // self.page


def grammar_flows(seed: int, count: int) -> Iterator[tuple[str, Flow]]:
    """Programs of the grammar: half grown from nothing, half variations of library flows."""
    proposer, rng = GrammarProposer(), random.Random(seed)
    parents = [n for n in library.names() if n not in ("dense", "streaming")]
    for n in range(count):
        one = rng.getrandbits(32)
        if n % 2 == 0:
            request = ProposalRequest("seed", one)
        else:
            parent = library.load(rng.choice(parents))
            request = ProposalRequest("mutate", one, parents=(Parent(parent.flow, parent.source, {}),))
        draft = proposer.draft(request)
        yield f"grammar{seed}_{n}", Flow(f"grammar{seed}_{n}", draft.program, draft.knobs, draft.idea)


def programs(seed: int, count: int) -> list[tuple[str, str, Flow]]:
    """(kind, name, flow) of everything that runs."""
    found: list[tuple[str, str, Flow]] = []
    found += [("library", n, library.load(n).flow) for n in library.names() if n != "dense"]
    for path in sorted(FOUND.glob("*.py")):
        found.append(("found", path.stem, replace(run(path.read_text(), path.name).flow, name=path.stem)))
    found += [("grammar", n, f) for n, f in grammar_flows(seed, count)]
    return found


def parts(flow: Flow) -> Iterator[tuple[str, Flow]]:
    """Programs that score pages by one value of a program each, in the order in which it computes them."""
    program = flow.program.canonical()
    nodes = program.index.nodes
    for i, node in enumerate(nodes):
        names = set(node.type.names)
        if (
            "page" not in names
            or node.type.kind != "float"
            or node.op == "load"
            or names - {"page", "head", "row"}
        ):
            continue
        builder = GraphBuilder("index")
        builder.nodes = list(nodes[: i + 1])
        at = i
        if "row" in names:  # all rows count, not the largest alone
            at = builder.emit("sum", (builder.emit("mul", (at, at)),), dims=("row",))
        if "head" in names:
            at = builder.emit("sum", (at,), dims=("head",))
        result = builder.emit("topk", (at,))
        index = Graph(tuple(builder.nodes), (), result)
        yield f"{flow.name}:{i} {node.op}", replace(flow, program=replace(program, index=index))


class Step:
    """One program on one shape."""

    def __init__(
        self,
        flow: Flow,
        shape: Shape,
        kv: list[tuple[torch.Tensor, torch.Tensor]],
        configs: Configs = default_configs,
    ) -> None:
        self.shape, self.kv = shape, kv
        g, device = shape.geometry, torch.device(shape.device)
        # One selection a step, of one budget: reuse and dense layers are the engine's, and cost nothing here.
        self.knobs = replace(flow.knobs, page_size=shape.page, budget=str(shape.budget))
        self.program = flow.program.canonical()
        self.flow = TritonFlow(self.program, self.knobs, g, configs)
        self.q = torch.randn(shape.batch, g.q_heads, g.head_dim, device=device).to(kv[0][0].dtype)
        order = torch.arange(shape.batch * shape.pages, device=device) % shape.pool
        self.table = order[torch.randperm(len(order), device=device)].view(shape.batch, -1).to(torch.int32)
        lengths = torch.full((shape.batch,), shape.length, dtype=torch.int32, device=device)
        budgets = torch.full_like(lengths, self.knobs.pages(shape.length))
        mass = None
        if self.program.reads_dense_mass:
            mass = torch.rand(shape.batch, g.q_heads, shape.pages, device=device)
        self.view = BatchView(self.table, lengths, budgets, shape.length, dense_mass=mass)
        self.states = [self.flow.new_states(shape.pool, device, shape.batch) for _ in kv]
        every = torch.arange(shape.pool, device=device, dtype=torch.int32)
        for (k, v), states in zip(kv, self.states, strict=True):
            self.flow.update(states, LayerKV(k.permute(2, 0, 1, 3), v.permute(2, 0, 1, 3)), every, 0)
        self.work = self.flow.workspace(shape.batch, shape.pages, device)
        self.out = torch.empty_like(self.q)
        self.plan = AttentionPlan.allocate(
            g,
            shape.page,
            self.q.dtype,
            shape.batch,
            device,
            per_query_head=self.program.per_query_head,
            even=True,
        )

    def score(self, layer: int) -> None:
        """The scoring launches."""
        v = self.view
        self.flow.launch_scores(
            self.q, self.states[layer], self.table, v.lengths, v.budgets, self.work, layer, v.dense_mass
        )

    def select(self, layer: int) -> PageList:
        """Scores to page lists."""
        return self.flow.launch_selection(self.table, self.view.lengths, self.view.budgets, self.work)

    def run(self, layer: int) -> None:
        """One sparse layer."""
        self.score(layer)
        self.attend(layer, self.select(layer))

    def attend(self, layer: int, pages: PageList) -> None:
        """Attention over some lists."""
        k, v = self.kv[layer]
        self.plan.run(self.q, k, v, pages, SCALE, out=self.out)

    def check(self) -> dict[str, float]:
        """Scores and chosen pages of the last sequence's first kv head beside the oracle's."""
        shape, b = self.shape, self.shape.batch - 1
        ids = self.table[b].long()
        oracle = OracleFlow(self.program, self.knobs, replace(shape.geometry, kv_heads=1))
        states = oracle.new_states(shape.pages, torch.device("cpu"))
        for name, field in self.states[0].fields.items():
            at = torch.tensor([b], device=ids.device) if field.decl.of_request else ids
            states.fields[name].data = field.data[:1, at].cpu()
            states.fields[name].scale = None if field.scale is None else field.scale[:1, at].cpu()
        table = torch.arange(shape.pages)[None]
        lengths, budgets = self.view.lengths[b:].cpu().long(), self.view.budgets[b:].cpu().long()
        group = shape.geometry.group
        mass = self.view.dense_mass
        mass = None if mass is None else mass[b:, :group].cpu()
        view = BatchView(table, lengths, budgets, shape.length, dense_mass=mass)
        wanted = list(oracle.scores(self.q[b:, :group].cpu(), states, view, 0).values())
        self.score(0)
        lists = self.select(0)
        worst = gap = 0.0
        single = len(self.program.index.streams) == 1
        graph = self.flow.code.graph
        ranked = {j for n in graph.nodes for j in n.scores} | (
            {graph.residual.mass} if graph.residual else set()
        )
        refined = graph.refinement
        for i, want in zip(sorted(ranked), wanted, strict=True):
            fine = refined is not None and i == refined.fine  # computed for candidates alone
            heads = group if "head" in graph.nodes[i].type.names else 1
            rows = self.work.batch * shape.geometry.kv_heads * heads
            got = self.work.scores[refined.node if fine and refined else i].view(rows, -1)[
                b * shape.geometry.kv_heads * heads :
            ][:heads]
            want = want.reshape(-1, heads).T if want.dim() > 2 or heads > 1 else want.reshape(1, -1)
            got = got[:, : want.shape[1]].double().cpu()
            both = torch.isfinite(got) & torch.isfinite(want)
            spread = want[both].std().clamp_min(1e-30) if both.any() else torch.ones(())
            worst = max(worst, float(((got - want)[both].abs() / spread).max()) if both.any() else 0.0)
            node = self.program.index.nodes[self.program.index.streams[0]]
            if (
                not single
                or node.op not in ("topk", "refine")
                or (refined is not None and not fine)
                or (graph.residual is not None and i == graph.residual.mass)
                or node.attr.get("share")
                or node.attr.get("recall", 1.0) < 1
            ):
                continue
            for h in range(heads):
                count = int(lists.counts[b, h])
                chosen = torch.zeros(shape.pages, dtype=torch.bool)
                place = {int(p): n for n, p in enumerate(ids.tolist())}
                if len(place) < shape.pages:
                    continue  # pages that stand twice in a row say nothing about where
                chosen[[place[int(p)] for p in lists.page_ids[b, h, :count]]] = True
                kept = torch.zeros_like(chosen)
                kept[: self.knobs.keep_first] = True
                kept[shape.pages - self.knobs.keep_last :] = True
                others = ~chosen & ~kept
                if fine:
                    others &= got[h] > -torch.inf
                inside, outside = want[h][chosen & ~kept], want[h][others]
                if len(inside) and len(outside):
                    gap = max(gap, float((outside.max() - inside.min()) / want[h].std().clamp_min(1e-30)))
        return {"score_error": worst, "gap": max(0.0, gap)}


def tensors(shape: Shape, layers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of some layers."""
    g = shape.geometry
    size = (shape.pool, shape.page, g.kv_heads, g.head_dim)
    dtype = torch.float32 if shape.device == "cpu" else torch.bfloat16

    def one() -> torch.Tensor:
        return torch.randn(size, device=shape.device, dtype=torch.bfloat16).to(dtype)

    return [(one(), one()) for _ in range(layers)]


def dense_time(shape: Shape, kv: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Microseconds of our dense attention."""
    g, device = shape.geometry, torch.device(shape.device)
    plan = AttentionPlan.allocate(g, shape.page, torch.bfloat16, shape.batch, device)
    q = torch.randn(shape.batch, g.q_heads, g.head_dim, device=device, dtype=torch.bfloat16)
    table = torch.randperm(shape.pool, device=device).view(shape.batch, -1).to(torch.int32)
    lengths = torch.full((shape.batch,), shape.length, dtype=torch.int32, device=device)
    pages = one_list_a_sequence(table, lengths, shape.page)
    return graph_time([partial(plan.run, q, k, v, pages, SCALE) for k, v in kv])


def compile_share(
    found: list[tuple[str, str, Flow]], shape: Shape, share: int, shares: int, *, sweeping: bool
) -> None:
    """Compile every n-th program by running it once on a small cache; print its seconds."""
    small = replace(shape, pool=64)
    kv = tensors(small, 1)
    if sweeping:
        tries = [(flow, config) for _, _, flow in found for config in configurations(flow, shape)]
        for flow, config in tries[share::shares]:
            try:
                Step(flow, small, kv, partial(fixed, config)).score(0)
                torch.cuda.synchronize()
            except Exception:  # noqa: BLE001 - the measuring process says what is wrong with it
                continue
        return
    Step(library.load("block_topk").flow, small, kv).run(0)  # what every flow shares
    for _, name, flow in found[share::shares]:
        start = time.perf_counter()
        try:
            Step(flow, small, kv).run(0)
            torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001 - the measuring process says what is wrong with it
            print("COMPILE", name, "failed", str(error)[:100], flush=True)
            continue
        print("COMPILE", name, round(time.perf_counter() - start, 2), flush=True)


def measure(report: Report, kind: str, flow: Flow, shape: Shape, kv: Any, seconds: dict[str, float]) -> None:
    """Check one program and time it."""
    step = Step(flow, shape, kv)
    checked = step.check()
    cost = step_cost(step.program, step.knobs, shape.geometry, batch=shape.batch, length=shape.length)
    floor = report.floor_us(cost.bytes - cost.update_bytes - cost.scratch_bytes)
    layers = range(len(kv))
    us = graph_time([partial(step.run, n) for n in layers], replays=7)
    launches = count_launches(partial(step.run, 0))
    step.score(0)
    pages = step.select(0)  # lists stay as they are while nothing is selected
    attend_us = graph_time([partial(step.attend, n, pages) for n in layers], replays=7)
    report.add(
        "programs",
        kind=kind,
        flow=flow.name,
        correct=max(checked["gap"], checked["score_error"]) <= GAP,
        **checked,
        compile_s=seconds.get(flow.name),
        step_us=us,
        floor_us=floor,
        over_floor=us / floor,
        score_us=graph_time([partial(step.score, n) for n in layers], replays=7),
        select_us=graph_time([partial(step.select, n) for n in layers], replays=7),
        attend_us=attend_us,
        state_mb=cost.state_bytes / 1e6,
        launches=launches,
        null_us=null_chain_time(launches),
        idea=flow.doc.split("\n")[0][:60] if kind == "grammar" else "",
    )


def fixed(config: ScoreConfig, batch: int, pages: int) -> FlowConfig:
    """A configuration whatever the shape."""
    return FlowConfig(config)


def configurations(flow: Flow, shape: Shape) -> Iterator[ScoreConfig]:
    """Ways to cut scoring: pages of a tile, warps, blocks a program with loads that run ahead, and how the program that
    looks across a row's pages takes them."""
    code = generate(flow.program.canonical(), shape.geometry, shape.page)
    if code.tokens:
        tiles = [(code.block, code.warps), (max(1, code.block // 2), max(1, code.warps // 2))]
        tiles.append((code.block, 4) if code.warps < 4 else (max(1, code.block // 2), 4))
        cuts = [(*tile, blocks, 1) for tile in tiles for blocks in (1, 2, 3, 4, 8)]
    else:
        cuts = [
            (64, 4, 1, 1),
            (64, 4, 2, 2),
            (64, 4, 4, 2),
            (64, 4, 2, 3),
            (32, 2, 1, 1),
            (32, 2, 2, 2),
            (32, 2, 4, 3),
        ]
    for block, warps, blocks, stages in cuts:
        yield ScoreConfig(block, blocks, warps, stages)
    if code.rows:
        for row_block, row_warps in ((256, 4), (512, 8), (1024, 8), (1024, 16), (2048, 16)):
            yield ScoreConfig(row_warps=row_warps, row_block=row_block)


def sweep(report: Report, flow: Flow, shape: Shape, kv: Any) -> None:
    """Scoring time of one program under each configuration, and under what it is launched with."""
    found = [("default", ScoreConfig())]
    found += [("tried", config) for config in configurations(flow, shape)]
    current = [found[0][1]]
    step = Step(flow, shape, kv, lambda batch, pages: FlowConfig(current[0]))
    for kind, config in found:
        current[0] = config
        try:
            us = graph_time([partial(step.score, n) for n in range(len(kv))], replays=5)
        except Exception as error:  # noqa: BLE001 - too much shared memory, say
            report.add("sweep", flow=flow.name, kind=kind, **asdict(config), error=str(error)[:80])
            continue
        report.add("sweep", flow=flow.name, kind=kind, **asdict(config), score_us=us)
        cut = (config.block, config.blocks, config.warps, config.stages, config.row_block, config.row_warps)
        print("SWEEP", flow.name, kind, *cut, round(us, 1), flush=True)


def summary(report: Report) -> None:
    """Quantiles of the steps over their floors, by kind."""
    rows = [r for r in report.rows if r["section"] == "programs" and r.get("over_floor") is not None]
    failed = [r["flow"] for r in report.rows if r.get("error")]
    for kind in ("library", "found", "grammar", ""):
        over = sorted(r["over_floor"] for r in rows if not kind or r["kind"] == kind)
        if over:
            report.add(
                "summary",
                kind=kind or "all",
                programs=len(over),
                median=statistics.median(over),
                p95=over[min(len(over) - 1, round(0.95 * (len(over) - 1)))],
                worst=over[-1],
                wrong=sum(not r["correct"] for r in rows if not kind or r["kind"] == kind),
                failed=len(failed) if not kind else None,
            )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    found.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the grammar"
    )
    found.add_argument("--count", type=int, default=60, help="programs of the grammar")
    found.add_argument("--only", default="", help="names, comma-separated")
    found.add_argument("--shape", default="16x32768x16x8", help="batch x length x q heads x kv heads")
    found.add_argument("--page", type=int, default=64)
    found.add_argument("--budget", type=int, default=2048)
    found.add_argument("--jobs", type=int, default=0, help="processes that compile all kernels first")
    found.add_argument("--dry", action="store_true", help="check small shapes under Triton's interpreter")
    found.add_argument(
        "--sweep", action="store_true", help="time scoring under several configurations instead"
    )
    found.add_argument(
        "--parts", action="store_true", help="check what programs compute on the way instead, value by value"
    )
    found.add_argument("--share", help=argparse.SUPPRESS)
    return found


def compiled(args: argparse.Namespace) -> dict[str, float]:
    """Compile everything in several processes; seconds of each program."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.programs",
        "--seed",
        str(args.seed),
        "--count",
        str(args.count),
    ]
    command += [
        "--shape",
        args.shape,
        "--page",
        str(args.page),
        "--budget",
        str(args.budget),
        "--only",
        args.only,
    ]
    command += ["--sweep"] if args.sweep else []
    children = [
        subprocess.Popen([*command, "--share", f"{i}/{args.jobs}"], stdout=subprocess.PIPE, text=True)
        for i in range(args.jobs)
    ]
    seconds: dict[str, float] = {}
    for child in children:
        for line in (child.communicate()[0] or "").splitlines():
            words = line.split()
            if words[:1] == ["COMPILE"] and words[2] != "failed":
                seconds[words[1]] = float(words[2])
            elif words[:1] == ["COMPILE"]:
                print(line, flush=True)
    return seconds


def main() -> None:
    """Check and time every program; write `programs.json` and `programs.md`."""
    command_line = parser()
    args = command_line.parse_args()
    batch, length, q_heads, kv_heads = map(int, args.shape.split("x"))
    device = "cuda"
    if args.dry:
        if os.environ.get("TRITON_INTERPRET") != "1":
            command_line.error("--dry needs TRITON_INTERPRET=1 in the environment")
        batch, length, device = 2, 12 * args.page, "cpu"
    else:
        needs.gpus(command_line)
    geometry = Geometry(1, kv_heads, q_heads // kv_heads, 128, 128, 128)
    budget = args.budget if not args.dry else 5 * args.page
    shape = Shape(batch, length, geometry, args.page, budget, device, batch * length // args.page)
    found = [p for p in programs(args.seed, args.count) if not args.only or p[1] in args.only.split(",")]
    if args.parts:
        found = [(kind, name, part) for kind, _, flow in found for name, part in parts(flow)]
    if args.share:
        share, shares = map(int, args.share.split("/"))
        compile_share(found, shape, share, shares, sweeping=args.sweep)
        return
    if args.dry or args.parts:
        kv = tensors(shape, 1)
        for kind, name, flow in found:
            try:
                checked = Step(flow, shape, kv).check()
                right = max(checked.values()) <= GAP
                print(kind, name, "correct" if right else "WRONG", checked, flush=True)
            except VortexError as error:
                print(kind, name, "FAILED", error, flush=True)
        return
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        if args.jobs:
            os.environ["TRITON_CACHE_DIR"] = folder  # cold, whatever this machine compiled before
            seconds = compiled(args)
        versions = {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "python": platform.python_version(),
        }
        report = Report(torch.cuda.get_device_name(), versions, copy_bandwidth())
        kv = tensors(shape, LAYERS)
        report.add(
            "setting", seed=args.seed, shape=args.shape, page=args.page, dense_us=dense_time(shape, kv)
        )
        written = "programs_sweep" if args.sweep else "programs"
        for kind, name, flow in found:
            if args.sweep:
                sweep(report, flow, shape, kv)
            else:
                try:
                    measure(report, kind, flow, shape, kv, seconds)
                except Exception as error:  # noqa: BLE001 - a failure is a row of the table, not the end of it
                    report.add(
                        "programs", kind=kind, flow=name, error=f"{type(error).__name__}: {error}"[:300]
                    )
            torch.cuda.empty_cache()
            report.write(args.out, written)  # a run that is cut short keeps what it measured
        if not args.sweep:
            summary(report)
            report.write(args.out, written)
        print(report.markdown())


if __name__ == "__main__":
    main()
