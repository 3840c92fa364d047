"""Which rows are cut into equal pieces."""

from __future__ import annotations

import pytest
import torch

from vortex_core.kernels.decode.split import EVEN_TOKENS
from vortex_core.kernels.decode.split_launch import even_splits
from vortex_core.page_list import PageList


@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "workers", "splits"),
    [
        (4, 8, EVEN_TOKENS, 264, 8),  # as many pieces as run at once
        (4, 8, 96, 264, 3),  # no more than there are tiles
        (4, 8, 0, 264, 1),
        (4, 8, EVEN_TOKENS + 1, 264, 0),  # long lists of several requests may be uneven
        (1, 8, 10 * EVEN_TOKENS, 264, 33),  # one request's are not
        (40, 8, 96, 264, 0),  # more rows than workers
        (1, 8, 96, 7, 0),
    ],
)
def test_rows_are_cut_alike_where_it_costs_nothing(
    batch: int, heads: int, tokens: int, workers: int, splits: int
) -> None:
    pages = PageList(
        torch.zeros(batch, heads, 1, dtype=torch.int32), torch.zeros(batch, heads, dtype=torch.int32), 16
    )
    assert even_splits(pages, tokens, workers, 32) == splits
