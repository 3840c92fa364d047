"""Flows in the engine: hot swap, page states as pages complete, knobs, request-local state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tests.cpu.engine.spy import Spy
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.interface import CompiledFlow, LayerKV
from vortex_core.engine.engine import Engine
from vortex_core.ir.knobs import Knobs
from vortex_core.page_list import PageList
from vortex_core.sandbox.load import trace_source

Make = Callable[..., Any]
EVERYTHING = "length"

# Request-local: a carried value per page, fed by the mass of the previous step.
CARRIED = '''
from vortex_core import ops, register, vFlow

@register("remember")
class Remember(vFlow):
    """Prefers pages that once had much attention; the others by similarity."""

    def create_cache(self, page):
        return {"c": page.state(dim=page.head_dim), "peak": page.state(dtype="fp32", carried=True)}

    def forward_cache(self, page):
        return {"c": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        peak = ops.maximum(cache["peak"], ops.mass().max("head"))
        cache["peak"] = peak
        return ops.topk(ops.maximum((q.mean("head") * cache["c"]).sum("dim"), ops.exp(peak)))
'''


def _compile(engine: Engine, flow: str, backend: str = "torch", **knobs: Any) -> CompiledFlow:
    traced = trace_source(CARRIED) if flow == "carried" else library.load(flow)
    return backends.get(backend).compile(traced.program, Knobs(**knobs), engine.geometry)


def _spy(engine: Engine, flow: str, **knobs: Any) -> Spy:
    spy = Spy(_compile(engine, flow, **knobs))
    engine.load_compiled(spy)
    return spy


@pytest.mark.parametrize("page_size", [8, 16, 64, 128])
@pytest.mark.parametrize("flow", ["block_topk", "quest", "streaming", "retroinfer"])
def test_with_everything_selected_tokens_are_dense(
    make_engine: Make, ids: Make, flow: str, page_size: int
) -> None:
    engine = make_engine()
    prompts = [engine.prefill(ids(n, n)) for n in (3, 64, 130, 700)]
    dense = engine.decode(prompts, max_new_tokens=20)
    traced = library.load(flow)
    report = engine.load_flow(traced.program, Knobs(page_size=page_size, budget=EVERYTHING))
    sparse = engine.decode(prompts, max_new_tokens=20)
    assert sparse.tokens == dense.tokens
    assert (sparse.density, sparse.ir_hash) == (1.0, traced.ir_hash)
    assert report.ir_hash == traced.ir_hash
    engine.load_flow(None)
    assert engine.decode(prompts, max_new_tokens=20).tokens == dense.tokens
    engine.check_integrity()


def test_the_dense_program_is_dense(make_engine: Make, ids: Make) -> None:
    engine = make_engine()
    prompt = engine.prefill(ids(300, 0))
    dense = engine.decode([prompt], max_new_tokens=5)
    report = engine.load_flow(library.load("dense").program)
    again = engine.decode([prompt], max_new_tokens=5)
    assert (again.tokens, again.density) == (dense.tokens, 1.0)
    assert (report.state_bytes, again.ir_hash) == (0, library.load("dense").ir_hash)


@pytest.mark.parametrize("flow", ["block_topk", "quest", "streaming", "carried", "retroinfer"])
def test_backends_decode_the_same(make_engine: Make, ids: Make, flow: str) -> None:
    engine = make_engine()
    prompts = [engine.prefill(ids(n, n)) for n in (7, 200, 333)]
    results = []
    for backend in ("oracle", "torch"):
        engine.load_compiled(_compile(engine, flow, backend, page_size=8, budget="64", keep_last=1))
        results.append(engine.decode(prompts, max_new_tokens=18))
    assert results[0].tokens == results[1].tokens
    assert results[0].density == results[1].density < 0.6
    torch.testing.assert_close(
        torch.tensor(results[0].logprobs), torch.tensor(results[1].logprobs), atol=1e-3, rtol=1e-3
    )
    engine.check_integrity()


def test_an_entry_for_every_page_left_out_brings_answers_nearer_to_dense(
    make_engine: Make, ids: Make
) -> None:
    engine = make_engine()
    prompts = [engine.prefill(ids(n, n)) for n in (500, 700)]
    engine.load_flow(None)
    dense = torch.tensor(engine.decode(prompts, max_new_tokens=1).logprobs)
    gaps = []
    for flow in ("block_topk", "retroinfer"):
        engine.load_compiled(_compile(engine, flow, page_size=8, budget="32", keep_last=1))
        gaps.append((torch.tensor(engine.decode(prompts, max_new_tokens=1).logprobs) - dense).abs().mean())
    assert gaps[1] < gaps[0]


@pytest.mark.parametrize("flow", ["quest", "carried"])
def test_a_batch_decodes_as_its_members_do_alone(make_engine: Make, ids: Make, flow: str) -> None:
    engine = make_engine()
    prompts = [engine.prefill(ids(n, n)) for n in (20, 200, 333)]
    engine.load_compiled(_compile(engine, flow, page_size=16, budget="96", reuse_steps=3))
    together = engine.decode(prompts, max_new_tokens=20)
    for i, prompt in enumerate(prompts):
        assert engine.decode([prompt], max_new_tokens=20).tokens[0] == together.tokens[i]
    stop = together.tokens[1][6]
    stopped = engine.decode(prompts, max_new_tokens=20, stop_ids=[stop])
    for whole, cut in zip(together.tokens, stopped.tokens, strict=True):
        assert cut == (whole[: whole.index(stop) + 1] if stop in whole else whole), "leaving does not disturb"


def test_a_swapped_flow_decodes_as_in_a_fresh_engine(make_engine: Make, ids: Make) -> None:
    engine = make_engine()
    prompts = [engine.prefill(ids(n, n)) for n in (200, 777)]
    candidates = [
        ("quest", {"page_size": 16, "budget": "128"}),
        ("carried", {"page_size": 32, "budget": "160"}),
        ("block_topk", {"page_size": 64, "budget": "256"}),
        ("quest", {"page_size": 8, "budget": "64", "dense_layers": (0,)}),
        ("quest", {"page_size": 16, "budget": "128"}),
    ]
    available = engine.cache.blocks.available
    swapped = []
    for flow, knobs in candidates:
        engine.load_compiled(_compile(engine, flow, **knobs))
        swapped.append(engine.decode(prompts, max_new_tokens=40).tokens)
        assert engine.cache.blocks.available == available
    assert swapped[0] == swapped[-1]
    for (flow, knobs), tokens in zip(candidates[:-1], swapped, strict=False):
        fresh = make_engine()
        fresh.load_compiled(_compile(fresh, flow, **knobs))
        assert fresh.decode([fresh.prefill(p.token_ids) for p in prompts], max_new_tokens=40).tokens == tokens


def test_states_are_computed_once_per_page_and_when_it_completes(make_engine: Make, ids: Make) -> None:
    engine = make_engine(layers=2)
    prompt = engine.prefill(ids(150, 0))  # 149 cached: block 0 full, 21 tokens in block 1
    spy = _spy(engine, "quest", page_size=8, budget="64")
    first, second = (b * 16 for b in prompt.blocks)
    whole = (*range(first, first + 16), second, second + 1)
    assert spy.updates == [(0, whole), (1, whole)]
    spy.updates.clear()
    engine.decode([prompt], max_new_tokens=12)  # tokens 149..160 complete pages 18 (at 152) and 19 (at 160)
    assert spy.updates == [(layer, (second + i,)) for i in (2, 3) for layer in (0, 1)]
    spy.updates.clear()
    engine.decode([prompt, prompt], max_new_tokens=2)  # the second fork has a copy of block 1
    assert len(spy.updates) == 2
    assert all(len(pages) == 2 and not set(pages) & set(whole) for _, pages in spy.updates)


def test_blocks_that_change_hands_lose_their_states(make_engine: Make, ids: Make) -> None:
    engine = make_engine(max_tokens=640)
    traced = library.load("quest")
    knobs = Knobs(page_size=8, budget="64")
    engine.load_flow(traced.program, knobs)
    for seed in range(4):
        prompt = engine.prefill(ids(500, seed))
        got = engine.decode([prompt], max_new_tokens=20).tokens
        engine.release(prompt)
        fresh = make_engine(max_tokens=640)
        fresh.load_flow(traced.program, knobs)
        assert fresh.decode([fresh.prefill(prompt.token_ids)], max_new_tokens=20).tokens == got


def test_dense_for_a_while(make_engine: Make, ids: Make) -> None:
    engine = make_engine(max_tokens=1280)
    first, second = (engine.prefill(ids(500, seed)) for seed in (0, 1))
    dense = engine.decode([first], max_new_tokens=20).tokens
    quest, knobs = library.load("quest"), Knobs(page_size=8, budget="64")
    engine.load_flow(quest.program, knobs)
    sparse = engine.decode([first], max_new_tokens=20).tokens
    with engine.dense():
        assert engine.decode([first], max_new_tokens=20).tokens == dense
        engine.release(second)
        second = engine.prefill(ids(500, 2))  # takes over blocks whose states the flow had computed
    assert engine.decode([first], max_new_tokens=20).tokens == sparse
    fresh = make_engine()
    fresh.load_flow(quest.program, knobs)
    expected = fresh.decode([fresh.prefill(second.token_ids)], max_new_tokens=20).tokens
    assert engine.decode([second], max_new_tokens=20).tokens == expected


def test_dense_layers_and_layer_groups(make_engine: Make, ids: Make) -> None:
    engine = make_engine(layers=6)
    prompt = engine.prefill(ids(400, 0))
    spy = _spy(engine, "quest", page_size=16, budget="64", dense_layers=(0, 3), reuse_layers=3)
    assert engine.flow is not None
    assert engine.flow.plan.leader == (None, 1, 1, None, 1, 5)
    result = engine.decode([prompt], max_new_tokens=2)
    assert [layer for layer, _, _ in spy.selects] == [1, 5, 1, 5]
    assert {layer for layer, _ in spy.updates} == {1, 5}
    assert result.density == pytest.approx((4 / 25 + 4 / 26) / 2, rel=0.01)


def test_budgets_follow_length_and_layer(make_engine: Make, ids: Make) -> None:
    engine = make_engine(layers=3)
    prompts = [engine.prefill(ids(n, n)) for n in (160, 640)]
    spy = _spy(engine, "quest", page_size=16, budget="64 if layer < 2 else length / 4")
    engine.decode(prompts, max_new_tokens=2)
    assert spy.selects == [
        (layer, length, budget)
        for length, last in ((640, (3, 10)), (641, (3, 11)))
        for layer, budget in ((0, (4, 4)), (1, (4, 4)), (2, last))
    ]


def test_a_selection_is_kept_for_some_steps_and_the_newest_page_joins(make_engine: Make, ids: Make) -> None:
    engine = make_engine(layers=2)
    prompt = engine.prefill(ids(206, 0))
    spy = _spy(engine, "quest", page_size=8, budget="32", reuse_steps=6, keep_last=1, keep_first=0)
    attended: list[tuple[int, int, Sequence[int], int]] = []
    original = engine.flow.compiled if engine.flow else None
    assert original is spy

    import vortex_core.engine.decode.batch as batch

    inner = batch.sparse_decode

    def watch(q: torch.Tensor, kv: LayerKV, pages: PageList, scale: float, **kw: Any) -> Any:
        attended.append((int(pages.counts[0, 0]), int(pages.lengths[0, 0]), pages.page_ids[0, 0].tolist(), 0))
        return inner(q, kv, pages, scale, **kw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "sparse_decode", watch)
        engine.decode([prompt], max_new_tokens=8)
    assert [(layer, length) for layer, length, _ in spy.selects] == [(0, 206), (1, 206), (0, 212), (1, 212)]
    layer0 = attended[::2]
    # Lengths 206, 207, 208 end in page 25; 209, 210, 211 in page 26, which joins.
    assert [count for count, _, _, _ in layer0] == [4, 4, 4, 5, 5, 5, 4, 4]
    assert [tokens for _, tokens, _, _ in layer0] == [30, 31, 32, 33, 34, 35, 28, 29]
    table = [b * 16 + i for b in engine.cache.prompts[prompt.token_ids].blocks for i in range(16)]
    kept = layer0[0][2][:4]
    assert all(ids_[:4] == kept for _, _, ids_, _ in layer0[:6])
    assert kept[-1] == table[25]
    assert layer0[3][2][4] == table[26]


def test_request_local_flows_share_no_pages_and_start_afresh(make_engine: Make, ids: Make) -> None:
    engine = make_engine()
    prompt = engine.prefill(ids(500, 0))
    engine.load_compiled(_compile(engine, "carried", page_size=16, budget="96"))
    first = engine.decode([prompt, prompt], max_new_tokens=20)
    assert first.tokens[0] == first.tokens[1]
    assert engine.decode([prompt], max_new_tokens=20).tokens[0] == first.tokens[0]
    tables: list[torch.Tensor] = []
    engine.decode(
        [prompt, prompt],
        max_new_tokens=1,
        recorder=lambda layer, q, kv, view: tables.append(view.block_table),
    )
    used = tables[0][:, :31]
    assert len(set(used.flatten().tolist())) == used.numel()
    assert not set(used.flatten().tolist()) & set(engine.page_table([prompt], 16)[0, :31].tolist())
    engine.check_integrity()
