"""The SGLang backend below a flow's crossover, on a stand-in for SGLang: who attends, and which states pages have."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.cpu.serving.pools import GQA, Pool, bundle, dense
from vortex_core.ir.crossover import Crossover
from vortex_core.serving.sglang.status import Status

KNOBS = {"page_size": 8, "budget": "16", "keep_last": 1}
SCALE = GQA.head_dim**-0.5


class Mode:
    """As SGLang's `ForwardMode.DECODE`."""

    def is_decode(self) -> bool:
        return True

    def is_idle(self) -> bool:
        return False


class Inner:
    """A prefill backend that attends to every token of its batch."""

    needs_cpu_seq_lens = False

    def __init__(self, pool: Pool) -> None:
        self.pool, self.prepared, self.layers = pool, 0, 0

    def init_forward_metadata(self, batch: Any) -> None:
        self.prepared += 1

    def init_forward_metadata_out_graph(self, batch: Any, in_capture: bool = False) -> None:
        self.prepared += 1

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        self.room = max_bs

    def forward_decode(
        self, q: Any, k: Any, v: Any, layer: Any, batch: Any, save_kv_cache: bool = True
    ) -> Any:
        assert save_kv_cache
        self.layers += 1
        store(self.pool, layer, batch.out_cache_loc, k, v)
        rows = q.view(len(batch.requests), -1, GQA.head_dim)
        found = [
            dense(row, *self.pool.tokens(layer.layer_id, r), SCALE)
            for row, r in zip(rows, batch.requests, strict=True)
        ]
        return torch.stack(found).to(q.dtype).flatten(1)


def store(pool: Pool, layer: Any, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    pool.k[layer.layer_id][slots], pool.v[layer.layer_id][slots] = k, v


@pytest.fixture
def backend_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module over a stand-in for the parts of SGLang that it imports."""

    def module(name: str, **content: Any) -> None:
        found = ModuleType(name)
        vars(found).update(content)
        monkeypatch.setitem(sys.modules, name, found)

    for name in ("sglang", "sglang.srt", "sglang.srt.layers", "sglang.srt.layers.attention", "sglang.srt.mem_cache",
                 "sglang.srt.plugins"):  # fmt: skip
        module(name)
    module("sglang.srt.layers.attention.base_attn_backend", AttentionBackend=type("AttentionBackend", (), {}))
    module("sglang.srt.mem_cache.memory_pool", KVWriteLoc=lambda slots: slots)
    from vortex_core.serving.sglang import dense_graphs

    registry = SimpleNamespace(_patched={dense_graphs.CAPTURE, dense_graphs.REPLAY})
    module("sglang.srt.plugins.hook_registry", HookRegistry=registry, HookType=None)
    name = "vortex_core.serving.sglang.backend"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)
    dense_graphs._active.clear()


class Server:
    """SGLang's part of decode steps over a pool."""

    def __init__(self, module: ModuleType, crossover: Crossover) -> None:
        self.pool = Pool(GQA, page=8, pages=24, requests=4, longest=96)
        self.inner = Inner(self.pool)
        decoder = self.pool.decoder(bundle("quest", **KNOBS), "torch", crossover=crossover)
        write = SimpleNamespace(
            set_kv_buffer=lambda layer, slots, k, v, *scales: store(self.pool, layer, slots, k, v)
        )
        runner = SimpleNamespace(
            token_to_kv_pool=write, req_to_token_pool=SimpleNamespace(req_to_token=self.pool.slots)
        )
        self.status = Status(None, {"ir_hash": "x"}, speaks=True)
        self.backend = module.VortexAttnBackend(self.inner, "fa3", decoder, runner, self.status)
        self.random = torch.Generator().manual_seed(3)

    def step(self, requests: list[int], *, graph: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Query and output of each layer."""
        slots = torch.cat([self.pool.grow(r, 1) for r in requests])
        lengths = torch.tensor([self.pool.lengths[r] for r in requests])
        batch = SimpleNamespace(
            forward_mode=Mode(), batch_size=len(requests), requests=requests, req_pool_indices=torch.tensor(requests),
            seq_lens=lengths, seq_lens_cpu=lengths, out_cache_loc=slots,
        )  # fmt: skip
        prepare = (
            self.backend.init_forward_metadata_out_graph if graph else self.backend.init_forward_metadata
        )
        prepare(batch)
        found = []
        for i in range(GQA.layers):
            layer = SimpleNamespace(
                layer_id=i, scaling=SCALE, tp_q_head_num=4, v_head_dim=16, qk_head_dim=16, k_scale=None, v_scale=None,
                k_scale_float=None, v_scale_float=None, is_cross_attention=False, logit_cap=0, sliding_window_size=-1,
            )  # fmt: skip
            q, k, v = (torch.randn(len(requests), n, generator=self.random) for n in (64, 32, 32))
            k, v = k.view(-1, 2, 16), v.view(-1, 2, 16)
            found.append((q, self.backend.forward_decode(q, k, v, layer, batch)))
        return found

    def gap(self, requests: list[int], step: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
        """The largest distance of each row from attention to everything, over layers."""
        gaps = [0.0] * len(requests)
        for i, (q, out) in enumerate(step):
            for row, r in enumerate(requests):
                want = dense(q[row].view(4, 16), *self.pool.tokens(i, r), SCALE).flatten()
                gaps[row] = max(gaps[row], float((out[row] - want).abs().max()))
        return gaps


@pytest.mark.parametrize("graph", [False, True])
def test_short_batches_are_the_prefill_backends_and_mixed_ones_the_flows(
    backend_module: ModuleType, graph: bool
) -> None:
    server = Server(backend_module, Crossover(((1, 45),)))
    backend, pool = server.backend, server.pool
    assert backend.needs_cpu_seq_lens and backend.two_graphs
    backend.init_cuda_graph_state(4, 4)
    assert server.inner.room == 4
    backend.dense_sizes = {1, 2}  # as if their graphs were captured
    pool.prefill(backend.decoder, 0, 60)
    pool.prefill(backend.decoder, 1, 36)
    short = [server.step([1], graph=graph) for _ in range(4)]  # to 40 tokens: a page ends
    assert server.inner.prepared == 4 and server.inner.layers == 4 * GQA.layers
    assert server.gap([1], short[-1])[0] < 1e-5
    assert server.status.passed_by == 4
    attended, there = backend.decoder.attended().tolist()
    assert attended == there == 40 * GQA.kv_heads
    assert backend.decoder._pending, "the page that the last one completed"
    mixed = server.step([0, 1], graph=graph)
    assert not backend.decoder._pending and server.inner.prepared == 4
    long_gap, short_gap = server.gap([0, 1], mixed)
    assert short_gap < 1e-4 < long_gap, (
        "the short row attends to everything on the device, the long one does not"
    )
    attended, there = backend.decoder.attended().tolist()
    assert attended < there


def test_states_of_pages_completed_meanwhile_are_those_of_their_content(backend_module: ModuleType) -> None:
    server = Server(backend_module, Crossover(((1, 45),)))
    server.backend.dense_sizes = {1}
    decoder, pool = server.backend.decoder, server.pool
    pool.prefill(decoder, 1, 36)
    for _ in range(9):  # 45 tokens: the last step is the flow's
        server.step([1], graph=True)
    assert server.status.passed_by == 8
    page = int(pool.slots[1, 32]) // 8

    def held() -> list[torch.Tensor]:
        return [
            field.data[:, page].clone()
            for states in decoder.states.values()
            for field in states.fields.values()
        ]

    kept = held()
    assert kept and all(bool(data.any()) for data in kept)
    decoder.flow.complete(torch.tensor([page]))
    assert all(torch.equal(a, b) for a, b in zip(kept, held(), strict=True))


def test_batches_without_a_second_graph_keep_the_flows(backend_module: ModuleType) -> None:
    """A size that was not captured twice: on the device every row attends to everything."""
    server = Server(backend_module, Crossover(((1, 45),)))
    server.pool.prefill(server.backend.decoder, 1, 36)
    step = server.step([1], graph=True)
    assert server.inner.prepared == 0 and server.status.passed_by == 0
    assert server.gap([1], step)[0] < 1e-4
