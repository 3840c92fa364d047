"""What captured steps are padded to, what they look up, and how large a pool is made."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vortex_core import library
from vortex_core.engine import memory
from vortex_core.engine.decode.graph_runner import bucket_of, width_of
from vortex_core.engine.engine import Engine
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.knobs import Knobs
from vortex_core.runtime.budgets import BudgetTable

Make = Callable[..., Any]


def test_batches_are_padded_to_buckets() -> None:
    assert [bucket_of(n) for n in (1, 2, 3, 5, 9, 17, 25, 33, 64, 65, 97)] == [
        1, 2, 4, 8, 16, 24, 32, 40, 64, 96, 128,
    ]  # fmt: skip


def test_tables_are_little_wider_than_needed() -> None:
    for blocks in range(1, 3000):
        width = width_of(blocks)
        assert blocks <= width < blocks + max(8, (1 << (blocks - 1).bit_length()) // 8)
        assert width_of(width) == width
    assert width_of(251) == 256, "32,000 tokens and a little fill 2,048 pages of 16"


@pytest.mark.parametrize("budget", ["256", "max(64, length / 16)", "512 if layer < 1 else 64 + layer"])
def test_budgets_on_the_device_are_the_flows(make_engine: Make, budget: str) -> None:
    engine = make_engine()
    engine.load_flow(library.load("quest").program, Knobs(page_size=16, budget=budget, dense_layers=(2,)))
    flow = engine.flow
    table = BudgetTable(flow.plan, 4096, torch.device("cpu"))
    table.cover(1500, 2100)
    for layer in flow.plan.leaders:
        for length in (1500, 1535, 1536, 1537, 2048, 2049, 2100):
            assert int(table.table[flow.plan.budget_row(layer), length]) == flow.knobs.pages(length, layer, 3)
    table.cover(4000, 4096)
    assert int(table.table[0, 4096]) == flow.knobs.pages(4096, 0, 3)


def test_a_pool_takes_what_weights_and_states_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = Geometry(28, 8, 2, 128, 128, 128)
    assert memory.kv_bytes_per_token(geometry, torch.bfloat16) == 28 * 8 * 256 * 2
    latent = Geometry(47, 1, 20, 576, 64, 512)
    assert memory.kv_bytes_per_token(latent, torch.bfloat16) == 47 * 576 * 2, "a latent is stored once"
    gpu: Any = SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)
    tokens = memory.pool_tokens(geometry, torch.bfloat16, gpu, 0.9)
    assert tokens % 128 == 0
    used = tokens * memory.kv_bytes_per_token(geometry, torch.bfloat16) * (1 + memory.STATE_SHARE)
    assert 0.999 < used / (63 * 2**30) <= 1.0, "71 GiB free or cached, less a tenth of 80"
    assert memory.pool_tokens(geometry, torch.bfloat16, torch.device("cpu"), 0.9) == memory.CPU_TOKENS


def test_states_that_do_not_fit_are_refused_with_numbers(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vortex_core.compiler import backends

    geometry = make_engine().geometry
    flow = backends.get("torch").compile(library.load("quest").program, Knobs(page_size=16), geometry)
    gpu: Any = SimpleNamespace(type="cuda")
    per_page = flow.new_states(1, torch.device("cpu")).bytes_per_page()
    held = SimpleNamespace(bytes_per_page=lambda: per_page, bytes_of_requests=lambda: 0)
    monkeypatch.setattr(flow, "new_states", lambda pages, device, seats: held)
    monkeypatch.setattr(memory, "_cached", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (per_page * 300, 2**40))
    memory.check_states_fit(flow, 100, 3, gpu)
    with pytest.raises(VortexError, match="GiB are free") as caught:
        memory.check_states_fit(flow, 101, 3, gpu)
    assert caught.value.code == "VE019"
    held.bytes_of_requests = lambda: 1
    with pytest.raises(VortexError, match="GiB are free"):
        memory.check_states_fit(flow, 100, 3, gpu)


@pytest.mark.parametrize(("backend", "rule"), [("triton", "TRITON_INTERPRET"), ("oracle", "tested by")])
def test_backends_that_do_not_run_here_are_refused(make_model: Make, backend: str, rule: str) -> None:
    with pytest.raises(VortexError, match=rule) as caught:
        Engine(make_model(), backend=backend)
    assert caught.value.code == "VE018"


def test_random_prompts_are_their_own_and_never_found_by_others(make_engine: Make, ids: Make) -> None:
    engine = make_engine()
    random = engine.prefill_random(300, seed=1)
    assert random.length == 300
    k, _ = engine.cache.pool.layer(0)
    values = k[:, random.blocks[0] * 128 : random.blocks[0] * 128 + 128]
    assert 0.9 < float(values.std()) < 1.1
    with pytest.raises(VortexError, match="random keys and values"):
        engine.prefill(random.token_ids)
    other = engine.prefill([*random.token_ids[:200], *ids(50, 2)])
    assert not set(other.blocks) & set(random.blocks)
    engine.check_integrity()
    engine.release(random)
    engine.release(other)
    assert engine.cache.blocks.available == engine.cache.blocks.total
