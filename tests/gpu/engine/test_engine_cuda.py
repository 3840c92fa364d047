"""The engine on a GPU: captured decode steps against transformers, itself without graphs, and its own memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.serving_checks import hot_swaps
from tests.cpu.engine.conftest import random_ids, tiny_model
from vortex_core import library
from vortex_core.engine.decode.sampling import Sampling
from vortex_core.engine.engine import Engine
from vortex_core.engine.models.random_weights import random_model
from vortex_core.engine.requests import Request
from vortex_core.engine.throughput import against_reference, everything_selected, reference
from vortex_core.ir.crossover import Crossover
from vortex_core.ir.knobs import Knobs
from vortex_core.specs import load_model

PROMPTS = [random_ids(n, n) for n in (300, 129, 20)]


def _tiny(architecture: str = "qwen3", **options: Any) -> Any:
    return tiny_model(architecture, layers=3, kv_heads=2, group=2, **options).to("cuda")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(_tiny(), max_tokens=16384)


@pytest.fixture(scope="module")
def real() -> Iterator[tuple[Engine, list[Any]]]:
    """Qwen3-1.7B's shape in bf16 with random weights, and what transformers says with them."""
    model, spec = random_model(load_model("qwen3-1.7b"), device="cuda")
    references = [reference(model, random_ids(n, n), 8) for n in (300, 40)]
    yield Engine(model, spec=spec, max_tokens=65536), references
    torch.cuda.empty_cache()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("graphs", [True, False])
def test_tokens_are_those_of_transformers(architecture: str, graphs: bool) -> None:
    model = _tiny(architecture)
    references = [reference(model, ids, 12) for ids in PROMPTS]
    found = against_reference(Engine(model, max_tokens=4096, graphs=graphs), references)
    assert found.agreed == 1.0
    assert found.worst < 1e-3


@pytest.mark.parametrize("flow", ["block_topk", "quest", "streaming", "h2o", "lserve"])
def test_with_everything_selected_tokens_are_dense(engine: Engine, flow: str) -> None:
    assert everything_selected(engine, flow, 16, 1e-3).agreed == 1.0


@pytest.mark.parametrize(
    ("flow", "knobs"),
    [
        ("block_topk", {"budget": "64"}),
        ("quest", {"budget": "64 if layer < 2 else 96", "dense_layers": (0,)}),
        ("quest", {"budget": "64", "reuse_steps": 3, "reuse_layers": 2}),
        ("h2o", {"budget": "96"}),
    ],
)
def test_replayed_steps_are_launched_steps(flow: str, knobs: dict[str, Any]) -> None:
    """A captured graph, step after step through page and bucket boundaries, does what the launches do."""
    results = []
    for graphs in (True, False):
        engine = Engine(_tiny(), max_tokens=4096, graphs=graphs)
        engine.load_flow(library.load(flow).program, Knobs(page_size=16, **knobs))
        prompts = [engine.prefill(ids) for ids in PROMPTS]
        results.append(engine.decode(prompts, max_new_tokens=40))
    replayed, launched = results
    assert replayed.tokens == launched.tokens
    assert replayed.density == pytest.approx(launched.density)
    assert replayed.logprobs[0] == pytest.approx(launched.logprobs[0], abs=1e-4)


@pytest.mark.parametrize("flow", ["block_topk", "twilight"])
def test_short_sequences_attend_to_everything(flow: str) -> None:
    """All: the step of dense attention. Some: on the device, beside rows that select; 129 tokens grow past 150."""
    found: dict[str, Any] = {}
    for name, tokens in (("dense", None), ("all", 1000), ("some", 150), ("none", 0)):
        engine = Engine(_tiny(), max_tokens=4096)
        rule = Crossover(((1, tokens or 0),))
        engine.load_flow(
            None if tokens is None else library.load(flow).program,
            Knobs(page_size=16, budget="48", keep_last=1), crossover=rule,
        )  # fmt: skip
        prompts = [engine.prefill(ids) for ids in PROMPTS]
        found[name] = engine.decode(prompts, max_new_tokens=40, forced=[random_ids(40, n) for n in (1, 2, 3)])
    assert found["all"].logprobs == found["dense"].logprobs
    assert found["all"].density == 1.0 > found["some"].density > found["none"].density
    assert found["some"].logprobs[2] == pytest.approx(found["dense"].logprobs[2], abs=1e-4)
    assert found["some"].logprobs[1][:19] == pytest.approx(found["dense"].logprobs[1][:19], abs=1e-4)
    assert found["some"].logprobs[1][22:] != pytest.approx(found["dense"].logprobs[1][22:], abs=1e-4)
    assert found["some"].logprobs[0] == pytest.approx(found["none"].logprobs[0], abs=1e-4)


def test_stop_tokens_end_a_sequence_where_they_first_appear(engine: Engine) -> None:
    """Captured steps run ahead of the host by one; what is produced behind a stop token is dropped."""
    engine.load_flow(None)
    prompts = [engine.prefill(ids) for ids in PROMPTS]
    free = engine.decode(prompts, max_new_tokens=30).tokens
    stop = [free[0][0], free[1][7], free[2][29]]
    got = engine.decode(prompts, max_new_tokens=30, stop_ids=stop).tokens
    for tokens, ended in zip(free, got, strict=True):
        first = min(i for i, token in enumerate([*tokens, stop[0]]) if token in stop)
        assert ended == tokens[: first + 1]
    for prompt in prompts:
        engine.release(prompt)
    engine.check_integrity()


@pytest.mark.parametrize("flow", ["block_topk", "quest"])
def test_fp8_pools_serve_flows(flow: str) -> None:
    model = _tiny()
    references = [reference(model, ids, 12) for ids in PROMPTS]
    narrow = Engine(model, max_tokens=4096, kv_dtype="fp8_e4m3")
    assert narrow.cache.pool.k.dtype == torch.float8_e4m3fn
    apart = against_reference(narrow, references)
    assert 1e-4 < apart.mean < 0.3, "rounded, and no more than that"
    # Products of fp8 run in fp16, and another page size sums them in another order.
    assert everything_selected(narrow, flow, 16, 0.05).mean < 0.05


def test_scheduled_requests_finish_as_if_alone_with_preemptions(engine: Engine) -> None:
    small = Engine(_tiny(), max_tokens=5 * 128)
    requests = [
        Request(random_ids(100 + 20 * i, i), 250, sampling=Sampling(0.0 if i % 2 else 0.7, seed=i))
        for i in range(5)
    ]
    got = small.generate(requests, max_batch=4)
    assert sum(g.preemptions for g in got), "nothing was preempted"
    engine.load_flow(None)
    for request, generation in zip(requests, got, strict=True):
        assert generation.tokens == engine.generate([request])[0].tokens
    small.check_integrity()
    assert small.cache.blocks.available == small.cache.blocks.total


def test_cached_prefixes_change_nothing(engine: Engine) -> None:
    engine.load_flow(None)
    ids = random_ids(520, 5)
    fresh = engine.prefill(ids)
    want = engine.decode([fresh], max_new_tokens=8)
    engine.release(fresh)
    shared = engine.prefill([*ids[:400], *random_ids(80, 6)])
    again = engine.prefill(ids)
    assert again.blocks[:3] == shared.blocks[:3], "the prefix was not shared"
    got = engine.decode([again], max_new_tokens=8)
    assert got.tokens == want.tokens
    assert got.logprobs[0] == pytest.approx(want.logprobs[0], abs=1e-4)
    for prompt in (shared, again):
        engine.release(prompt)


def test_twenty_hot_swaps_leave_memory_where_it_was(engine: Engine) -> None:
    seconds, memory = hot_swaps(engine, 20)
    assert memory[-1] <= memory[5] + 2**20, "with the same flow"
    assert max(seconds[4:]) < 2.0


def test_the_real_shape_agrees_with_transformers(real: tuple[Engine, list[Any]]) -> None:
    engine, references = real
    found = against_reference(engine, references)
    assert found.worst < 0.1
    assert everything_selected(engine, "quest", 16, 0.1).worst < 0.1


def test_swapping_on_the_real_shape_takes_less_than_two_seconds(real: tuple[Engine, list[Any]]) -> None:
    engine, _ = real
    prompts = [engine.prefill_random(8000, seed) for seed in range(4)]
    for budget in (512, 1024):
        program = library.load("block_topk").program
        report = engine.load_flow(program, Knobs(page_size=16, budget=str(budget)))
        result = engine.decode(prompts, max_new_tokens=20)
        assert result.density < 0.2
    for prompt in prompts:
        engine.release(prompt)
    assert report.seconds < 2.0, "with kernels compiled already"
