"""Budgets by sequence length, on the device, so that a captured step can look them up."""

from __future__ import annotations

import numpy as np
import torch

from vortex_core.ir.layers import LayerPlan

_CHUNK = 1024  # lengths evaluated at a time: an expression costs microseconds


class BudgetTable:
    """Pages each row may attend, int32 `[budget row, length]`; see `LayerPlan` for the rows.

    Filled as lengths come near; the tensor never moves, so captured graphs may keep its address.
    """

    def __init__(self, plan: LayerPlan, max_length: int, device: torch.device) -> None:
        assert plan.leaders, "no layer has a budget"
        self._rows = range(len(plan.budget_layers))
        self._known = np.zeros(-(-(max_length + 1) // _CHUNK), dtype=bool)
        self._pages = plan.row_pages
        self.table = torch.ones((len(self._rows), max_length + 1), dtype=torch.int32, device=device)

    def cover(self, first: int, last: int) -> None:
        """Fill in lengths `first` to `last`."""
        for chunk in range(first // _CHUNK, last // _CHUNK + 1):
            if self._known[chunk]:
                continue
            begin = chunk * _CHUNK
            lengths = range(begin, min(begin + _CHUNK, self.table.shape[1]))
            values = [[self._pages(row, max(n, 1)) for n in lengths] for row in self._rows]
            self.table[:, begin : begin + len(lengths)] = torch.tensor(values, dtype=torch.int32)
            self._known[chunk] = True
