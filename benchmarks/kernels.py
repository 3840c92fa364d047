"""Checks the kernels against float64 and times them against their peers and the byte floor, on the GPU at hand.

    python -m benchmarks.kernels [--section decode,sparse,select,mla,write] [--heads 64/4] [--quick] [--out FOLDER]

Every row is checked before it is timed; a wrong result is an error, not a row. Times are medians of CUDA graph
replays over enough different pages to flush the L2. Writes kernels.json and kernels.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import needs  # noqa: E402
from benchmarks.kernels_cases import (  # noqa: E402
    DecodeCase,
    gqa_cases,
    gqa_reference,
    mla_cases,
    mla_reference,
    pool,
    sets_for,
)
from benchmarks.kernels_peers import (  # noqa: E402
    Launch,
    fa3_decode,
    fa3_operator,
    flashinfer_decode,
    flashinfer_mla,
    flashinfer_module,
)
from benchmarks.kernels_timing import Report, copy_bandwidth  # noqa: E402
from vortex_core.compiler.triton.tuning.timing import graph_time, relative_error  # noqa: E402
from vortex_core.kernels import decode_config, select_pages, select_workspace, write_kv  # noqa: E402
from vortex_core.kernels.reference import select_reference, write_kv_reference  # noqa: E402

DIM = 128
MAX_POOL_BYTES = 32 * 2**30
# Weights and output are rounded to bf16 once each.
TOLERANCE = 2 * 2.0**-8

BATCHES, CONTEXTS = (1, 8, 16, 32, 64), (4096, 8192, 32768, 131072)
HEADS, PAGES = ((16, 8), (32, 8), (64, 4)), (16, 64)
QUICK = {(1, 32768), (8, 8192), (8, 32768), (16, 32768), (32, 32768), (64, 4096)}


def check(what: str, error: float) -> float:
    """Raises unless `error` is within what bf16 allows; NaN is not."""
    if not error <= TOLERANCE:
        raise SystemExit(f"{what}: relative error {error} against float64 exceeds {TOLERANCE}")
    return error


def best_peer(times: dict[str, float]) -> dict[str, object]:
    """The fastest peer's name and time."""
    if not times:
        return {}
    name = min(times, key=lambda k: times[k])
    return {"peer": name, "peer_us": times[name]}


def timed(
    report: Report,
    section: str,
    nbytes: int,
    us: float,
    error: float,
    peers: dict[str, float],
    **keys: object,
) -> None:
    """Adds a row: time, achieved bandwidth, share of the copy bandwidth, ratios to floor and best peer."""
    floor = report.floor_us(nbytes)
    row: dict[str, object] = {
        **keys,
        "MB": nbytes / 1e6,
        "us": us,
        "TB/s": nbytes / us / 1e6,
        "floor_us": floor,
        "us/floor": us / floor,
        "error": error,
        **best_peer(peers),
    }
    if peers:
        row["us/peer"] = us / min(peers.values())
    row.update({f"{name}_us": t for name, t in peers.items()})
    report.add(section, **row)


def decode(report: Report, options: argparse.Namespace) -> None:
    """Dense decode over the grid."""
    for (q_heads, kv_heads), page_size in itertools.product(HEADS, PAGES):
        if f"{q_heads}/{kv_heads}" not in options.heads.split(","):
            continue
        if options.quick and (q_heads, page_size) not in ((32, 16), (32, 64), (64, 16)):
            continue
        per_token = kv_heads * DIM * 2 * 2
        sizes = [s for s in itertools.product(BATCHES, CONTEXTS) if not options.quick or s in QUICK]
        sizes = [s for s in sizes if s[0] * s[1] * per_token <= MAX_POOL_BYTES]
        most = max(*(b * n for b, n in sizes), 2**30 // per_token)
        k, v = (pool(-(-most // page_size), page_size, kv_heads, DIM) for _ in range(2))
        for batch, tokens in sizes:
            dense_cell(report, k, v, q_heads, batch, tokens)
        del k, v
        torch.cuda.empty_cache()


def dense_cell(
    report: Report, k: torch.Tensor, v: torch.Tensor, q_heads: int, batch: int, tokens: int
) -> None:
    """One shape of dense decode, with its peers."""
    _, page_size, kv_heads, _ = k.shape
    nbytes = batch * tokens * kv_heads * DIM * 2 * 2
    config = decode_config(DIM, q_heads // kv_heads, k.dtype, page_size, batch * kv_heads, alone=batch == 1)
    cases = gqa_cases(
        k, v, batch=batch, q_heads=q_heads, tokens=tokens, shared=True, config=config, count=sets_for(nbytes)
    )
    keys = {"heads": f"{q_heads}/{kv_heads}", "page": page_size, "batch": batch, "context": tokens}
    error = checked(cases, lambda c, b: gqa_reference(c, k, v, b), str(keys))
    us = graph_time([case.launch for case in cases])
    peers: dict[str, float] = {}
    for name, make in decode_peers(q_heads // kv_heads).items():
        try:
            runs = [make(case, k, v) for case in cases]
            peers[name] = graph_time([run[0] for run in runs])
        except (RuntimeError, ValueError, TypeError) as refusal:  # a peer that does not take this shape
            print(f"{name} refused {keys}: {refusal}", flush=True)
            continue
        check(f"{name} {keys}", relative_error(runs[0][1], cases[0].out))
    timed(report, "dense decode", nbytes, us, error, peers, **keys)


def decode_peers(group: int) -> dict[str, Callable[..., tuple[Launch, torch.Tensor]]]:
    """The installed peers that take this group size."""
    peers: dict[str, Callable[..., tuple[Launch, torch.Tensor]]] = {}
    flashinfer, fa3 = flashinfer_module(), fa3_operator()
    if flashinfer is not None:
        if group <= 8:  # its CUDA-core decode has no larger group
            peers["flashinfer"] = lambda case, k, v: flashinfer_decode(flashinfer, case, k, v, False)
        peers["flashinfer_tc"] = lambda case, k, v: flashinfer_decode(flashinfer, case, k, v, True)
    if fa3 is not None:
        peers["fa3"] = lambda case, k, v: fa3_decode(fa3, case, k, v)
    return peers


def checked(
    cases: list[DecodeCase], reference: Callable[[DecodeCase, int], torch.Tensor], what: str
) -> float:
    """Worst error of the first and last request of the first case, after every case ran once."""
    for case in cases:
        case.launch()
    torch.cuda.synchronize()
    case, batch = cases[0], cases[0].q.shape[0]
    if not all(torch.isfinite(c.out).all() for c in cases):
        raise SystemExit(f"{what}: output holds NaN or was not written")
    return max(check(what, relative_error(case.out[b], reference(case, b))) for b in {0, batch - 1})


def sparse(report: Report, options: argparse.Namespace) -> None:
    """Decode over 2,048 chosen tokens a row, each kv head with pages of its own."""
    for page_size in PAGES:
        k, v = (pool(2**20 // page_size, page_size, 8, DIM) for _ in range(2))
        # The peer has no head axis in its page lists: its rows are requests of one kv head.
        k1, v1 = (pool(2**23 // page_size, page_size, 1, DIM) for _ in range(2))
        for group, batch in itertools.product((4,) if options.quick else (2, 4), (1, 4, 8, 16, 32)):
            sparse_cell(report, (k, v), (k1, v1), group, batch)
        del k, v, k1, v1
        torch.cuda.empty_cache()


def sparse_cell(
    report: Report,
    ours: tuple[torch.Tensor, torch.Tensor],
    theirs: tuple[torch.Tensor, torch.Tensor],
    group: int,
    batch: int,
    tokens: int = 2048,
) -> None:
    """One shape of decode over chosen pages."""
    k, v = ours
    _, page_size, kv_heads, _ = k.shape
    rows = batch * kv_heads
    nbytes = rows * tokens * DIM * 2 * 2
    config = decode_config(DIM, group, k.dtype, page_size, rows, even=True)
    count = sets_for(nbytes)
    cases = gqa_cases(
        k, v, batch=batch, q_heads=kv_heads * group, tokens=tokens, shared=False, config=config, count=count
    )
    keys = {"page": page_size, "group": group, "batch": batch, "rows": rows}
    error = checked(cases, lambda c, b: gqa_reference(c, k, v, b), str(keys))
    us = graph_time([case.launch for case in cases])
    peers = {}
    flashinfer = flashinfer_module()
    if flashinfer is not None:
        rows_cases = gqa_cases(
            *theirs, batch=rows, q_heads=group, tokens=tokens, shared=True, config=config, count=count
        )
        for name, cores in (("flashinfer", False), ("flashinfer_tc", True)):
            runs = [flashinfer_decode(flashinfer, case, *theirs, cores) for case in rows_cases]
            peers[name] = graph_time([run[0] for run in runs])
    timed(report, "decode over chosen pages", nbytes, us, error, peers, **keys)


def select(report: Report, options: argparse.Namespace) -> None:
    """Top-k straight to physical pages, against top-k alone and top-k with a page table."""
    sizes = [(128, 2048, 128), (256, 2048, 128), (256, 8192, 128), (8, 65536, 128), (8, 2048, 128)]
    for dtype, (rows, pages, k) in itertools.product((torch.float32, torch.bfloat16), sizes):
        select_cell(report, dtype, rows, pages, k)


def select_cell(report: Report, dtype: torch.dtype, rows: int, pages: int, k: int) -> None:
    """One shape of selection."""
    flashinfer = flashinfer_module()
    scores = [torch.randn(rows, pages, device="cuda").to(dtype) for _ in range(8)]
    n_tokens = torch.full((rows,), pages * 16, device="cuda", dtype=torch.int32)
    full = torch.full((rows,), pages, device="cuda", dtype=torch.int32)
    budget = torch.tensor([k], device="cuda", dtype=torch.int32)
    table = torch.randint(10**6, (rows, pages), device="cuda", dtype=torch.int32)
    ids = torch.empty(rows, k, device="cuda", dtype=torch.int32)
    lens = torch.empty(rows, device="cuda", dtype=torch.int32)
    workspace = select_workspace(rows, pages, k, ids.device)

    def over_scores(one: Callable[[torch.Tensor], object]) -> float:
        return graph_time([partial(one, x) for x in scores], replay_ms=0.6)

    def run(x: torch.Tensor, tolerance: float = 0.0) -> object:
        return select_pages(
            x, n_tokens, budget, table, heads=1, page_size=16, page_ids=ids, kv_lens=lens,
            tolerance=tolerance, workspace=workspace,
        )  # fmt: skip

    run(scores[0])
    some = slice(0, 4)
    _, want, want_lens = select_reference(
        scores[0][some].cpu(), n_tokens[some].cpu(), budget.cpu(), table[some].cpu(), heads=1, page_size=16
    )
    if ids[some].tolist() != want or lens[some].tolist() != want_lens:
        raise SystemExit(f"select {dtype} {rows} x {pages}: wrong pages")
    row: dict[str, object] = {"dtype": str(dtype)[6:], "rows": rows, "pages": pages, "k": k}
    us = over_scores(run)
    row |= {"us": us, "stochastic_us": over_scores(partial(run, tolerance=0.1))}
    peers = {"torch": over_scores(lambda x: torch.topk(x, k, sorted=False))}
    if flashinfer is not None:
        peers["flashinfer"] = over_scores(lambda x: flashinfer.top_k(x, k))
        if dtype == torch.float32:
            peers["flashinfer_table"] = over_scores(
                lambda x: flashinfer.top_k_page_table_transform(x, table, full, k)
            )
    row |= best_peer(peers) | {"us/peer": us / min(peers.values())}
    report.add("top-k", **row, **{f"{name}_us": t for name, t in peers.items()})


def mla(report: Report, options: argparse.Namespace) -> None:
    """Latent decode, 20 heads (GLM-4.7-Flash): dense, and over 2,048 chosen tokens."""
    few = ((1, 32768), (8, 2048), (16, 32768), (32, 2048), (32, 32768))
    for page_size in (64,) if options.quick else PAGES:
        latent = pool(32 * 131072 // page_size, page_size, 1, 576).squeeze(2)
        for batch, tokens in few if options.quick else itertools.product(BATCHES, (2048, *CONTEXTS)):
            if batch * tokens <= 32 * 131072:
                mla_cell(report, latent, batch, tokens)
        del latent
        torch.cuda.empty_cache()


def mla_cell(report: Report, latent: torch.Tensor, batch: int, tokens: int, heads: int = 20) -> None:
    """One shape of latent decode."""
    _, page_size, width = latent.shape
    nbytes = batch * tokens * width * 2
    cases = mla_cases(latent, batch=batch, heads=heads, tokens=tokens, count=sets_for(nbytes))
    keys = {"heads": heads, "page": page_size, "batch": batch, "context": tokens}
    error = checked(cases, lambda c, b: mla_reference(c, latent, b), str(keys))
    us = graph_time([case.launch for case in cases])
    peers = {}
    flashinfer = flashinfer_module()
    if flashinfer is not None and page_size == 64:
        runs = [flashinfer_mla(flashinfer, case, latent) for case in cases]
        peers["flashinfer"] = graph_time([run[0] for run in runs])
        check(f"flashinfer {keys}", relative_error(runs[0][1], cases[0].out))
    timed(report, "latent decode", nbytes, us, error, peers, **keys)


def write(report: Report, options: argparse.Namespace) -> None:
    """K and V of one step, or of a prefill chunk, into the pool."""
    for dtype, tokens in itertools.product((torch.bfloat16, torch.float8_e4m3fn), (16, 64, 8192)):
        write_cell(report, dtype, tokens)


def write_cell(report: Report, dtype: torch.dtype, tokens: int) -> None:
    """One size of write."""
    k, v = (torch.randn(tokens, 8, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    k_cache, v_cache = (torch.zeros(4096, 16, 8, DIM, device="cuda").to(dtype) for _ in range(2))
    slots = torch.randperm(4096 * 16, device="cuda")[:tokens].to(torch.int32)
    write_kv(k, v, k_cache, v_cache, slots, k_scale=0.5)
    want = write_kv_reference(k_cache.cpu(), k[:8].cpu(), slots[:8].cpu(), 0.5)
    at = slots[:8].cpu().long()
    if not torch.equal(k_cache.cpu().view(-1, 8, DIM)[at].float(), want.view(-1, 8, DIM)[at].float()):
        raise SystemExit(f"write {dtype} {tokens}: wrong values")
    us = graph_time([lambda: write_kv(k, v, k_cache, v_cache, slots, k_scale=0.5)], replay_ms=0.6)
    nbytes = 2 * tokens * 8 * DIM * (2 + k_cache.element_size())
    peers = {}
    if dtype == torch.bfloat16:
        flat_k, flat_v, where = k_cache.view(-1, 8, DIM), v_cache.view(-1, 8, DIM), slots.long()

        def scatter() -> None:
            flat_k.index_copy_(0, where, k)
            flat_v.index_copy_(0, where, v)

        peers["torch"] = graph_time([scatter], replay_ms=0.6)
    timed(report, "write", nbytes, us, 0.0, peers, dtype=str(dtype)[6:], tokens=tokens)


SECTIONS: dict[str, Callable[[Report, argparse.Namespace], None]] = {
    "decode": decode,
    "sparse": sparse,
    "select": select,
    "mla": mla,
    "write": write,
}


def versions() -> Iterator[tuple[str, str]]:
    """What the figures depend on."""
    import triton

    yield "torch", torch.__version__
    yield "triton", triton.__version__
    flashinfer = flashinfer_module()
    if flashinfer is not None:
        yield "flashinfer", flashinfer.__version__


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--section", default=",".join(SECTIONS), help=f"any of {','.join(SECTIONS)}")
    found.add_argument(
        "--heads", default=",".join(f"{q}/{kv}" for q, kv in HEADS), help="query/kv heads of the dense grid"
    )
    found.add_argument("--quick", action="store_true", help="a few cells of each grid")
    found.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "benchmarks" / "results"))
    )
    return found


def main() -> None:
    command_line = parser()
    options = command_line.parse_args()
    needs.gpus(command_line)
    torch.manual_seed(0)
    report = Report(torch.cuda.get_device_name(), dict(versions()), copy_bandwidth())
    # A run that is stopped, by a time limit too, keeps the rows it has.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for name in options.section.split(","):
            SECTIONS[name](report, options)
    finally:
        report.write(options.out, "kernels")
    print(report.markdown())


if __name__ == "__main__":
    main()
