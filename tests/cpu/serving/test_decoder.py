"""A flow on a foreign pool, torch backend: states follow pages, everything selected is dense attention."""

from __future__ import annotations

import pytest
import torch

from tests.cpu.serving.pools import GQA, MLA, Pool, bundle, dense
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.serving.decoder import batch_bucket, state_bytes_per_page

pytestmark = pytest.mark.usefixtures("single_thread")


def _begin(pool: Pool, decoder) -> None:
    pool.prefill(decoder, 0, 37)
    pool.prefill(decoder, 2, 5)
    pool.prefill(decoder, 0, 20)  # a second chunk, from the middle of a page


@pytest.mark.parametrize("geometry", [GQA, MLA])
@pytest.mark.parametrize(
    ("flow", "dtype"),
    [("dense", torch.float32), ("quest", torch.float32), ("quest", torch.float8_e4m3fn)],
    ids=["dense", "quest", "quest-fp8"],
)
def test_everything_selected_is_dense_attention(geometry, flow: str, dtype: torch.dtype) -> None:
    pool = Pool(geometry, page=16, pages=24, requests=3, longest=128, dtype=dtype)
    knobs = {} if flow == "dense" else {"budget": "4096", "page_size": 8}
    decoder = pool.decoder(bundle(flow, **knobs), "torch")
    _begin(pool, decoder)
    for _ in range(10):
        for layer, (q, out) in enumerate(pool.step(decoder, [2, 0])):
            for row, request in enumerate((2, 0)):
                k, v = (x.float() for x in pool.tokens(layer, request))
                want = dense(q[row], k, v, geometry.head_dim**-0.5)
                torch.testing.assert_close(out[row].double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("geometry", [GQA, MLA])
def test_states_are_those_of_every_complete_page(geometry) -> None:
    """Whoever completed the page: a prefill chunk, a later chunk, or a decode step; also after pages changed owner."""
    pool = Pool(geometry, page=16, pages=24, requests=3, longest=128)
    flow = bundle("quest", page_size=8)
    decoder = pool.decoder(flow, "torch")
    _begin(pool, decoder)
    for _ in range(9):
        pool.step(decoder, [0, 2])
    pool.free += sorted({int(s) // 16 for s in pool.slots[2, : pool.lengths[2]]})  # request 2 ends
    pool.lengths[2] = 0
    pool.prefill(decoder, 1, 41)
    pool.step(decoder, [1, 0])
    compiled = backends.get("torch").compile(flow.program, flow.knobs, geometry)
    for layer in range(geometry.layers):
        fresh = compiled.new_states(decoder.pool.pages, torch.device("cpu"))
        k, v = (x.unflatten(0, (-1, 8)).permute(2, 0, 1, 3) for x in (pool.k[layer], pool.v[layer]))
        for request in (0, 1):
            pages = pool.slots[request, : pool.lengths[request] // 8 * 8 : 8].long() // 8
            assert len(pages) >= 4
            compiled.update(fresh, LayerKV(k, v), pages, layer)
            for name, field in fresh.fields.items():
                torch.testing.assert_close(
                    field.data[:, pages], decoder.states[layer].fields[name].data[:, pages]
                )


def test_a_sparse_step_attends_exactly_the_selection() -> None:
    pool = Pool(GQA, page=8, pages=40, requests=2, longest=160)
    flow = bundle("quest", page_size=8, budget="32", dense_layers=(1,))
    decoder = pool.decoder(flow, "torch")
    pool.prefill(decoder, 0, 100)
    pool.prefill(decoder, 1, 70)
    compiled = backends.get("torch").compile(flow.program, flow.knobs, GQA)
    for _ in range(6):
        steps = pool.step(decoder, [0, 1])
        lengths = torch.tensor(pool.lengths)
        table = torch.where(torch.arange(20) * 8 < lengths[:, None], pool.slots[:, ::8] // 8, 0).long()
        for layer in (0, 2):
            q, out = steps[layer]
            view = BatchView(table, lengths, torch.tensor([4, 4]), int(lengths.max()))
            found = compiled.select(q, decoder.states[layer], view, layer)
            assert found.counts.tolist() == [[4, 4], [4, 4]]
            for row in range(2):
                for head in range(2):
                    pages = found.page_ids[row, head, :4]
                    slots = (pages[:, None] * 8 + torch.arange(8)).flatten()[: found.lengths[row, head]]
                    k, v = pool.k[layer][slots, head : head + 1], pool.v[layer][slots, head : head + 1]
                    want = dense(q[row, 2 * head : 2 * head + 2], k, v, 0.25)
                    torch.testing.assert_close(
                        out[row, 2 * head : 2 * head + 2].double(), want, rtol=1e-4, atol=1e-5
                    )
        q, out = steps[1]
        torch.testing.assert_close(
            out[0].double(), dense(q[0], *pool.tokens(1, 0), 0.25), rtol=1e-4, atol=1e-5
        )
    attended, there = decoder.attended().tolist()
    assert attended < 0.5 * there
    assert there == 2 * sum(pool.lengths)


def test_a_layer_attends_where_the_dense_layer_before_it_does() -> None:
    pool = Pool(GQA, page=8, pages=40, requests=2, longest=160)
    flow = bundle("tidaldecode", page_size=8, budget="32", dense_layers=(0, 1), keep_last=1)
    decoder = pool.decoder(flow, "torch")
    pool.prefill(decoder, 0, 100)
    pool.prefill(decoder, 1, 70)
    for _ in range(4):
        steps = pool.step(decoder, [0, 1])
        found = decoder.lists(2)[2]
        for row, length in enumerate(pool.lengths):
            q, k = steps[1][0][row].double(), pool.tokens(1, row)[0].double()
            for head in range(2):
                weights = torch.softmax(q[2 * head : 2 * head + 2] @ k[:, head].T * 0.25, -1).sum(0)
                mass = torch.nn.functional.pad(weights, (0, -length % 8)).unflatten(0, (-1, 8)).sum(-1)
                last = len(mass) - 1
                best = sorted(range(1, last), key=lambda p: -mass[p])[:2]
                want = {int(pool.slots[row, p * 8]) // 8 for p in (0, *best, last)}
                assert set(found.page_ids[row, head, :4].tolist()) == want


def test_a_step_adds_an_entry_for_every_page_left_out() -> None:
    pool = Pool(GQA, page=8, pages=40, requests=2, longest=160)
    flow = bundle("retroinfer", page_size=8, budget="32", keep_last=1)
    decoder = pool.decoder(flow, "torch")
    pool.prefill(decoder, 0, 100)
    pool.prefill(decoder, 1, 70)
    steps = pool.step(decoder, [0, 1])
    q, out = steps[0]
    for row, length in enumerate(pool.lengths):
        k, v = (x.double() for x in pool.tokens(0, row))
        found = decoder.lists(2)[0]
        for head in range(2):
            listed = set(found.page_ids[row, head, : int(found.counts[row, head])].tolist())
            entries = []
            for page in range(-(-length // 8)):
                part = slice(page * 8, min(length, page * 8 + 8))
                keys, values = k[part, head], v[part, head]
                if int(pool.slots[row, page * 8]) // 8 not in listed:
                    keys, values = (x.mean(0, keepdim=True).bfloat16().double() for x in (keys, values))
                    entries += [(keys, values, 8)]
                else:
                    entries += [(keys, values, 1)]
            keys, values = (torch.cat([e[i] for e in entries]) for i in (0, 1))
            counts = torch.cat([torch.full((len(e[0]),), float(e[2])) for e in entries]).double()
            for j in (2 * head, 2 * head + 1):
                weights = torch.softmax(keys @ q[row, j].double() * 0.25 + counts.log(), 0)
                torch.testing.assert_close(out[row, j].double(), weights @ values, rtol=1e-3, atol=1e-4)


def test_layers_that_reuse_a_selection_attend_the_leaders_pages() -> None:
    pool = Pool(GQA, page=16, pages=20, requests=1, longest=128)
    decoder = pool.decoder(bundle("quest", page_size=8, budget="24", reuse_layers=3), "torch")
    assert list(decoder.states) == [0]
    pool.prefill(decoder, 0, 90)
    pool.step(decoder, [0])
    assert list(decoder.lists(1)) == [0]


def test_padding_rows_change_nothing() -> None:
    runs = []
    for padded in (None, 3):
        pool = Pool(GQA, page=16, pages=20, requests=3, longest=128)
        decoder = pool.decoder(bundle("block_topk", page_size=16, budget="32"), "torch")
        pool.prefill(decoder, 1, 60)
        pool.random.manual_seed(3)
        q = torch.randn(1, 4, 16, generator=pool.random)
        slots = pool.grow(1, 1)
        pool.write(0, slots)
        decoder.begin(pool.slots, torch.tensor([1]), torch.tensor([61]), padded=padded)
        rows = torch.cat([q, torch.zeros(decoder.count - 1, 4, 16)])
        runs.append(decoder.attend(0, rows, 0.25)[0])
    torch.testing.assert_close(runs[0], runs[1])


def test_state_bytes_are_those_that_are_allocated() -> None:
    pool = Pool(GQA, page=16, pages=20, requests=1, longest=64)
    decoder = pool.decoder(bundle("quest", page_size=16), "torch")
    page = state_bytes_per_page(decoder.flow.compiled)
    assert decoder.state_bytes == page * decoder.pool.pages * GQA.layers
    assert page == 2 * GQA.kv_heads * GQA.head_dim * 2  # kmin and kmax in bf16


def test_batches_outside_a_graph_have_few_sizes() -> None:
    sizes = {batch_bucket(n, 300) for n in range(1, 301)}
    assert all(batch_bucket(n, 300) >= n for n in range(1, 301))
    assert len(sizes) < 25
