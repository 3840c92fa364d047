"""The Triton path of the serving decoder against its torch path: same pool, same steps, same attention."""

from __future__ import annotations

import pytest
import torch

from tests.cpu.serving.pools import GQA, MLA, Pool, bundle, dense
from tests.interp.tuned import attention_tiles
from vortex_core.geometry import Geometry
from vortex_core.ir.crossover import EVERYTHING, Crossover
from vortex_core.serving.step_view import StepView

MLA_SMALL = Geometry(layers=1, kv_heads=1, group=4, head_dim=48, rope_dim=16, value_dim=32)
GQA_SMALL = Geometry(layers=2, kv_heads=2, group=2, head_dim=16, rope_dim=16, value_dim=16)
assert GQA_SMALL.group == GQA.group and MLA_SMALL.head_dim == MLA.head_dim


@pytest.mark.parametrize(
    ("geometry", "flow", "knobs", "dtype"),
    [
        (GQA_SMALL, "dense", {"page_size": 8}, torch.float32),
        (GQA_SMALL, "quest", {"page_size": 8, "budget": "24", "dense_layers": (1,)}, torch.float32),
        (GQA_SMALL, "block_topk", {"page_size": 8, "budget": "4096"}, torch.float32),
        (GQA_SMALL, "retroinfer", {"page_size": 8, "budget": "24"}, torch.float32),
        (GQA_SMALL, "hisa", {"page_size": 8, "budget": "24"}, torch.float32),
        (GQA_SMALL, "tidaldecode", {"page_size": 8, "budget": "24", "dense_layers": (0,)}, torch.float32),
        (GQA_SMALL, "block_topk", {"page_size": 8, "budget": "24"}, torch.float8_e4m3fn),
        (MLA_SMALL, "block_topk", {"page_size": 8, "budget": "24"}, torch.float32),
        (MLA_SMALL, "block_topk", {"page_size": 8, "budget": "24"}, torch.float8_e4m3fn),
    ],
)
def test_steps_equal_those_of_torch(
    geometry: Geometry, flow: str, knobs: dict[str, object], dtype: torch.dtype
) -> None:
    outs = []
    for backend in ("torch", "triton"):
        pool = Pool(geometry, page=8, pages=16, requests=4, longest=64, dtype=dtype)
        decoder = pool.decoder(bundle(flow, **knobs), backend)
        pool.prefill(decoder, 0, 30)
        pool.prefill(decoder, 1, 14)
        steps = [
            pool.step(decoder, [1, 0], padded=4) for _ in range(3)
        ]  # request 1 completes a page in the second
        outs.append([out[:2] for step in steps for _, out in step])
        if flow == "quest":
            attended, there = decoder.attended().tolist()
            assert attended < there
    for want, found in zip(*outs, strict=True):
        torch.testing.assert_close(found, want, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("geometry", [GQA_SMALL, MLA_SMALL])
@pytest.mark.parametrize("flow", ["block_topk", "twilight"])
def test_short_sequences_attend_to_everything(geometry: Geometry, flow: str) -> None:
    """One of two is below the crossover; a captured batch is padded to four."""
    knobs = {"page_size": 8, "budget": "16", "keep_last": 1}
    outs = []
    for backend in ("torch", "triton"):
        pool = Pool(geometry, page=8, pages=24, requests=4, longest=96)
        decoder = pool.decoder(bundle(flow, **knobs), backend, crossover=Crossover(((1, 96), (4, 48))))
        pool.prefill(decoder, 0, 60)
        pool.prefill(decoder, 1, 38)
        for _ in range(3):  # request 1 completes a page in the second
            steps = pool.step(decoder, [1, 0], padded=4)
            outs.append([out[:2] for _, out in steps])
            for layer, (q, out) in enumerate(steps):
                want = dense(q[0], *pool.tokens(layer, 1), geometry.head_dim**-0.5)
                torch.testing.assert_close(out[0].double(), want, rtol=2e-3, atol=2e-4)
        attended, there = decoder.attended().tolist()
        assert attended < there
        pool.step(decoder, [0])  # alone it is below, too
        attended, there = decoder.attended().tolist()
        assert attended == there
    for want, found in zip(outs[:3], outs[3:], strict=True):
        for a, b in zip(want, found, strict=True):
            torch.testing.assert_close(b, a, rtol=2e-3, atol=2e-4)


def test_latent_rows_go_to_the_slots_of_the_pool() -> None:
    knobs = {"page_size": 8, "budget": "24"}
    pool = Pool(MLA_SMALL, page=8, pages=16, requests=2, longest=64)
    decoder = pool.decoder(bundle("block_topk", **knobs), "triton")
    assert decoder.writes_latent
    assert not pool.decoder(bundle("block_topk", **knobs), "torch").writes_latent
    before, slots = pool.k[0].clone(), torch.tensor([3, 40])
    latent, rope = torch.randn(2, 32), torch.randn(2, 16)
    q_latent, q_rope = torch.randn(4, 2, 32).transpose(0, 1), torch.randn(2, 4, 16)
    q = decoder.write_latent(0, slots, latent, rope, q_latent, q_rope)
    assert torch.equal(q, torch.cat([q_latent, q_rope], -1))
    before[slots, 0] = torch.cat([latent, rope], -1)
    assert torch.equal(pool.k[0], before)


def test_lists_are_attended_as_was_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = attention_tiles(monkeypatch)
    knobs = {"page_size": 8, "budget": "24", "dense_layers": (1,)}
    test_steps_equal_those_of_torch(GQA_SMALL, "quest", knobs, torch.float32)
    assert tiles == [32, 16] * 3, "the flow's layer by the tuned configuration, the dense one by the default"


def test_a_replayed_step_reads_its_buffers_again() -> None:
    """What a captured graph does: the same launches on the same buffers, for another batch."""
    geometry = GQA_SMALL
    pool = Pool(geometry, page=8, pages=16, requests=2, longest=64)
    decoder = pool.decoder(bundle("block_topk", page_size=8, budget="16"), "triton")
    pool.prefill(decoder, 0, 40)
    pool.prefill(decoder, 1, 25)
    q = torch.randn(1, 4, 16, generator=pool.random)
    decoder.prepare(1)
    decoder.begin(pool.slots, torch.tensor([0]), torch.tensor([40]))
    first = decoder.attend(0, q, 0.25).clone()
    buffers = [t.data_ptr() for t in (decoder.view.table, decoder.view.lengths, decoder.view.budgets)]
    lists = decoder.lists(1)[0]
    decoder.begin(pool.slots, torch.tensor([1]), torch.tensor([25]))
    other = decoder.attend(0, q, 0.25).clone()
    decoder.begin(pool.slots, torch.tensor([0]), torch.tensor([40]))
    again = decoder.attend(0, q, 0.25)
    assert buffers == [t.data_ptr() for t in (decoder.view.table, decoder.view.lengths, decoder.view.budgets)]
    assert decoder.lists(1)[0].page_ids.data_ptr() == lists.page_ids.data_ptr()
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_the_view_of_a_step_by_kernel_and_by_torch() -> None:
    slots = torch.randperm(64 * 4).view(4, 64).to(torch.int32)
    allowance = torch.tensor([[0, *range(64, 0, -1)], [0, *([7] * 64)]], dtype=torch.int32)
    made = []
    for by_kernel in (True, False):
        view = StepView(4, 64, 8, allowance, torch.device("cpu"))
        view._by_kernel = by_kernel
        view.fill(slots, torch.tensor([2, 0]), torch.tensor([33, 64]), 34)
        assert view.budgets[:, :2].tolist() == [[EVERYTHING, 1], [EVERYTHING, 7]]
        view.fill(slots, torch.tensor([2, 0]), torch.tensor([33, 64]))
        view.fill(slots, torch.tensor([1]), torch.tensor([9]))  # what the first left beyond it stays valid
        view.pad(1, 3)
        made.append(view)
    for name in ("table", "lengths", "budgets"):
        assert torch.equal(getattr(made[0], name), getattr(made[1], name)), name
    assert made[0].table[0, :2].tolist() == (slots[1, :16:8] // 8).tolist()
    assert made[0].budgets[:, :3].tolist() == [[56, 1, 1], [7, 1, 1]]
    assert made[0].lengths.tolist() == [9, 1, 1, 1]
