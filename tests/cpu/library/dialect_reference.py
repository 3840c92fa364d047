"""Scores of a vortex_torch program, and the check against plain, positional PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.geometry import Geometry
from vortex_core.sandbox.jail import run

H, D, BLOCK, PAGES = 4, 16, 8, 6
OPTIONS = {"block_size": BLOCK, "head_dim": D, "group": H, "dtype": "float32"}
Tensor = torch.Tensor
Reference = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [1, H, D], k [S, T, D], v -> [S]


def data(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(1, H, D, generator=g).double(),
        torch.randn(PAGES, BLOCK, D, generator=g).double(),
        torch.randn(PAGES, BLOCK, D, generator=g).double(),
    )


def scores(source: str) -> Tensor:
    """`[S]`, from the oracle."""
    q, k, v = data()
    traced = run(source, "program.py", OPTIONS)
    flow = backends.get("oracle").compile(traced.original, traced.knobs, Geometry(1, 1, H, D, D, D))
    states = flow.new_states(PAGES, torch.device("cpu"))
    flow.update(states, LayerKV(k[None], v[None]), torch.arange(PAGES), 0)
    length = PAGES * BLOCK
    view = BatchView(torch.arange(PAGES)[None], torch.tensor([length]), torch.tensor([3]), length)
    (found,) = flow.scores(q[0][None], states, view, 0).values()  # type: ignore[attr-defined]  # the oracle's own
    return found[0]


def check(source: str, reference: Reference) -> None:
    want = reference(*data()).double()
    assert want.shape == (PAGES,)
    torch.testing.assert_close(scores(source), want, rtol=2e-5, atol=2e-5)
