"""Eager mode: values as soon as they are made, the oracle's selection, and the same program as tracing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vortex_core.errors import VortexError
from vortex_core.flow import Knobs, eager, ops, vFlow
from vortex_core.flow.trace import trace
from vortex_core.flow.vtensor import vTensor

SEEN: list[vTensor] = []


class Mean(vFlow):
    knobs = Knobs(page_size=8, budget="24")
    params = {"w": [1.0, 2.0, 3.0, 4.0]}

    def create_cache(self, page):  # type: ignore[no-untyped-def]
        return {"c": page.state(dim=page.head_dim, dtype="int8"), "r": page.state(carried=True, init=2.0)}

    def forward_cache(self, page):  # type: ignore[no-untyped-def]
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):  # type: ignore[no-untyped-def]
        s = (q * cache["c"] * ops.param("w", dim="D")).sum("dim")
        SEEN.append(s)
        cache["r"] = cache["r"] + ops.mass().sum("head")
        return ops.topk(s.max("head") + cache["r"])


def tensors(tokens: int = 45) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(tokens, 4, generator=g),
        torch.randn(tokens, 4, generator=g),
        torch.randn(3, 4, generator=g),
    )


def test_values_are_those_of_plain_torch() -> None:
    k, v, q = tensors()
    SEEN.clear()
    mass = torch.arange(15.0).view(5, 3)
    found = eager.run(Mean, k, v, q, mass=mass)
    means = k[:40].double().view(5, 8, 4).mean(1)
    torch.testing.assert_close(found.states["c"], means, atol=0.02, rtol=0)
    stored = found.states["c"]
    expected = (q.double()[None] * stored[:, None] * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(-1)
    torch.testing.assert_close(SEEN[0].value, expected)
    assert str(tuple(SEEN[0].type.names)) in repr(SEEN[0]) or "tensor(" in repr(SEEN[0])
    score = expected.amax(1) + 2.0 + mass.sum(1)
    best = 1 + int(score[1:4].argmax())  # pages 0, 4 and 5 are kept by rule: 24 tokens are 3 pages
    assert found.pages == [[0, 4, 5]] and best in (1, 2, 3)
    wide = eager.run(Mean, k, v, q, mass=mass, knobs=Knobs(page_size=8, budget="32"))
    assert wide.pages == [sorted([0, best, 4, 5])]
    assert found.program.ir_hash == trace(Mean).ir_hash
    assert "mean" in repr(found) and "pages: [[0, 4, 5]]" in repr(found)


@pytest.mark.parametrize(
    "bad",
    [
        lambda k, v, q: (k[:7], v[:7], q),
        lambda k, v, q: (k, v[:3], q),
        lambda k, v, q: (k[None], v, q),
        lambda k, v, q: (k, v, q[:, :2]),
    ],
)
def test_other_shapes_are_refused(bad) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(VortexError, match="VF027"):
        eager.run(Mean, *bad(*tensors()))


def test_while_tracing_there_are_no_values() -> None:
    SEEN.clear()
    trace(Mean)
    with pytest.raises(VortexError, match="VF020"):
        _ = SEEN[0].value


@pytest.mark.parametrize("tokens", [8, 9, 15, 16])
def test_short_sequences(tokens: int) -> None:
    found = eager.run(Mean, *tensors(tokens))
    assert found.pages == [list(range(-(-tokens // 8)))]


def test_a_state_of_the_request_is_what_it_starts_as() -> None:
    """One value and not one a page: the first step's."""

    class Before(vFlow):
        knobs = Knobs(page_size=8, budget="32")

        def create_cache(self, page: Any) -> Any:
            kept = page.state(head="G", dim=page.head_dim, carried=True, scope="request", init=0.5)
            return {"mean": page.state(dim=page.head_dim), "kept": kept}

        def forward_cache(self, page: Any) -> Any:
            return {"mean": page.k.mean("token")}

        def forward_indexer(self, q: Any, cache: Any) -> Any:
            old = cache["kept"]
            assert old.value.tolist() == [[0.5] * 16] * 4
            cache["kept"] = q
            return ops.topk(old.dot(cache["mean"], "dim").max("head"))

    k, v, q = torch.randn(100, 16), torch.randn(100, 16), torch.randn(4, 16)
    found = eager.run(Before, k, v, q)
    assert found.states["kept"].shape == (4, 16)
    best = found.states["mean"][1:11].sum(-1).argsort(descending=True)[:1] + 1
    assert set(best.tolist()) <= set(found.pages[0])
