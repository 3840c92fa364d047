"""The sequences of one decode step, in buffers that never move: a captured graph reads them at every replay.

Serving engines keep a table `[request slot, token] -> KV slot`. One launch turns the rows of a batch into the
flow's block table, lengths and budgets. It runs before the step, never inside a captured graph: an overlapping
scheduler may change the table as soon as the step has begun.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vortex_core.ir.crossover import EVERYTHING
from vortex_core.kernels.runtime import INTERPRETED

BLOCK = 256


@triton.jit(do_not_specialize=["whole_below"])
def step_view_kernel(
    slots_ptr, requests_ptr, lengths_in_ptr, allowance_ptr, table_ptr, lengths_ptr, budgets_ptr,
    stride_slots, stride_table, stride_budgets, longest, width, whole_below,
    PAGE: tl.constexpr, BUDGETS: tl.constexpr, EVERYTHING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (sequence, block of pages). What lies beyond a sequence keeps its old, valid page."""
    b = tl.program_id(0)
    length = tl.load(lengths_in_ptr + b).to(tl.int32)
    page = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(requests_ptr + b).to(tl.int64) * stride_slots
    ok = (page < width) & (page * PAGE < length)
    slot = tl.load(slots_ptr + row + page * PAGE, mask=ok, other=0)
    tl.store(table_ptr + b.to(tl.int64) * stride_table + page, (slot // PAGE).to(tl.int32), mask=ok)
    if tl.program_id(1) == 0:
        tl.store(lengths_ptr + b, length)
        for n in tl.static_range(BUDGETS):
            pages = tl.load(allowance_ptr + n * (longest + 1) + tl.minimum(length, longest))
            pages = tl.where(length < whole_below, EVERYTHING, pages)
            tl.store(budgets_ptr + n * stride_budgets + b, pages)


class StepView:
    """Static buffers for up to `batch` sequences of up to `longest` tokens.

    Attributes:
        table: int32 `[batch, width]`, physical page of each logical page.
        lengths: int32 `[batch]`, tokens including the one being decoded; 1 for rows that pad a batch.
        budgets: int32 `[budget row, batch]`, pages each row may attend.

    Args:
        allowance: int32 `[budget row, length]` for lengths from 0 to `longest`, what a row may attend.
    """

    def __init__(
        self, batch: int, longest: int, page_size: int, allowance: torch.Tensor, device: torch.device
    ) -> None:
        self.longest, self.page_size = longest, page_size
        self.width = -(-longest // page_size)
        self.table = torch.zeros(batch, self.width, dtype=torch.int32, device=device)
        self.lengths = torch.ones(batch, dtype=torch.int32, device=device)
        self.budgets = torch.ones(len(allowance), batch, dtype=torch.int32, device=device)
        self._allowance = allowance
        self._by_kernel = device.type == "cuda" or INTERPRETED

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.nbytes for t in (self.table, self.lengths, self.budgets, self._allowance))

    def fill(
        self, slots: torch.Tensor, requests: torch.Tensor, lengths: torch.Tensor, whole_below: int = 0
    ) -> None:
        """Read a batch.

        Args:
            slots: integer `[request slot, token]`, KV slot of every token; pages are contiguous in it.
            requests: integer `[n]`, rows of `slots`.
            lengths: integer `[n]`.
            whole_below: sequences of fewer tokens may attend everything (`ir.crossover.EVERYTHING`).
        """
        count = len(requests)
        if not count:
            return
        if self._by_kernel:
            step_view_kernel[(count, triton.cdiv(self.width, BLOCK))](
                slots, requests, lengths, self._allowance, self.table, self.lengths, self.budgets,
                slots.stride(0), self.table.stride(0), self.budgets.stride(0), self.longest, self.width, whole_below,
                PAGE=self.page_size, BUDGETS=len(self.budgets), EVERYTHING=EVERYTHING, BLOCK=BLOCK, num_warps=4,
            )  # fmt: skip
            return
        width = min(self.width, -(-slots.shape[1] // self.page_size))
        first = torch.arange(width, device=slots.device) * self.page_size
        found = slots[requests.long()[:, None], first] // self.page_size
        inside = first < lengths.long()[:, None]
        kept = self.table[:count, :width]
        self.table[:count, :width] = torch.where(inside, found.to(torch.int32), kept)
        self.lengths[:count] = lengths.to(torch.int32)
        budgets = self._allowance[:, lengths.long().clamp(max=self.longest)]
        self.budgets[:, :count] = budgets.masked_fill(lengths < whole_below, EVERYTHING)

    def pad(self, start: int, end: int) -> None:
        """Make rows `start` to `end` sequences of one token."""
        self.lengths[start:end] = 1
        self.budgets[:, start:end] = 1
