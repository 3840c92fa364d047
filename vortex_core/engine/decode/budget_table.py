"""Budgets by sequence length, on the device, so that a captured step can look them up."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from vortex_core.engine.decode.selection import LoadedFlow

_CHUNK = 1024  # lengths evaluated at a time: an expression costs microseconds


class BudgetTable:
    """Pages each row may attend, `[layers, length]` (one row where the budget is the same for every layer).

    Filled as lengths come near; the tensor never moves, so captured graphs may keep its address.
    """

    def __init__(self, flow: LoadedFlow, max_length: int, device: torch.device) -> None:
        self.flow = flow
        keys = sorted({flow.budget_key(layer) for layer in flow.leaders}) or [0]
        self._row = {key: i for i, key in enumerate(keys)}
        self._keys = keys
        self._known = np.zeros(-(-(max_length + 1) // _CHUNK), dtype=bool)
        self._pages = lru_cache(maxsize=None)(flow.knobs.pages)
        self.table = torch.ones((len(keys), max_length + 1), dtype=torch.int32, device=device)

    def cover(self, first: int, last: int) -> None:
        """Fill in lengths `first` to `last`."""
        layers = len(self.flow.leader)
        for chunk in range(first // _CHUNK, last // _CHUNK + 1):
            if self._known[chunk]:
                continue
            begin = chunk * _CHUNK
            lengths = range(begin, min(begin + _CHUNK, self.table.shape[1]))
            values = [[self._pages(max(n, 1), key, layers) for n in lengths] for key in self._keys]
            self.table[:, begin : begin + len(lengths)] = torch.tensor(values, dtype=torch.int32)
            self._known[chunk] = True

    def of(self, layer: int) -> torch.Tensor:
        """int32 `[length]` for a leader."""
        return self.table[self._row[self.flow.budget_key(layer)]]
