"""How scoring launches are cut where nobody asked for anything, on a machine of 132 multiprocessors."""

from __future__ import annotations

import pytest
import torch

from benchmarks.programs import FOUND
from vortex_core import library
from vortex_core.compiler.triton import backend
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.compiler.triton.launch_config import ScoreConfig
from vortex_core.compiler.triton.offline import compile_flow
from vortex_core.compiler.triton.row_kernel import row_cut
from vortex_core.geometry import Geometry
from vortex_core.ir.flow import Flow
from vortex_core.sandbox.jail import run

FEW, MANY = Geometry(1, 8, 2, 128, 128, 128), Geometry(1, 2, 6, 128, 128, 128)  # heads that share keys


def flow(name: str) -> Flow:
    """A program of the library or of those found."""
    path = FOUND / f"{name}.py"
    return run(path.read_text(), path.name).flow if path.exists() else library.load(name).flow


def resolved(
    monkeypatch: pytest.MonkeyPatch, name: str, geometry: Geometry, page: int, pages: int
) -> ScoreConfig:
    """The default for 16 sequences."""
    monkeypatch.setattr(backend, "multiprocessors", lambda _: 132)
    made = TritonFlow(flow(name).program.canonical(), flow(name).knobs.with_(page_size=page), geometry)
    return made.resolved(ScoreConfig(), 16, pages, torch.device("cpu"))


def test_a_row_of_many_numbers_is_taken_at_once_by_many_warps() -> None:
    assert row_cut(8, 1920) == (2048, 16)
    assert row_cut(2, 512) == (512, 4)
    assert row_cut(1, 100) == (256, 4), "short rows share one kernel"
    assert row_cut(8, 100_000) == (2048, 16), "as many as registers hold"


def test_programs_of_many_heads_are_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    few = resolved(monkeypatch, "slow_channels", FEW, 64, 512)
    many = resolved(monkeypatch, "slow_channels", MANY, 16, 1920)
    assert (few.block, few.blocks, few.warps) == (8, 4, 4)
    assert (many.block, many.blocks, many.warps) == (32, 4, 4), "two rounds; three blocks would be three"
    assert (many.row_block, many.row_warps) == (2048, 16)
    asked = ScoreConfig(row_block=512, row_warps=8)
    made = TritonFlow(flow("slow_channels").program.canonical(), flow("slow_channels").knobs, MANY)
    kept = made.resolved(asked, 16, 1920, torch.device("cpu"))
    assert (kept.row_block, kept.row_warps) == (512, 8)


def test_rounds_are_full_where_it_is_known_how_many_programs_are_resident(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "multiprocessors", lambda _: 132)
    cpu = torch.device("cpu")
    assert backend.token_blocks(1920, cpu, 6, 4, columns=True) == 4
    assert backend.token_blocks(1920, cpu, 6, 4, columns=False) == 3
    assert backend.token_blocks(7680, cpu, 6, 4, columns=False) == 6
    assert backend.token_blocks(120, cpu, 6, 4, columns=True) == 1, "too few to share out"


def test_a_product_of_one_tile_is_one_warps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four warps computed such a tile four times: 1,168 instructions of a warp a page."""
    few = resolved(monkeypatch, "locks", FEW, 64, 512)
    many = resolved(monkeypatch, "locks", MANY, 16, 1920)
    assert (few.block, few.blocks, few.warps) == (many.block, many.blocks, many.warps) == (8, 4, 1)
    found = compile_flow(flow("locks").program, flow("locks").knobs.with_(page_size=16), MANY, config=many)
    report = found["score_kernel"]
    assert report.instructions * many.warps / many.block < 600 and not report.spills


@pytest.mark.parametrize(("page", "heads", "block"), [(16, 8, 16), (64, 4, 8)])
def test_what_one_warp_does_not_hold_has_two(page: int, heads: int, block: int) -> None:
    """Queries of eight heads, or a product of 64 rows of eight pages that is summed where it is made."""
    geometry = Geometry(1, 2, heads, 128, 128, 128)
    found = TritonFlow(flow("locks").program.canonical(), flow("locks").knobs.with_(page_size=page), geometry)
    assert (found.code.block, found.code.warps) == (block, 2)
