"""Mass of a dense layer in the same step: what a flow is handed is what the layer before attended to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.cpu.engine.spy import Spy
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, LayerKV, StateStore
from vortex_core.engine.engine import Engine
from vortex_core.engine.results import DecodeResult
from vortex_core.errors import VortexError
from vortex_core.ir.knobs import Knobs
from vortex_core.page_list import PageList

Make = Callable[..., Any]
STEPS = 10


class Handed(Spy):
    """Writes down the mass that each selection is handed."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.handed: list[tuple[int, torch.Tensor]] = []

    def select(self, q: torch.Tensor, states: StateStore, view: BatchView, layer: int) -> PageList:
        assert view.dense_mass is not None
        self.handed.append((layer, view.dense_mass.clone()))
        return super().select(q, states, view, layer)


class Attended:
    """The dense probabilities of every layer and step, by page: `[layer, mass of each sequence]` in order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen: list[tuple[int, list[torch.Tensor]]] = []

    def __call__(self, layer: int, q: torch.Tensor, kv: LayerKV, view: BatchView) -> None:
        masses = []
        for row, table, n in zip(q, view.block_table, view.lengths.tolist(), strict=True):
            keys = kv.k[:, table[: -(-n // self.size)]].flatten(1, 2)[:, :n].double()
            scores = torch.einsum("hgd,htd->hgt", row.double().unflatten(0, (len(keys), -1)), keys) / 4.0
            weights = torch.softmax(scores, -1).flatten(0, 1)
            masses.append(weights[:, : n // self.size * self.size].unflatten(-1, (-1, self.size)).sum(-1))
        self.seen.append((layer, masses))


def compiled(engine: Engine, flow: str, backend: str = "torch", **knobs: Any) -> Any:
    return backends.get(backend).compile(library.load(flow).program, Knobs(**knobs), engine.geometry)


def decode(engine: Engine, flow: Any, prompts: Any, **options: Any) -> DecodeResult:
    engine.load_compiled(flow)
    return engine.decode(prompts, max_new_tokens=STEPS, **options)


@pytest.mark.parametrize(("group", "kv_heads"), [(1, 2), (3, 2), (16, 1)])
@pytest.mark.parametrize("page_size", [8, 64, 128])
def test_a_layer_is_handed_what_the_nearest_dense_layer_before_attends_to(
    make_engine: Make, ids: Make, page_size: int, group: int, kv_heads: int
) -> None:
    engine = make_engine(layers=5, group=group, kv_heads=kv_heads)
    prompts = [engine.prefill(ids(n, n)) for n in (page_size - 1, page_size, page_size + 1, 300)]
    flow = Handed(
        compiled(
            engine, "tidaldecode", page_size=page_size, budget="384", dense_layers=(0, 2), reuse_layers=1
        )
    )
    attended = Attended(page_size)
    decode(engine, flow, prompts, recorder=attended)
    handed = iter(flow.handed)
    newest: list[torch.Tensor] = []
    for layer, masses in attended.seen:
        if layer in (0, 2):
            newest = masses
            continue
        at, found = next(handed)
        assert at == layer
        for row, want in enumerate(newest):
            torch.testing.assert_close(found[row, :, : want.shape[-1]].double(), want, atol=1e-5, rtol=1e-4)
    assert next(handed, None) is None


@pytest.mark.parametrize("flow", ["tidaldecode", "delta", "omnikv"])
def test_backends_decode_the_same(make_engine: Make, ids: Make, flow: str) -> None:
    engine = make_engine(layers=4)
    prompts = [engine.prefill(ids(n, n)) for n in (7, 200, 333)]
    knobs = {"page_size": 8, "budget": "64", "keep_last": 2, "dense_layers": (0, 2), "reuse_layers": 2}
    oracle, torch_ = (
        decode(engine, compiled(engine, flow, name, **knobs), prompts) for name in ("oracle", "torch")
    )
    assert oracle.tokens == torch_.tokens
    assert oracle.density == torch_.density < 0.6


def test_a_batch_decodes_as_its_members_do_alone_also_on_shared_pages(make_engine: Make, ids: Make) -> None:
    """Mass belongs to a row of the batch, not to a page: sequences with a common prefix share its pages."""
    engine = make_engine(layers=4)
    flow = compiled(
        engine, "tidaldecode", page_size=16, budget="64", dense_layers=(0, 2), reuse_layers=2, reuse_steps=3
    )
    assert not flow.program.is_request_local
    common = ids(256, 1)
    prompts = [engine.prefill(common + ids(n, n)) for n in (5, 70)] + [engine.prefill(ids(20, 3))]
    together = decode(engine, flow, prompts)
    for i, prompt in enumerate(prompts):
        assert decode(engine, flow, [prompt]).tokens[0] == together.tokens[i]
    engine.check_integrity()


def test_with_everything_selected_tokens_are_dense(make_engine: Make, ids: Make) -> None:
    engine = make_engine(layers=4)
    prompts = [engine.prefill(ids(n, n)) for n in (3, 64, 700)]
    dense = engine.decode(prompts, max_new_tokens=STEPS)
    flow = compiled(engine, "delta", page_size=16, budget="length", dense_layers=(0, 2))
    assert decode(engine, flow, prompts).tokens == dense.tokens


def test_a_model_whose_first_layer_selects_is_refused(make_engine: Make) -> None:
    engine = make_engine(layers=4)
    with pytest.raises(VortexError) as refused:
        engine.load_flow(library.load("tidaldecode").program, Knobs(dense_layers=(1, 2)))
    assert refused.value.code == "VF067"
    assert "dense_layers=(1, 2)" in refused.value.message
