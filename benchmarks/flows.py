"""Whole sparse decode steps on a GPU: score, select, attend, under a CUDA graph, against dense attention.

    python -m benchmarks.flows --out benchmarks/results

Every shape is checked before it is timed: selected pages against fp64 scores, attention against fp64 over the
selected pages. Then the step, its parts, our dense attention and (where importable) FlashInfer's are timed in the
same run. The floor is the bytes a step must read over the measured copy bandwidth; `null_us` is a chain of as many
kernels that do nothing, the least that the step's launches cost.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks import needs
from benchmarks.kernels_timing import Report, copy_bandwidth, count_launches, null_chain_time
from vortex_core import library
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.compiler.oracle import OracleFlow
from vortex_core.compiler.triton.backend import TritonBackend
from vortex_core.compiler.triton.tuning.timing import Launch, graph_time, relative_error
from vortex_core.geometry import Geometry
from vortex_core.ir.launches import step_cost
from vortex_core.kernels.decode.plan import AttentionPlan
from vortex_core.page_list import PageList, one_list_a_sequence

FLOWS = ("block_topk", "quest", "gqa_block_topk", "lserve")
BUDGET = 2048
SCALE = 128**-0.5


class Case:
    """One shape with several layers' worth of KV, so that a layer's bytes are not in the L2 when it runs again.

    `kv_heads` 1 with more than 16 query heads stands for MLA: 512 latent and 64 rotary channels, one cache.
    """

    def __init__(
        self, flow: str, batch: int, length: int, q_heads: int, kv_heads: int, page: int, layers: int
    ) -> None:
        self.traced = library.load(flow).with_knobs(page_size=page, budget=str(BUDGET))
        self.mla = kv_heads == 1
        dim = 576 if self.mla else 128
        rope, value = (64, 512) if self.mla else (dim, dim)
        self.geometry = Geometry(1, kv_heads, q_heads // kv_heads, dim, rope, value)
        self.batch, self.length, self.page, self.layers = batch, length, page, layers
        self.pages = batch * length // page
        shape = (self.pages, page, kv_heads, dim)
        self.k = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(layers)]
        self.v = [k[..., :value] if self.mla else torch.randn_like(k) for k in self.k]
        self.q = torch.randn(batch, q_heads, dim, device="cuda", dtype=torch.bfloat16)
        order = torch.randperm(self.pages, device="cuda", dtype=torch.int64).view(batch, -1)
        self.table = order.to(torch.int32)
        lengths = torch.full((batch,), length, dtype=torch.int32, device="cuda")
        budgets = torch.full((batch,), self.traced.knobs.pages(length), dtype=torch.int32, device="cuda")
        self.view = BatchView(self.table, lengths, budgets, length)
        flow_ = TritonBackend().compile(self.traced.program, self.traced.knobs, self.geometry)
        self.flow = flow_
        self.states = [flow_.new_states(self.pages, torch.device("cuda"), batch) for _ in range(layers)]
        every = torch.arange(self.pages, device="cuda", dtype=torch.int32)
        for k, v, s in zip(self.k, self.v, self.states, strict=True):
            flow_.update(s, LayerKV(k.permute(2, 0, 1, 3), v.permute(2, 0, 1, 3)), every, 0)
        self.work = flow_.workspace(batch, length // page, torch.device("cuda"))
        self.out = torch.empty(batch, q_heads, value, device="cuda", dtype=torch.bfloat16)
        self.all = AttentionPlan.allocate(self.geometry, page, torch.bfloat16, batch, torch.device("cuda"))
        self.lists = self.all.sharing(page, even=True)

    def score(self, layer: int) -> None:
        """The scoring launches."""
        view = self.view
        self.flow.launch_scores(
            self.q, self.states[layer], self.table, view.lengths, view.budgets, self.work, layer
        )

    def select(self, layer: int) -> PageList:
        """Scores to page lists."""
        view = self.view
        return self.flow.launch_selection(self.table, view.lengths, view.budgets, self.work)

    def attend(self, layer: int, pages: PageList) -> torch.Tensor:
        """Attention over the lists."""
        return self.lists.run(self.q, self.k[layer], self.v[layer], pages, SCALE, out=self.out)

    def step(self, layer: int) -> None:
        """One sparse layer."""
        self.score(layer)
        self.attend(layer, self.select(layer))

    def dense(self, layer: int) -> torch.Tensor:
        """Our kernel over all pages."""
        pages = one_list_a_sequence(self.table, self.view.lengths, self.page)
        return self.all.run(self.q, self.k[layer], self.v[layer], pages, SCALE, out=self.out)

    def check(self) -> dict[str, float]:
        """Worst selection gap in units of the score spread, and the attention error, on the last sequence."""
        self.score(0)
        pages = self.select(0)
        out = self.attend(0, pages).clone()
        torch.cuda.synchronize()
        b, g = self.batch - 1, self.geometry
        oracle = OracleFlow(self.traced.program, self.traced.knobs, g)
        states = oracle.new_states(self.pages, torch.device("cpu"), self.states[0].seats)
        for name, field in self.states[0].fields.items():
            states.fields[name].data = field.data.cpu()
            states.fields[name].scale = None if field.scale is None else field.scale.cpu()
        lengths, budgets = self.view.lengths.cpu().long(), self.view.budgets.cpu().long()
        view = BatchView(self.table.cpu().long(), lengths, budgets, self.length)
        (scores,) = oracle.scores(self.q.cpu(), states, view, b).values()
        ids = pages.page_ids[b].cpu()
        logical = {int(p): n for n, p in enumerate(self.table[b].tolist())}
        gap = error = 0.0
        knobs = self.traced.knobs
        for h in range(g.kv_heads):
            chosen = sorted(logical[int(p)] for p in ids[h])
            assert len(set(chosen)) == knobs.pages(self.length), "page count"
            row = scores[h]
            kept = {n for n in range(len(row)) if n < knobs.keep_first or n >= len(row) - knobs.keep_last}
            inside = [n for n in chosen if n not in kept]
            outside = [n for n in range(len(row)) if n not in kept and n not in set(chosen)]
            gap = max(gap, float(row[outside].max() - row[inside].min()) / float(row.std()))
            physical = self.table[b, chosen].long()
            k = self.k[0][physical, :, h].reshape(-1, g.head_dim).double()
            v = self.v[0][physical, :, h].reshape(-1, g.value_dim).double()
            q = self.q[b, h * g.group : (h + 1) * g.group].double()
            want = torch.softmax(q @ k.T * SCALE, -1) @ v
            error = max(error, relative_error(out[b, h * g.group : (h + 1) * g.group], want))
        return {"selection_gap": max(0.0, gap), "attention_error": error}


def flashinfer_dense(case: Case) -> float | None:
    """Microseconds of FlashInfer's best dense decode on the same KV, None where it is not installed."""
    try:
        import flashinfer
    except ImportError:
        return None
    if case.mla:  # its MLA kernels have a wrapper of their own: see benchmarks.kernels
        return None
    heads, dim, page = case.geometry.kv_heads, case.geometry.head_dim, case.page
    space = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")

    def runs(wrapper: Any, out: torch.Tensor) -> list[Launch]:
        return [partial(wrapper.run, case.q, pair, out=out) for pair in zip(case.k, case.v, strict=True)]

    times = []
    for tensor_cores in (False, True):
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(space, "NHD", use_tensor_cores=tensor_cores)
        per = case.length // page
        indptr = torch.arange(case.batch + 1, dtype=torch.int32, device="cuda") * per
        last = torch.full((case.batch,), page, dtype=torch.int32, device="cuda")
        wrapper.plan(
            indptr, case.table.flatten(), last, case.q.shape[1], heads, dim, page,
            q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16,
        )  # fmt: skip
        times.append(graph_time(runs(wrapper, torch.empty_like(case.q))))
    return min(times)


def measure(report: Report, case: Case, flow: str, peer: dict[str, float | None]) -> None:
    """Check one case, time the step, its parts and (once a shape) the dense peers, and add the row."""
    checked = case.check()
    layers = range(case.layers)
    pages = case.select(0)
    pages = PageList(pages.page_ids.clone(), pages.lengths.clone(), pages.page_size)
    if not peer:
        peer["dense"] = graph_time([partial(case.dense, n) for n in layers])
        peer["flashinfer"] = flashinfer_dense(case)
    cost = step_cost(
        case.traced.program, case.traced.knobs, case.geometry, batch=case.batch, length=case.length
    )
    # What no way to run the step can avoid: no states of pages to come, nothing passed between launches.
    floor = report.floor_us(cost.bytes - cost.update_bytes - cost.scratch_bytes)
    step = graph_time([partial(case.step, n) for n in layers])
    launches = count_launches(partial(case.step, 0))
    best = min(us for us in peer.values() if us is not None)
    report.add(
        "sparse step",
        flow=flow,
        batch=case.batch,
        context=case.length,
        heads=f"{case.q.shape[1]}/{case.geometry.kv_heads}",
        page=case.page,
        step_us=step,
        floor_us=floor,
        over_floor=step / floor,
        score_us=graph_time([partial(case.score, n) for n in layers]),
        select_us=graph_time([partial(case.select, n) for n in layers]),
        attend_us=graph_time([partial(case.attend, n, pages) for n in layers]),
        dense_us=peer["dense"],
        flashinfer_us=peer["flashinfer"],
        speedup=best / step,
        launches=launches,
        null_us=null_chain_time(launches),
        **checked,
    )


def compile_share(cases: list[tuple[Any, ...]], share: int, shares: int) -> None:
    """Launch every kernel of some cases once, so that the cache on disk holds them."""
    for case in (Case(*case, layers=1) for case in cases[share::shares]):
        case.step(0)
        case.dense(0)
        torch.cuda.synchronize()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    found.add_argument("--flows", default=",".join(FLOWS))
    found.add_argument(
        "--shapes",
        default="16x32768x32x8,16x32768x16x8,32x32768x20x1,1x32768x32x8",
        help="batch x length x q heads x kv heads; one kv head means MLA, 512 + 64 channels",
    )
    found.add_argument("--pages", default="16,64")
    found.add_argument("--jobs", type=int, default=0, help="processes that compile all kernels first")
    found.add_argument("--share", help=argparse.SUPPRESS)  # "i/n": compile every n-th case, and no more
    return found


def main() -> None:
    """Check and time every case; write `flows.json` and `flows.md`."""
    command_line = parser()
    args = command_line.parse_args()
    needs.gpus(command_line)
    cases = [
        (flow, *map(int, shape.split("x")), page)
        for shape in args.shapes.split(",")
        for page in map(int, args.pages.split(","))
        for flow in args.flows.split(",")
    ]
    if args.share:
        compile_share(cases, *map(int, args.share.split("/")))
        return
    if args.jobs:
        command = [sys.executable, "-m", "benchmarks.flows", *sys.argv[1:], "--share"]
        children = [subprocess.Popen([*command, f"{i}/{args.jobs}"]) for i in range(args.jobs)]
        if any(child.wait() for child in children):
            command_line.exit(1, "a compiling process failed\n")
    versions = {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()}
    report = Report(torch.cuda.get_device_name(), versions, copy_bandwidth())
    peers: dict[tuple[int, ...], dict[str, float | None]] = {}
    for flow, *shape in cases:
        measure(report, Case(flow, *shape, layers=3), flow, peers.setdefault(tuple(shape), {}))
        torch.cuda.empty_cache()
    report.write(args.out, "flows")
    print(report.markdown())


if __name__ == "__main__":
    main()
