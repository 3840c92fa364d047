"""Which rows are cut into equal pieces."""

from __future__ import annotations

import pytest
import torch

from vortex_core.kernels.decode.config import EVEN_CUTS, decode_config, even_config
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


@pytest.mark.parametrize(("least", "splits"), [(32, 8), (256, 8), (512, 4), (2048, 1), (4096, 1)])
def test_a_piece_has_no_fewer_tokens_than_asked_for(least: int, splits: int) -> None:
    pages = PageList(torch.zeros(4, 8, 1, dtype=torch.int32), torch.zeros(4, 8, dtype=torch.int32), 16)
    assert even_splits(pages, 2048, 264, least) == splits


@pytest.mark.parametrize(("rows", "tile"), [(1, 32), (16, 32), (17, 128), (132, 128), (133, 64), (4096, 64)])
def test_every_launch_over_lists_has_a_cut_that_fits_the_engines_scratch(rows: int, tile: int) -> None:
    assert {even_config(rows, tokens).block_n for tokens in (0, 256, 2048, 1 << 20)} == {tile}
    # Scratch is allocated for dense attention of one sequence, and lists share it.
    dense = decode_config(128, 4, torch.bfloat16, 16, rows, alone=True)
    assert all(cut.even and cut.workers_per_sm <= dense.workers_per_sm for _, _, cut in EVEN_CUTS)
