"""What `benchmarks.tuning --sweep` tries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.tuning import SWEPT, Case
from benchmarks.tuning_cuts import BESIDE, IN_FLIGHT, SHARED, Lists, cuts, neighbours
from vortex_core.kernels.decode.config import even_config
from vortex_core.page_list import PageList


def lists(case: Case) -> Lists:
    """Those of a case on a GPU of 132 multiprocessors."""
    heads, columns = case.geometry.kv_heads, case.budget // case.page
    ids = torch.zeros(case.batch, heads, columns, dtype=torch.int32)
    return Lists(PageList(ids, ids[..., 0], case.page), 512, 132, 3)


@pytest.mark.parametrize("text", SWEPT.split(","))
def test_cuts_fit_a_multiprocessor_and_keep_all_of_them_busy(text: str) -> None:
    made = lists(Case.read(text, 16, 2048))
    found = list(cuts(made))
    assert len({made.key(config) for config in found}) >= 24
    for config in found:
        loading = (config.num_stages - 1) * config.block_n * made.token_bytes
        assert config.workers_per_sm * (loading + BESIDE) <= SHARED
        held = -(-made.tokens // made.pieces(config)) * made.token_bytes
        assert config.workers_per_sm * loading >= IN_FLIGHT or loading >= held, (
            "memory would wait for the cut"
        )
        assert 1 <= made.pieces(config) <= config.workers_per_sm * made.multiprocessors // made.rows
    default = even_config(made.rows, made.tokens)
    if default.num_stages - 1 <= made.tokens // (default.block_n * made.pieces(default)):
        assert default in found


def test_launches_are_told_apart_by_what_they_do() -> None:
    made = lists(Case.read("block_topk:12/2:16x30720:16/2048", 64, 512))
    config = even_config(made.rows)
    assert made.pieces(config) == 4
    assert made.key(replace(config, min_tiles=2)) == made.key(config), (
        "sixteen tiles are four pieces either way"
    )
    near = {made.pieces(one) for one in neighbours(config, made)}
    assert near == {1, 2, 4}
    assert made.key(replace(config, late_sums=True)) != made.key(config)


@pytest.mark.parametrize(
    ("text", "page", "budget"),
    [("quest:12/2:16x30720", 64, 512), ("quest:qwen3-8b:16x30720:16/256", 16, 256)],
)
def test_a_case_names_its_pages_or_takes_the_common_ones(text: str, page: int, budget: int) -> None:
    case = Case.read(text, 64, 512)
    assert (case.batch, case.context, case.page, case.budget) == (16, 30720, page, budget)
    assert case.geometry.group == (6 if "12/2" in text else 4)
