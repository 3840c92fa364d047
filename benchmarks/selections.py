"""Checks against the definition, then times one selection launch of each kind, on the GPU at hand.

    python -m benchmarks.selections [--shapes 128x2048,128x1026/2064,16x65536] [--sift] [--out benchmarks/results]
    python -m benchmarks.selections --sweep [--shapes 32x1920:128]

Rows x pages of fp32 scores, in tables with room for as many or for more (`/2064`: serving engines capture a step with
room for the longest sequence). 128 pages, or as many as `:K` says, with the first and the last two among them. A union
takes a launch a stream. Times are medians of CUDA graph replays over one input, which the L2 may hold, as it does after
a scoring launch. FlashInfer's top-k through a page table, where it is installed, keeps no pages by rule.

`--sweep` times top-k under every plan that may be sensible instead: warps, segments, sifting. `--dry` checks all of it
on small shapes under Triton's interpreter and times nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch.nn.functional import pad
from triton.errors import TritonError

from benchmarks import needs
from benchmarks.kernels_peers import flashinfer_module
from tests.interp.kernels import inputs
from vortex_core.compiler.triton.tuning.timing import graph_time
from vortex_core.kernels import Limit, Marks, select_pages
from vortex_core.kernels.compile_ahead import compiling_ahead
from vortex_core.kernels.reference import select_reference
from vortex_core.kernels.select.api import SIFT, SelectPlan, Stage, plan_workspace, select_plan

PAGE, BUDGET, FIRST, LAST = 16, 128, 1, 2
Kind = tuple[str, Limit | None, tuple[Stage, ...]]
KINDS: tuple[Kind, ...] = (
    ("top-k", None, ()),
    ("threshold 3.5", Limit("threshold", 3.5), ()),
    ("top-p 0.5", Limit("top-p", 0.5), ()),
    ("top-p 0.95", Limit("top-p", 0.95), ()),
    ("union of 2 top-k", None, ("begin", "list")),
    ("union of 3 top-k", None, ("begin", "add", "list")),
    ("union of 2 top-p 0.3", Limit("top-p", 0.3), ("begin", "list")),
)
SHAPES = "128x2048,128x1026/2064,128x257/2064,128x8192,16x65536"
SWEPT = "32x480:32,32x960:64,32x1920:16,32x1920:128,128x480:32,128x1920:128"
DRY = "2x70:16,2x2100/2200:64"
Timer = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class Shape:
    """`rows` of `pages` each in tables of `room`, of which `chosen` are taken."""

    rows: int
    pages: int
    room: int
    chosen: int

    @classmethod
    def read(cls, text: str) -> Shape:
        """Of `ROWSxPAGES[/ROOM][:CHOSEN]`. Raises `ValueError` for another text."""
        text, _, chosen = text.partition(":")
        rows, _, row = text.partition("x")
        pages, _, room = row.partition("/")
        found = cls(int(rows), int(pages), int(room or pages), int(chosen or BUDGET))
        if min(found.rows, found.pages, found.chosen - FIRST - LAST + 1) < 1 or found.room < found.pages:
            raise ValueError(f"{text} has no rows, no pages, no room for them, or none to choose")
        return found


def graph_timer(run: Callable[[], object]) -> float:
    """Microseconds by replays of a CUDA graph."""
    return graph_time([run])


@lru_cache(maxsize=8)
def drawn(shape: Shape, seed: int, device: str) -> inputs.Scores:
    """Random scores of a shape, padded to its room."""
    made = inputs.scores(
        [shape.pages * PAGE - 5] * shape.rows, heads=1, page_size=PAGE, seed=seed, device=device
    )
    room = (0, shape.room - shape.pages)
    return inputs.Scores(pad(made.scores * 2.0, room), made.n_tokens, pad(made.table, room))


@lru_cache(maxsize=64)
def defined(shape: Shape, seed: int, row: int, limit: Limit | None, device: str) -> tuple[int, ...]:
    """The logical pages of a row that the definition chooses."""
    case = drawn(shape, seed, device)
    ends = {} if limit is None else {"top_p" if limit.kind == "top-p" else "threshold": limit.value}
    found, _, _ = select_reference(
        case.scores[row : row + 1].cpu(), case.n_tokens[:1].cpu(), torch.tensor([shape.chosen]),
        case.table[row : row + 1].cpu(), heads=1, page_size=PAGE, keep_first=FIRST, keep_last=LAST, **ends,
    )  # fmt: skip
    return tuple(found[0])


def measure(
    shape: Shape,
    name: str,
    limit: Limit | None,
    stages: tuple[Stage, ...],
    *,
    plan: SelectPlan,
    device: torch.device,
    timer: Timer | None,
    checks: bool = True,
    peers: bool = True,
) -> dict[str, Any]:
    """One kind at one shape under one plan. Raises AssertionError where the pages are not the definition's.

    checks: without, launches are all that is done, for them to be compiled.
    """
    rows, pages, width, most = shape.rows, shape.pages, shape.room, shape.chosen
    cases = [drawn(shape, n, device.type) for n in range(max(1, len(stages)))]
    table = cases[0].table
    budget = torch.tensor([most], dtype=torch.int32, device=device)
    ids = torch.zeros(rows, most * len(cases), dtype=torch.int32, device=device)
    lens = torch.zeros(rows, dtype=torch.int32, device=device)
    space = plan_workspace(rows, plan, device)
    marks = torch.empty(rows, width, dtype=torch.uint8, device=device)

    def run() -> None:
        for n, case in enumerate(cases):
            select_pages(
                case.scores, case.n_tokens, budget, table, heads=1, page_size=PAGE, page_ids=ids, kv_lens=lens,
                keep_first=FIRST, keep_last=LAST, workspace=space, limit=limit, plan=plan,
                marks=Marks(marks, stages[n], most) if stages else None,
            )  # fmt: skip

    run()
    if not checks:
        return {}
    count = 0
    for row in (0, rows - 1):
        wanted = {page for n in range(len(cases)) for page in defined(shape, n, row, limit, device.type)}
        count = -(-int(lens[row]) // PAGE)
        got, want = ids[row, :count].tolist(), [int(table[row, page]) for page in sorted(wanted)]
        # Masses are summed in another order: the page at which a top-p ends may differ, one a stream.
        near = limit is not None and limit.kind == "top-p" and len({*got} ^ {*want}) <= len(cases)
        assert got == want or near, f"{name}, row {row}: {len(got)} pages, {len(want)} wanted"
    us = None if timer is None else timer(run)
    found_row = {
        "rows": rows, "pages": pages, "room": width, "kind": name + ", sifted" * (plan.sift > 0), "chosen": count,
        "launches": len(cases), "us": us,
    }  # fmt: skip
    flashinfer = flashinfer_module() if peers and timer is not None and name == "top-k" else None
    if timer is not None and flashinfer is not None:
        scores, full = cases[0].scores[:, :pages].contiguous(), torch.full_like(lens, pages)
        under = table[:, :pages].contiguous()
        found_row["flashinfer_us"] = timer(
            lambda: flashinfer.top_k_page_table_transform(scores, under, full, most)
        )
    return found_row


def compiled(cells: list[tuple[Shape, Kind, SelectPlan]], device: torch.device) -> None:
    """Compile the launches of some cells side by side."""
    if device.type == "cuda":
        with compiling_ahead():
            for shape, kind, plan in cells:
                measure(shape, *kind, plan=plan, device=device, timer=None, checks=False)


def plans(shape: Shape) -> Iterator[SelectPlan]:
    """The default first, then other warps, rows cut into segments, and blocks that are sifted."""
    default = select_plan(shape.room, shape.chosen)
    yield default
    bases = [default]
    for segment in (256, 512, 1024, 2048, 4096):
        if shape.chosen < segment < shape.room and segment < default.block:
            bases.append(select_plan(shape.room, shape.chosen, segment, segment))
    for base in bases:
        for warps in (1, 2, 4, 8, 16):
            if max(base.block, base.final_block) // warps > 1024:
                continue  # more keys than threads have registers for
            made = replace(
                base, num_warps=warps, max_registers=64 if warps == 16 and base.block > 4096 else None
            )
            yield from (replace(made, sift=0), replace(made, sift=SIFT if made.block >= 2048 else 0))
            if made.tiers > 1:
                yield replace(made, sift=0, tiers=1)


def told(plan: SelectPlan) -> str:
    """A plan in a few words."""
    words = [f"block {plan.block}", f"{plan.num_warps} warps", f"{plan.tiers} tiers"]
    words += [f"{plan.segments} segments, {plan.final_block} candidates at once"] if plan.segments > 1 else []
    return ", ".join(words + ["sifted"] * (plan.sift > 0))


def sweep(shape: Shape, device: torch.device, timer: Timer | None) -> list[dict[str, Any]]:
    """Top-k under every plan, the default first, then from the fastest on; what is wrong or does not compile, last."""
    wanted = list(dict.fromkeys(plans(shape)))
    compiled([(shape, KINDS[0], plan) for plan in wanted], device)
    rows = []
    for plan in wanted:
        row: dict[str, Any] = {"plan": told(plan), "default": plan == wanted[0]}
        try:
            row |= measure(shape, *KINDS[0], plan=plan, device=device, timer=timer, peers=plan == wanted[0])
        except (AssertionError, RuntimeError, TritonError) as error:
            row |= vars(shape) | {"us": None, "refused": f"{type(error).__name__}: {error}"[:120]}
        rows.append(row)
    return sorted(rows, key=lambda r: (not r["default"], r["us"] is None, r["us"] or 0.0))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--shapes", help="ROWSxPAGES[/ROOM][:CHOSEN],...")
    found.add_argument("--sift", action="store_true", help="also with blocks sifted before they are searched")
    found.add_argument("--sweep", action="store_true", help="top-k under other plans instead")
    found.add_argument(
        "--dry", action="store_true", help="check small shapes under the interpreter, time nothing"
    )
    found.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return found


def page(document: dict[str, Any]) -> str:
    """The document as Markdown."""
    made = f"{document['gpu']}; torch {document['torch']}, triton {document['triton']}"
    lines = [
        "# Selections by kind",
        "",
        f"`python -m benchmarks.selections`, {document['date']}. {made}.",
        f"fp32 scores, a budget of {BUDGET} pages, {FIRST} + {LAST} kept besides; a union is a launch a stream.",
        "",
        "| rows | pages | room | kind | chosen | launches | us | FlashInfer, us |",
        "|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for r in document["rows"]:
        shape = f"| {r['rows']} | {r['pages']:,} | {r['room']:,} "
        peer = f"{r['flashinfer_us']:.1f}" if "flashinfer_us" in r else ""
        us = r["refused"] if r["us"] is None else f"{r['us']:.1f}"
        lines.append(f"{shape}| {r['kind']} | {r['chosen']} | {r['launches']} | {us} | {peer} |")
    return "\n".join(lines) + "\n"


def swept_page(document: dict[str, Any], shown: int = 5) -> str:
    """The default and the fastest plans of each shape."""
    lines = []
    for key in dict.fromkeys((r["rows"], r["pages"], r["asked"]) for r in document["rows"]):
        rows = [r for r in document["rows"] if (r["rows"], r["pages"], r["asked"]) == key]
        refused = [r for r in rows if r["us"] is None]
        peer = next((f", FlashInfer {r['flashinfer_us']:.2f} us" for r in rows if "flashinfer_us" in r), "")
        lines.append(f"SWEEP {key[0]} rows x {key[1]} pages, {key[2]} chosen{peer}; {len(rows)} plans")
        for r in [r for r in rows if r["us"] is not None][: shown + 1]:
            lines.append(f"  {r['us']:7.2f} us {'DEFAULT ' if r['default'] else ''}{r['plan']}")
        lines += [f"  refused {r['plan']}: {r['refused']}" for r in refused]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and write `selections.json` and `.md`, or `selections_sweep.json` and `.md`; 1 if a choice was wrong."""
    command_line = parser()
    args = command_line.parse_args()
    try:
        wanted = args.shapes or (DRY if args.dry else SWEPT if args.sweep else SHAPES)
        shapes = [Shape.read(text) for text in wanted.split(",")]
    except ValueError as error:
        command_line.error(f"--shapes: {error}")
    if args.dry and os.environ.get("TRITON_INTERPRET") != "1":
        command_line.error("--dry needs TRITON_INTERPRET=1 in the environment")
    if not args.dry:
        needs.gpus(command_line)
    device = torch.device("cpu" if args.dry else "cuda")
    timer = None if args.dry else graph_timer
    document: dict[str, Any] = {
        "gpu": "none" if args.dry else torch.cuda.get_device_name(), "torch": torch.__version__,
        "triton": triton.__version__, "date": f"{datetime.now(UTC):%Y-%m-%d}", "rows": [],
    }  # fmt: skip
    rows: list[dict[str, Any]] = document["rows"]
    args.out.mkdir(parents=True, exist_ok=True)
    name, text = ("selections_sweep", swept_page) if args.sweep else ("selections", page)

    def keep() -> None:
        """What there is so far, unless it is a rehearsal."""
        if not args.dry:
            (args.out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
            (args.out / f"{name}.md").write_text(text(document))

    def cells(shape: Shape) -> Iterator[tuple[Shape, Kind, SelectPlan]]:
        """Every kind, searched whole and, if asked for and long enough, sifted."""
        for kind in KINDS:
            for sifts in (False, True)[: 1 + (args.sift and shape.room > 1024)]:
                yield shape, kind, select_plan(shape.room, shape.chosen, sifts=sifts)

    if not args.sweep:
        compiled([cell for shape in shapes for cell in cells(shape)], device)
    for shape in shapes:
        if args.sweep:
            rows += [{**row, "asked": shape.chosen} for row in sweep(shape, device, timer)]
            keep()
            continue
        for _, kind, plan in cells(shape):
            try:
                rows.append(measure(shape, *kind, plan=plan, device=device, timer=timer))
            except AssertionError as error:
                what = {"kind": kind[0] + ", sifted" * (plan.sift > 0), "launches": "", "us": None}
                rows.append(vars(shape) | what | {"refused": f"WRONG: {error}"})
            print(
                *vars(shape).values(), rows[-1]["kind"], rows[-1].get("refused", rows[-1]["us"]), flush=True
            )
            keep()
    if not args.dry:
        print(text(document))
    wrong = [row for row in rows if "refused" in row and ("WRONG" in row["refused"] or args.dry)]
    if args.dry or wrong:
        print(f"{len(rows)} checked, {len(wrong)} wrong", *wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
