"""Page selection: from scores of logical pages to the physical page list that attention reads, in one launch.

The order is total: pages always kept, then higher scores, NaN as -inf, equal scores by lower page. Selection
finds the last key to take by narrowing a bin of order-preserving integers (radix search), then compacts, so
nothing is sorted and the chosen pages come out in ascending order. A budget ends the choice, and a `Limit` may end it
sooner; rows already inside their budget that nothing else limits are copied unscored. Several selections of the same
rows become one list through `Marks`, at no launch more than one each.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vortex_core.kernels.pages import require
from vortex_core.kernels.runtime import dependent_launch, next_power_of_2
from vortex_core.kernels.select.kernel import select_kernel
from vortex_core.page_list import PageList, one_list_a_head

# Longest row that one program holds in registers, and the length of the segments of longer rows.
MAX_BLOCK = 8192
SEGMENT = 4096
# Most candidates of a long row that its last program holds in registers.
MAX_FINAL_BLOCK = 4096
# Most pages that a bound may leave of a block: a quarter of the smallest such block, and few to search.
SIFT = 512
# Pages of a row from which on blocks are sifted where nobody says whether: none. On an H200 it gains a tenth for 256
# rows of 8,192 pages and loses in unions and for few pages (`benchmarks/results/selections.md`).
SIFTED_FROM: float = math.inf
# Warps of a search: pages of the largest block, and how many (`python -m benchmarks.selections --sweep` tries others).
SEARCH_WARPS = ((512, 4), (4096, 8), (math.inf, 16))
# Most programs of a launch that lets the next kernel take its places at once (`kernels.dependent`): where a search
# leaves most multiprocessors free, attention's blocks need not crowd. None do: timed once on an H200, whole steps with
# 32 such programs took 2 to 3% less (`benchmarks/results/programs.md`).
EARLY_PROGRAMS = 0
Stage = Literal["begin", "add", "list"]
SCORE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class SelectPlan:
    """How rows of at most `max_pages` pages are searched: a function of maxima only.

    max_registers: per thread, so that two programs share a multiprocessor; None leaves it to the compiler.
    sift: most pages that a bound may leave of a block of 2,048 and more, to be searched instead of it; 0: blocks are
        searched whole.
    tiers: how many blocks a row of one program may be searched in, each half as long as the next. A row takes the
        shortest that holds it: where a table has room for 131,072 tokens, most rows are far shorter.
    """

    block: int
    segments: int
    candidates: int
    final_block: int
    num_warps: int
    max_registers: int | None = None
    tiers: int = 1
    sift: int = 0


def launch_registers(plan: SelectPlan, limit: str = "", marks: str = "") -> int | None:
    """Most registers a thread of a launch. With a limit or marks long rows need more than two programs a
    multiprocessor have; left to itself the compiler spills rather than take them."""
    if not (limit or marks):
        return plan.max_registers
    if plan.segments > 1:
        return 255
    return 128 if plan.num_warps > 8 else None


def select_plan(
    max_pages: int,
    capacity: int,
    max_block: int = MAX_BLOCK,
    segment: int = SEGMENT,
    *,
    sifts: bool | None = None,
) -> SelectPlan:
    """Rows within `max_block` take one program; longer ones a program for each `segment` pages.

    sifts: whether blocks of 2,048 pages and more are sifted; None: where the row has `SIFTED_FROM` pages.
    """
    if sifts is None:
        sifts = max_pages >= SIFTED_FROM
    block = max(16, next_power_of_2(max_pages))
    if block > max_block:
        block = segment
    segments = -(-max_pages // block) if max_pages > block else 1
    candidates = segments * min(capacity, block) if segments > 1 else 0
    final_block = min(MAX_FINAL_BLOCK, max(16, next_power_of_2(candidates)))
    largest = max(block, final_block)
    sift = SIFT if sifts and block >= 2048 else 0
    tiers = 3 if block >= 2048 else 2 if block >= 1024 else 1
    warps = next(warps for most, warps in SEARCH_WARPS if largest <= most)
    registers = 64 if largest > 4096 else None
    return SelectPlan(block, segments, candidates, final_block, warps, registers, tiers, sift)


@dataclass(frozen=True)
class Limit:
    """What ends a choice before its budget does; always-kept pages are taken regardless.

    threshold: only pages that score at least `value`; NaN does not, unless `value` is -inf.
    top-p: the shortest prefix of the selection order that holds a share `value` in [0, 1] of the softmax weight of the
        pages that are not always kept. Weights and their sums are fp32, in an order that the shape and the row's length
        decide: the prefix is exact for a share within a relative 2e-6 of `value`.
    """

    kind: Literal["threshold", "top-p"]
    value: float

    def __post_init__(self) -> None:
        require(not math.isnan(self.value), f"{self.kind} of NaN")
        require(self.kind == "threshold" or 0 <= self.value <= 1, f"top-p of {self.value} is outside [0, 1]")


# No score has the key above +inf, so nothing reaches it.
_UNREACHED = 0x7F800001


def _threshold_key(value: float) -> int:
    """The order key of a threshold (`select_search.order_key`)."""
    value = torch.tensor(value, dtype=torch.float32).item()
    if value == math.inf:  # +inf ranks as the largest number, which is less
        return _UNREACHED
    bits: int = struct.unpack("<i", struct.pack("<f", value + 0.0))[0]
    return bits ^ 0x7FFFFFFF if bits < 0 else bits


@dataclass(frozen=True)
class Marks:
    """The union of several selections of the same rows, launched one after the other.

    pages: uint8 [rows, max_pages], scratch: 1 at every logical page that is in the union so far.
    stage: `begin` and `add` leave their choice in `pages`; `list` turns all that is marked and its own choice into the
        page list, of which it writes what fits.
    capacity: most pages that this one selection chooses, where the list is longer.
    """

    pages: Tensor
    stage: Stage
    capacity: int


# Values of the kernel's LIMIT and MARKS.
SELECT_LIMITS: dict[str, int] = {"threshold": 1, "top-p": 2}
SELECT_STAGES: dict[str, int] = {"list": 1, "begin": 2, "add": 3}


@dataclass(frozen=True)
class SelectWorkspace:
    """Scratch of `select_pages` for long rows.

    keys, pages: int32 [rows, candidates]. masses: fp32 [rows, 2 * segments]. finished: int32 [rows], zero.
    sifted_keys, sifted_pages: int32 [rows, segments * sift], None where the plan does not sift.
    """

    keys: Tensor
    pages: Tensor
    masses: Tensor
    finished: Tensor
    sifted_keys: Tensor | None = None
    sifted_pages: Tensor | None = None

    @property
    def nbytes(self) -> int:
        held = (self.keys, self.pages, self.masses, self.finished, self.sifted_keys, self.sifted_pages)
        return sum(t.numel() * t.element_size() for t in held if t is not None)


def select_workspace(
    rows: int, max_pages: int, capacity: int, device: torch.device, *, sifts: bool | None = None
) -> SelectWorkspace:
    """Allocates scratch for at most `rows` rows; empty where `max_pages` fits one program a row. sifts: see
    `select_plan`."""
    return plan_workspace(rows, select_plan(max_pages, capacity, sifts=sifts), device)


def plan_workspace(rows: int, plan: SelectPlan, device: torch.device) -> SelectWorkspace:
    """Scratch of a plan."""
    shape = (rows, plan.candidates)
    long = plan.segments > 1
    sifted = [
        torch.empty(rows, plan.segments * plan.sift, dtype=torch.int32, device=device) if plan.sift else None
        for _ in range(2)
    ]
    return SelectWorkspace(
        torch.empty(shape, dtype=torch.int32, device=device),
        torch.empty(shape, dtype=torch.int32, device=device),
        torch.empty(rows, 2 * plan.segments * long, device=device),
        torch.zeros(rows if long else 0, dtype=torch.int32, device=device),
        *sifted,
    )


def row_strides(per_row: Tensor, batch: int, heads: int, name: str) -> tuple[int, int]:
    """Strides (batch, head) of a value given per row, per request, or once."""
    n = per_row.numel()
    require(per_row.is_contiguous(), f"{name} must be contiguous")
    if n == batch * heads:
        return heads, 1
    if n == batch:
        return 1, 0
    require(n == 1, f"{name} has {n} values; expected {batch * heads} (rows), {batch} (requests) or 1")
    return 0, 0


def select_pages(
    scores: Tensor,
    n_tokens: Tensor,
    budget: Tensor,
    block_table: Tensor,
    *,
    heads: int,
    page_size: int,
    page_ids: Tensor,
    kv_lens: Tensor,
    keep_first: int = 0,
    keep_last: int = 1,
    fraction: float = 1.0,
    limit: Limit | None = None,
    marks: Marks | None = None,
    tolerance: float = 0.0,
    seed: int = 0,
    workspace: SelectWorkspace | None = None,
    plan: SelectPlan | None = None,
    most: int | None = None,
    times: int = 1,
) -> PageList:
    """Select the best pages of every row.

    scores fp32, bf16 or fp16 [batch * heads, max_pages] by logical page; n_tokens int32 [batch]; budget
    int32 [rows], [batch] or [1], in pages, raised to keep_first + keep_last and capped by the row's pages and
    the width of `page_ids`; block_table int32 [batch, max_pages], logical to physical.
    Writes page_ids int32 [rows, capacity] (physical, ascending logical order; what lies beyond a row's list
    is left alone) and kv_lens int32 [rows], and returns them as a `PageList`.

    fraction: share of the budget beyond the kept pages that may be used, rounded up, in ten-thousandths.
    times: so many times as many pages beyond the kept ones are chosen, for candidates of a second choice.
    limit: ends the choice before the budget does.
    marks: makes this one selection of a union; `page_ids` and `kv_lens` are written by its last stage only.
    tolerance: 0 is exact. Otherwise the search stops once ceil((1 - tolerance) * k) pages are certain, and
        the rest is taken from the open bin by `seed`: at least a share 1 - tolerance of the chosen pages is
        in the exact selection. The draw depends on seed, row and length only.
    workspace: from `select_workspace`, needed for rows of more than MAX_BLOCK pages. With scratch to sift, blocks of
        2,048 pages and more are sifted before they are searched.
    most: pages that a choice may have; by default as many as `page_ids` holds. A row that is given
        `ir.crossover.EVERYTHING` or more as its budget lists all its pages, limit or not, where they fit `page_ids`.
    Raises KernelInputError.
    """
    require(
        scores.dim() == 2 and scores.stride(1) == 1,
        f"scores must be [rows, max_pages], got {tuple(scores.shape)}",
    )
    require(scores.dtype in SCORE_DTYPES, f"scores have dtype {scores.dtype}", "use fp32, bf16 or fp16")
    rows, max_pages = scores.shape
    batch = n_tokens.numel()
    require(rows == batch * heads, f"{rows} rows of scores for {batch} requests x {heads} heads")
    require(
        block_table.dtype == torch.int32 and block_table.shape[0] == batch,
        "block_table must be int32 [batch, pages]",
    )
    require(block_table.stride(1) == 1, "block_table must be contiguous along pages")
    require(
        page_ids.shape[0] == rows and page_ids.dtype == torch.int32,
        f"page_ids must be int32 [{rows}, capacity]",
    )
    require(page_ids.stride(1) == 1 and kv_lens.is_contiguous(), "page_ids and kv_lens must be contiguous")
    require(kv_lens.numel() == rows and kv_lens.dtype == torch.int32, f"kv_lens must be int32 [{rows}]")
    require(0.0 <= tolerance <= 1.0, f"tolerance {tolerance} is outside [0, 1]")
    require(0.0 <= fraction <= 1.0, f"fraction {fraction} is outside [0, 1]")
    require(limit is None or tolerance == 0.0, "an approximate choice has no limit but its budget")
    capacity = page_ids.shape[1] if most is None else min(most, page_ids.shape[1])
    if marks is not None:
        require(
            marks.pages.dtype == torch.uint8
            and marks.pages.shape[0] >= rows
            and marks.pages.shape[1] >= max_pages
            and marks.pages.stride(1) == 1,
            f"marks must be uint8 [{rows}, {max_pages}], got {marks.pages.dtype} {tuple(marks.pages.shape)}",
        )
        capacity = min(capacity, marks.capacity)
    require(
        min(keep_first + keep_last, max_pages) <= capacity,
        f"{keep_first} + {keep_last} kept pages exceed capacity {capacity}",
    )
    stride_b, stride_h = row_strides(budget, batch, heads, "budget")
    if plan is None:
        sifts = workspace is not None and workspace.sifted_keys is not None
        plan = select_plan(max_pages, capacity, sifts=sifts)
    keys = pages = masses = finished = None
    if plan.segments > 1:
        require(
            workspace is not None
            and workspace.keys.shape[0] >= rows
            and workspace.keys.shape[1] >= plan.candidates
            and workspace.masses.numel() >= 2 * rows * plan.segments,
            f"rows of {max_pages} pages need scratch for {rows} x {plan.candidates} candidates",
            "pass select_workspace(rows, max_pages, capacity, device)",
        )
        assert workspace is not None
        keys, pages = workspace.keys, workspace.pages
        masses, finished = workspace.masses, workspace.finished
    sift, sifted_keys, sifted_pages = 0, None, None
    if plan.sift and workspace is not None and workspace.sifted_keys is not None:
        sift, sifted_keys, sifted_pages = plan.sift, workspace.sifted_keys, workspace.sifted_pages
        require(
            sifted_keys.numel() >= rows * plan.segments * sift,
            f"{rows} rows need scratch for {plan.segments} x {sift} pages each",
        )
    value, kind = (0.0, "") if limit is None else (limit.value, limit.kind)
    stage = "" if marks is None else marks.stage
    at_key = _threshold_key(value) if kind == "threshold" else 0
    if rows:
        early = rows * plan.segments <= EARLY_PROGRAMS
        select_kernel[(rows, plan.segments)](
            scores, n_tokens, budget, block_table, page_ids, kv_lens, keys, pages, masses, finished,
            None if marks is None else marks.pages, sifted_keys, sifted_pages,
            scores.stride(0), stride_b, stride_h, block_table.stride(0), page_ids.stride(0),
            0 if keys is None else keys.stride(0), 0 if marks is None else marks.pages.stride(0),
            max_pages, capacity, page_ids.shape[1], keep_first, keep_last, round(fraction * 10_000), at_key,
            float(value), 1.0 - tolerance, seed,
            HEADS=heads, PAGE=page_size, BLOCK=plan.block, SEGMENTS=plan.segments,
            FINAL_BLOCK=plan.final_block, TIERS=plan.tiers,
            # bf16 keys differ in their upper half only.
            LAST_SHIFT=16 if scores.dtype == torch.bfloat16 else 0, STOCHASTIC=tolerance > 0.0,
            LIMIT=SELECT_LIMITS.get(kind, 0), MARKS=SELECT_STAGES.get(stage, 0), SIFT=sift, TIMES=times,
            num_warps=plan.num_warps, maxnreg=launch_registers(plan, kind, stage),
            **dependent_launch(scores.device, early=early),
        )  # fmt: skip
    return one_list_a_head(page_ids, kv_lens, heads, page_size)
