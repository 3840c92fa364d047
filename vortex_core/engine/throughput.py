"""Measures serving speed: fixed work, dense and sparse in turns, parity before any figure.

Shared by `benchmarks/serving.py` and `vortex-search bench`. Times are of batched decode steps by the device's clock
where there is a GPU, and of whole steps by the wall clock elsewhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vortex_core import library
from vortex_core.engine.engine import Engine
from vortex_core.engine.errors import parity_lost
from vortex_core.engine.kv.cache import Prompt
from vortex_core.engine.results import SwapReport
from vortex_core.engine.scheduler import Request, Scheduler
from vortex_core.ir.crossover import NEVER, Crossover
from vortex_core.ir.flow import Flow

# Launches that are attention: states, scores, selection, attention itself, and the writing of K and V where that is a
# launch of its own (in fused layers it is part of the one that rotates).
ATTENTION_KERNELS = (
    "keep_lists_kernel", "kv_write_kernel", "latent_decode_kernel", "list_decode_kernel", "merge_", "page_mass_kernel",
    "paged_decode_kernel", "plan_kernel", "row_kernel", "score_kernel", "select_kernel", "update_kernel",
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """What transformers' own model says: greedy continuation of a prompt, and its log-probabilities."""

    token_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Parity:
    """Agreement of two ways to decode the same tokens.

    Attributes:
        mean: mean difference of a token's log-probability, same tokens fed.
        worst: the largest.
        agreed: share of greedy tokens that are equal, up to the first difference of each sequence.
        density: pages attended of all pages. Below 1 in a comparison with dense attention the flow left pages out
            by their scores' value, and no agreement is to be expected.
    """

    mean: float
    worst: float
    agreed: float
    density: float = 1.0


@dataclass(frozen=True)
class DecodeRow:
    """Decode speed of one flow for one batch and context.

    Attributes:
        step_ms: median of all steps of all rounds (TPOT: each gives every sequence one token).
        step_ms_p95: their 95th percentile.
        tokens_per_second: batch over the median step.
        speedup: of dense steps, measured in turns with these, over these; 1 for dense.
        density: pages attended of all pages.
        page_size: tokens; 0 for dense.
        swap_seconds: loading the flow, with `capture_seconds` for its graphs.
        memory_gib: allocated on the device.
    """

    flow: str
    ir_hash: str
    batch: int
    context: int
    new_tokens: int
    rounds: int
    step_ms: float
    step_ms_p95: float
    dense_step_ms: float
    tokens_per_second: float
    speedup: float
    density: float
    page_size: int
    state_mib: float
    memory_gib: float
    swap_seconds: float
    capture_seconds: float


@dataclass(frozen=True)
class ServeRow:
    """Requests through the scheduler. Milliseconds; TTFT from submission, all being submitted at once."""

    flow: str
    ir_hash: str
    requests: int
    context: int
    new_tokens: int
    seconds: float
    output_tokens_per_second: float
    ttft_ms_p50: float
    ttft_ms_p95: float
    tpot_ms_p50: float
    tpot_ms_p95: float
    preemptions: int


def _load(engine: Engine, flow: Flow | None, crossover: Crossover = NEVER) -> SwapReport:
    if flow is None:
        return engine.load_flow(None)
    return engine.load_flow(flow.program, flow.knobs, crossover=crossover)


def _name(flow: Flow | None) -> str:
    return "dense" if flow is None else flow.name


def flows_named(names: Sequence[str], *, page_size: int, budget: str) -> list[Flow | None]:
    """Library flows by name, with a budget and a page size, which `name@16` gives itself; `dense` is None."""
    made: list[Flow | None] = []
    for wanted in names:
        name, _, own = wanted.partition("@")
        if name == "dense":
            made.append(None)
            continue
        made.append(library.load(name).with_knobs(page_size=int(own or page_size), budget=budget).flow)
    return made


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of some values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 100) * len(ordered) // 100) - 1))]


def random_ids(length: int, vocab: int, seed: int) -> tuple[int, ...]:
    """Random token ids, of no text."""
    return tuple(torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


@torch.inference_mode()
def reference(model: Any, token_ids: Sequence[int], steps: int) -> Reference:
    """Greedy tokens of a transformers model, a full forward pass each. Before an engine takes the model over."""
    ids = torch.tensor([list(token_ids)], device=model.device)
    tokens, logprobs = [], []
    for _ in range(steps):
        last = model(input_ids=ids, use_cache=False).logits[0, -1].float().log_softmax(-1)
        token = int(last.argmax())
        tokens.append(token)
        logprobs.append(float(last[token]))
        ids = torch.cat([ids, torch.tensor([[token]], device=model.device)], 1)
    return Reference(tuple(token_ids), tuple(tokens), tuple(logprobs))


def against_reference(engine: Engine, references: Sequence[Reference]) -> Parity:
    """The loaded flow (or dense attention) against transformers."""
    prompts = [engine.prefill(r.token_ids) for r in references]
    steps = len(references[0].tokens)
    forced = engine.decode(prompts, max_new_tokens=steps, forced=[r.tokens for r in references])
    greedy = engine.decode(prompts, max_new_tokens=steps)
    for prompt in prompts:
        engine.release(prompt)
    return _parity(
        [list(r.tokens) for r in references], [list(r.logprobs) for r in references], greedy.tokens,
        forced.logprobs,
    )  # fmt: skip


def everything_selected(engine: Engine, name: str, page_size: int, tolerance: float) -> Parity:
    """`matches_dense` of a library flow."""
    (flow,) = flows_named([name], page_size=page_size, budget="length")
    return matches_dense(engine, flow, tolerance)


def matches_dense(engine: Engine, flow: Flow | None, tolerance: float) -> Parity:
    """A flow with an unlimited budget against dense attention, on real prompts; no flow is loaded afterwards.

    A top-p or a threshold leaves pages out whatever the budget: see `Parity.density`.

    Raises:
        VortexError: `VE025` where log-probabilities differ by more than `tolerance` on average although every page
            was selected.
    """
    vocab = engine.spec.vocab
    _load(engine, None if flow is None else flow.with_knobs(budget="length"))
    prompts = [engine.prefill(random_ids(n, vocab, n)) for n in (301, 128, 45)]
    with engine.dense():
        dense = engine.decode(prompts, max_new_tokens=8)
    forced = engine.decode(prompts, max_new_tokens=8, forced=dense.tokens)
    greedy = engine.decode(prompts, max_new_tokens=8)
    for prompt in prompts:
        engine.release(prompt)
    engine.load_flow(None)
    found = replace(
        _parity(dense.tokens, dense.logprobs, greedy.tokens, forced.logprobs), density=forced.density
    )
    by_value = flow is not None and any(node.op in ("topp", "threshold") for node in flow.program.index.nodes)
    if by_value and found.density < 1.0:
        return found
    if not found.mean <= tolerance:  # NaN is no parity
        raise parity_lost(_name(flow), found.mean, tolerance)
    return found


def _parity(
    want: Sequence[Sequence[int]],
    want_logprobs: Sequence[Sequence[float]],
    got: Sequence[Sequence[int]],
    got_logprobs: Sequence[Sequence[float]],
) -> Parity:
    apart = [
        abs(a - b)
        for x, y in zip(want_logprobs, got_logprobs, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    equal = total = 0
    for x, y in zip(want, got, strict=True):
        for a, b in zip(x, y, strict=True):
            total += 1
            if a != b:
                break  # what follows continues another text
            equal += 1
    return Parity(statistics.fmean(apart), max(apart), equal / total)


def fill(engine: Engine, batch: int, context: int, *, random_kv: bool) -> list[Prompt]:
    """Prompts of `context` tokens, prefilled, or with random keys and values (speed only)."""
    if random_kv:
        return [engine.prefill_random(context, seed) for seed in range(batch)]
    return [engine.prefill(random_ids(context, engine.spec.vocab, seed)) for seed in range(batch)]


def measure_decode(
    engine: Engine,
    flow: Flow | None,
    prompts: Sequence[Prompt],
    *,
    new_tokens: int,
    rounds: int,
    crossover: Crossover = NEVER,
) -> DecodeRow:
    """Decode `new_tokens` from the same prompts, dense and the flow in turns.

    Args:
        crossover: below it the flow attends to everything; by default it runs as written.
    """
    swap = _load(engine, flow, crossover)
    warm = min(2, new_tokens)
    engine.decode(prompts, max_new_tokens=warm)  # captures, or touches memory
    sparse: list[float] = []
    dense: list[float] = []
    density = 1.0
    if flow is not None:
        with engine.dense():
            engine.decode(prompts, max_new_tokens=warm)
    for _ in range(rounds):
        if flow is not None:
            with engine.dense():
                dense += engine.decode(prompts, max_new_tokens=new_tokens).step_seconds
        result = engine.decode(prompts, max_new_tokens=new_tokens)
        sparse += result.step_seconds
        density = result.density
    step = statistics.median(sparse)
    dense_step = statistics.median(dense) if dense else step
    memory = torch.cuda.memory_allocated(engine.device) if engine.device.type == "cuda" else 0
    return DecodeRow(
        flow=_name(flow),
        ir_hash=engine.ir_hash,
        batch=len(prompts),
        context=prompts[0].length,
        new_tokens=new_tokens,
        rounds=rounds,
        step_ms=step * 1e3,
        step_ms_p95=percentile(sparse, 0.95) * 1e3,
        dense_step_ms=dense_step * 1e3,
        tokens_per_second=len(prompts) / step,
        speedup=dense_step / step,
        density=density,
        page_size=0 if flow is None else flow.knobs.page_size,
        state_mib=swap.state_bytes / 2**20,
        memory_gib=memory / 2**30,
        swap_seconds=swap.seconds,
        capture_seconds=swap.capture_seconds,
    )


def attention_share(engine: Engine, prompts: Sequence[Prompt], steps: int = 2) -> float | None:
    """Share of a decode step spent in attention: kernel times on a GPU, wall time elsewhere.

    None where the GPU's profiler gives no kernel times.
    """
    if engine.device.type != "cuda":
        result = engine.decode(prompts, max_new_tokens=steps)
        assert result.attention_seconds is not None
        return result.attention_seconds / sum(result.step_seconds)
    return attention_part(step_launches(engine, prompts, steps))


@dataclass(frozen=True)
class Launches:
    """A kernel's launches in one decode step, and their time on the device together."""

    kernel: str
    count: float
    microseconds: float


def attention_part(launches: Sequence[Launches]) -> float | None:
    """The share of a step's time on the device that attention takes."""
    total = sum(launch.microseconds for launch in launches)
    attention = sum(x.microseconds for x in launches if x.kernel.startswith(ATTENTION_KERNELS))
    return attention / total if total else None


def step_launches(engine: Engine, prompts: Sequence[Prompt], steps: int = 2) -> list[Launches]:
    """What a decode step launches on a GPU, the longest first; empty where the profiler gives no kernel times."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        engine.decode(prompts, max_new_tokens=steps)
        engine.synchronize()
    found = [
        Launches(event.key, event.count / steps, event.self_device_time_total / steps)
        for event in profiler.key_averages()
        if not event.key.startswith(("Memcpy", "Memset", "cuda")) and event.self_device_time_total
    ]
    return sorted(found, key=lambda launch: -launch.microseconds)


def experts_used(engine: Engine, prompts: Sequence[Prompt]) -> float | None:
    """Experts that a decode step reads in each sparse layer, on average; None where there are none.

    A trained router chooses otherwise than one with random weights, and a step's time follows the experts it reads.
    """
    layers = [m for m in engine.model.modules() if hasattr(m, "seen")]
    for layer in layers:
        layer.seen = []
    engine.decode(prompts, max_new_tokens=1, recorder=lambda *_: None)  # launched, not replayed
    used = [ids.unique().numel() for layer in layers for ids in layer.seen]
    for layer in layers:
        layer.seen = None
    return statistics.fmean(used) if used else None


def measure_serving(
    engine: Engine, flow: Flow | None, *, requests: int, context: int, new_tokens: int, max_batch: int
) -> ServeRow:
    """Requests of random tokens, all submitted at once, through continuous batching to their end."""
    _load(engine, flow)
    scheduler = Scheduler(engine, max_batch)
    for seed in range(requests):
        scheduler.submit(Request(random_ids(context, engine.spec.vocab, 10_000 + seed), new_tokens))
    while len(scheduler.finished) < requests:
        scheduler.step()
    done = list(scheduler.finished.values())
    seconds = max(d.seconds for d in done)
    first = [d.first_token_seconds * 1e3 for d in done]
    between = [(d.seconds - d.first_token_seconds) / max(1, len(d.tokens) - 1) * 1e3 for d in done]
    return ServeRow(
        flow=_name(flow),
        ir_hash=engine.ir_hash,
        requests=requests,
        context=context,
        new_tokens=new_tokens,
        seconds=seconds,
        output_tokens_per_second=sum(len(d.tokens) for d in done) / seconds,
        ttft_ms_p50=percentile(first, 0.5),
        ttft_ms_p95=percentile(first, 0.95),
        tpot_ms_p50=percentile(between, 0.5),
        tpot_ms_p95=percentile(between, 0.95),
        preemptions=scheduler.preemptions,
    )
