"""The engine's GPU path under the Triton interpreter: same tokens as the torch backend and as transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cpu.engine.conftest import random_ids, tiny_model
from tests.cpu.engine.models.conftest import tiny
from tests.cpu.engine.test_flows import CARRIED
from tests.cpu.engine.test_request_states import REMEMBERS
from tests.interp.tuned import attention_tiles
from vortex_core import library
from vortex_core.engine import attention_hook
from vortex_core.engine.decode.graph_batch import GraphBatch
from vortex_core.engine.decode.graph_runner import Shape
from vortex_core.engine.decode.sampling import Sampling
from vortex_core.engine.decode.step_kernels import choose_greedy
from vortex_core.engine.engine import Engine
from vortex_core.engine.fused import experts as fused_experts
from vortex_core.engine.fused.latent import FusedLatentAttention
from vortex_core.engine.fused.modules import fuse
from vortex_core.engine.models import adapt
from vortex_core.engine.requests import Request
from vortex_core.engine.scheduler import Scheduler
from vortex_core.ir.crossover import Crossover
from vortex_core.ir.knobs import Knobs
from vortex_core.sandbox.load import trace_source

torch.set_num_threads(1)
PROMPTS = [random_ids(n, n) for n in (75, 33, 9)]
STEPS = 4
WRITTEN = {"remember": CARRIED, "remembers": REMEMBERS}


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    """The same weights behind both backends."""
    options: dict[str, Any] = {"layers": 2, "kv_heads": 2, "group": 2}
    return {
        "torch": Engine(tiny_model("qwen3", **options), max_tokens=2048),
        "triton": Engine(tiny_model("qwen3", **options), max_tokens=2048, backend="triton"),
    }


def decode(engine: Engine, flow: str, **options: Any) -> Any:
    knobs = Knobs(**options.pop("knobs", {}))
    program = None
    if flow != "none":
        program = (trace_source(WRITTEN[flow]) if flow in WRITTEN else library.load(flow)).program
    engine.load_flow(program, knobs, crossover=options.pop("crossover", None))
    prompts = [engine.prefill(ids) for ids in PROMPTS]
    result = engine.decode(prompts, max_new_tokens=STEPS, **options)
    for prompt in prompts:
        engine.release(prompt)
    engine.check_integrity()
    if engine.flow is not None and engine.flow.compiled.program.needs_mass:
        for states in engine.flow.states.values():  # rows of padding must not write to pages of others
            held = states.mass[:, : engine.flow.pages]
            assert held.isfinite().all()
            assert 0.0 <= held.min() <= held.max() <= 1.0 + 1e-5
    return result


@pytest.fixture(scope="module")
def dense(engines: dict[str, Engine]) -> Any:
    """What the Triton backend decodes without a flow."""
    return decode(engines["triton"], "none")


@pytest.mark.parametrize(
    ("flow", "knobs"),
    [
        ("quest", {"page_size": 8, "budget": "64 if layer < 1 else 48", "reuse_steps": 3}),
        ("remember", {"page_size": 8, "budget": "48", "reuse_steps": 2, "dense_layers": (0,)}),
        ("remembers", {"page_size": 8, "budget": "32", "reuse_steps": 2}),
        ("retroinfer", {"page_size": 8, "budget": "48", "dense_layers": (0,)}),
        ("twilight_quest", {"page_size": 8, "budget": "48", "reuse_steps": 2, "dense_layers": (0,)}),
        ("delta", {"page_size": 8, "budget": "48", "reuse_steps": 2, "dense_layers": (0,)}),
    ],
)
def test_both_backends_decode_the_same_tokens(engines: dict[str, Engine], flow: str, knobs: Any) -> None:
    want = decode(engines["torch"], flow, knobs=knobs)
    got = decode(engines["triton"], flow, knobs=knobs)
    assert got.tokens == want.tokens
    assert got.density == pytest.approx(want.density, abs=1e-12)
    assert got.ir_hash == want.ir_hash
    for a, b in zip(got.logprobs, want.logprobs, strict=True):
        assert a == pytest.approx(b, abs=2e-4)


def test_what_query_heads_both_list_counts_once(engines: dict[str, Engine]) -> None:
    """Exactly on the torch backend; over static buffers as in the last step."""
    knobs = {"page_size": 8, "budget": "32", "dense_layers": (0,)}
    want, got = (decode(engines[backend], "moba", knobs=knobs).density for backend in ("torch", "triton"))
    shared = decode(engines["torch"], "block_topk", knobs=knobs).density
    assert shared < want < 2 * shared
    assert got == pytest.approx(want, rel=0.1)


@pytest.mark.parametrize("flow", ["quest", "twilight"])
@pytest.mark.parametrize("tokens", [1000, 60, 35])
def test_short_sequences_attend_to_everything(
    engines: dict[str, Engine], dense: Any, flow: str, tokens: int
) -> None:
    """All, some (of 75, 33 and 9 tokens), and two that grow past it, on pages that dense steps completed."""
    knobs = {"page_size": 8, "budget": "16", "keep_last": 1}
    rule = Crossover(((1, tokens),))
    want, got = (decode(engines[b], flow, knobs=knobs, crossover=rule) for b in ("torch", "triton"))
    assert got.tokens == want.tokens
    assert got.density == pytest.approx(want.density, abs=1e-12)
    for a, b in zip(got.logprobs, want.logprobs, strict=True):
        assert a == pytest.approx(b, abs=2e-4)
    alike = [0, 1, 2] if tokens == 1000 else [1, 2] if tokens == 60 else [2]
    for row in alike:
        assert got.logprobs[row] == pytest.approx(dense.logprobs[row], abs=2e-4)
    assert got.density == 1.0 if tokens == 1000 else got.density < 1.0


def test_pages_that_dense_steps_complete_are_scored_later(engines: dict[str, Engine]) -> None:
    ids, knobs = random_ids(30, 5), Knobs(page_size=8, budget="16", keep_last=1)
    forced = [int(x) for x in random_ids(16, 6)]
    found = []
    for backend, rule in (("torch", 41), ("triton", 41), ("triton", 0)):
        engine = engines[backend]
        engine.load_flow(library.load("quest").program, knobs, crossover=Crossover(((1, rule),)))
        prompt = engine.prefill(ids)
        found.append(engine.decode([prompt], max_new_tokens=16, forced=[forced]))
        engine.release(prompt)
        assert not engine.flow._pending
    assert found[0].density == pytest.approx(found[1].density, abs=1e-12)
    assert found[0].logprobs[0] == pytest.approx(found[1].logprobs[0], abs=2e-4)
    assert found[1].logprobs[0][:8] != pytest.approx(found[2].logprobs[0][:8], abs=2e-4)


def test_lists_are_attended_as_was_tuned(engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = attention_tiles(monkeypatch)
    knobs = {"page_size": 8, "budget": "48", "dense_layers": (0,)}
    want, got = (decode(engines[backend], "quest", knobs=knobs) for backend in ("torch", "triton"))
    assert got.tokens == want.tokens
    assert tiles == [16, 32] * (len(tiles) // 2), "the dense layer by the default, the flow's as tuned"
    assert tiles


def test_latent_attention_decodes_the_same_tokens() -> None:
    """Absorbed MLA with experts: the latent is written once, and read as keys and values by one kernel."""
    results = []
    for backend in ("torch", "triton"):
        engine = Engine(tiny("glm4_moe_lite", num_hidden_layers=2), max_tokens=1024, backend=backend)
        results.append(
            decode(
                engine, "rope_unaware_block_topk", knobs={"page_size": 16, "budget": "48", "reuse_layers": 2}
            )
        )
    assert results[0].tokens == results[1].tokens
    assert results[0].density == pytest.approx(results[1].density)
    assert results[0].density < 1.0


def test_latent_attention_hands_on_what_a_dense_layer_attended_to() -> None:
    knobs = {"page_size": 16, "budget": "48", "dense_layers": (0,)}
    want, got = (
        decode(Engine(tiny("glm4_moe_lite", num_hidden_layers=2), max_tokens=1024, backend=backend),
               "tidaldecode", knobs=knobs)
        for backend in ("torch", "triton")
    )  # fmt: skip
    assert got.tokens == want.tokens
    assert got.density == pytest.approx(want.density) and want.density < 1.0


def test_tokens_are_those_of_transformers(dense: Any) -> None:
    model = tiny_model("qwen3", layers=2, kv_heads=2, group=2)
    for ids, tokens in zip(PROMPTS, dense.tokens, strict=True):
        with torch.inference_mode():
            want = model.generate(
                torch.tensor([ids]), max_new_tokens=STEPS, do_sample=False, eos_token_id=None
            )[0, len(ids) :]
        assert tokens == want.tolist()


def test_stop_tokens_end_a_sequence_where_they_first_appear(engines: dict[str, Engine]) -> None:
    """Steps run ahead of the host by one, and what is produced behind a stop token is dropped."""
    free = decode(engines["torch"], "none")
    stop = [free.tokens[0][0], free.tokens[1][2]]
    want = decode(engines["torch"], "none", stop_ids=stop)
    got = decode(engines["triton"], "none", stop_ids=stop)
    assert got.tokens == want.tokens
    assert [len(x) for x in got.logprobs] == [len(x) for x in want.tokens]
    assert len({len(x) for x in want.tokens}) > 1, "they end at different steps"


def test_a_step_depends_on_nothing_but_its_buffers(engines: dict[str, Engine]) -> None:
    """What makes it safe to capture: the same launches again, nothing told by the host, give the next token."""
    engine = engines["triton"]
    knobs = {"page_size": 8, "budget": "48", "reuse_steps": 3}
    want = decode(engine, "quest", knobs=knobs)
    prompts = [engine.prefill(ids) for ids in PROMPTS]
    sequences = engine.fork(prompts, [STEPS] * len(prompts))
    batch = engine.new_batch(sequences)
    assert isinstance(batch, GraphBatch)
    runner, count = batch.runner, len(prompts)
    tokens = []
    for _ in range(STEPS):
        runner._step(Shape(4, 8, True), 4)  # one row of padding
        tokens.append(runner.buffers.tokens[:count].tolist())
    assert [list(x) for x in zip(*tokens, strict=True)] == want.tokens
    assert runner.buffers.lengths.tolist()[count:] == [0] * (runner.buffers.rows - count)
    engine.cache.join(sequences)
    for prompt in prompts:
        engine.release(prompt)


@pytest.mark.parametrize("flow", ["quest", "remembers"])
def test_scheduled_and_sampled_tokens_are_those_of_the_torch_backend(flow: str) -> None:
    """Rows join, leave, grow and are preempted; one of them is sampled."""
    requests = [
        Request(random_ids(126, 1), 5),
        Request(random_ids(125, 2), 6, sampling=Sampling(0.8, 0.9, seed=3)),
        Request(random_ids(20, 3), 2),
    ]
    results = []
    for backend in ("torch", "triton"):
        model = tiny_model("llama", layers=1, kv_heads=1, group=2)
        engine = Engine(model, max_tokens=1024, backend=backend)
        traced = trace_source(WRITTEN[flow]) if flow in WRITTEN else library.load(flow)
        engine.load_flow(traced.program, Knobs(page_size=8, budget="64"))
        scheduler, blocks = Scheduler(engine, max_batch=2), engine.cache.blocks
        for request in requests:
            scheduler.submit(request)
        scheduler.step()
        taken = blocks.allocate(
            blocks.available - 1
        )  # someone else's, for a while: one block for two to grow into
        while not scheduler.preemptions:
            scheduler.step()
        blocks.release(taken)
        while len(scheduler.finished) < len(requests):
            scheduler.step()
        results.append([scheduler.finished[i].tokens for i in range(len(requests))])
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_fused_modules_compute_what_they_replace(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_model(architecture).to(dtype)
    model.set_attn_implementation(attention_hook.IMPLEMENTATION)
    layer = model.model.layers[1]
    x = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    angles = model.model.rotary_emb(x, torch.arange(3)[None] + 1000)

    class Step:
        def attend(self, layer: int, q: Any, k: Any, v: Any, scale: float) -> Any:
            self.seen = [layer, scale, *(t.clone() for t in (q, k, v))]
            return q.transpose(1, 2)

    def outputs() -> list[Any]:
        step = Step()
        with torch.inference_mode():
            out, _ = layer.self_attn(
                hidden_states=x, position_embeddings=angles, attention_mask=None, vortex_step=step
            )
            far = torch.tensor([[0, 1, 4095, 131071, 1000003]])
            return [out, layer.mlp(x), layer.input_layernorm(x), *step.seen, *model.model.rotary_emb(x, far)]

    want = outputs()
    counts = fuse(model)
    assert (counts.attentions, counts.mlps, counts.norms, counts.layers) == (3, 3, 7, 3)
    # The interpreter truncates to bf16 where the hardware rounds: a last place a rounding.
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.03}
    for a, b in zip(outputs(), want, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        ("glm4_moe_lite", torch.float32),
        ("minimax_m2", torch.float32),
        ("qwen3_moe", torch.float32),
        ("qwen3_moe", torch.bfloat16),
    ],
)
def test_fused_experts_compute_what_they_replace(
    architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few tokens go through the kernels, many through transformers' own product behind the fused routing."""
    monkeypatch.setattr(fused_experts, "MOST_PAIRS", 40)
    model = tiny(architecture, num_hidden_layers=2).to(dtype)
    block = model.model.layers[1].mlp
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, 48, generator=draw).to(dtype) for shape in ((19, 1), (1, 66))]
    with torch.inference_mode():
        want = [block(x) for x in inputs]
        assert fuse(model).experts == (1 if architecture == "glm4_moe_lite" else 2)
        fused = model.model.layers[1].mlp
        assert type(fused) is fused_experts.FusedExperts
        got = [fused(x) for x in inputs]
    for a, b in zip(got, want, strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)
        else:  # the interpreter truncates to bf16; a token whose expert was a close call goes elsewhere
            far = ((a - b).abs() > 0.05 * b.abs() + 0.1).flatten(0, 1).any(-1)
            assert far.float().mean() < 0.05


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
def test_fused_latent_attention_computes_what_it_replaces(factored: bool, interleaved: bool) -> None:
    changes = {} if factored else {"q_lora_rank": None}
    model = adapt(tiny("glm4_moe_lite", num_hidden_layers=1, rope_interleave=interleaved, **changes))
    x = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0))
    angles = model.model.rotary_emb(x, torch.arange(3)[None] + 1000)

    class Step:
        def attend(self, layer: int, q: Any, k: Any, v: Any, scale: float) -> Any:
            self.seen = [torch.tensor([layer, scale]), *(t.clone() for t in (q, k, v))]
            return q.transpose(1, 2)[..., : v.shape[-1]]

    def outputs() -> list[Any]:
        step = Step()
        with torch.inference_mode():
            out, _ = model.model.layers[0].self_attn(
                hidden_states=x, position_embeddings=angles, attention_mask=None, vortex_step=step
            )
        return [out, *step.seen]

    want = outputs()
    assert fuse(model).attentions == 1
    assert type(model.model.layers[0].self_attn) is FusedLatentAttention
    for a, b in zip(outputs(), want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["qwen3", "glm4_moe_lite"])
def test_fp8_pools_hold_what_was_rounded(architecture: str) -> None:
    """Prompts store rounded keys and values, and a step attends to these; a flow with everything selected too."""

    def engine(kv_dtype: str) -> Engine:
        changes = {"mlp_layer_types": ["dense"]} if architecture == "glm4_moe_lite" else {}
        model = tiny(architecture, num_hidden_layers=1, **changes)
        return Engine(model, max_tokens=512, backend="triton", kv_dtype=kv_dtype)

    narrow, wide = engine("fp8_e4m3"), engine("auto")
    pinned = [e.prefill(PROMPTS[1]) for e in (narrow, wide)]
    pools = [e.cache.pool for e in (narrow, wide)]
    for part in (pools[1].k,) if narrow.geometry.is_mla else (pools[1].k, pools[1].v):
        part.copy_(part.to(torch.float8_e4m3fn).float())
    for a, b in ((pools[0].k, pools[1].k), (pools[0].v, pools[1].v)):
        assert a.dtype == torch.float8_e4m3fn
        assert (a.float() != b).float().mean() < 0.01, "but for what lies between two roundings"
    forced = [[5]]
    got, want = (
        e.decode([p], max_new_tokens=1, forced=forced) for e, p in zip((narrow, wide), pinned, strict=True)
    )
    torch.testing.assert_close(torch.tensor(got.logprobs), torch.tensor(want.logprobs), atol=0.1, rtol=0.05)
    traced = library.load("block_topk").with_knobs(budget="length", page_size=16, kv_dtype="fp8_e4m3")
    narrow.load_flow(traced.program, traced.knobs)
    every = narrow.decode(pinned[:1], max_new_tokens=1, forced=forced)
    torch.testing.assert_close(torch.tensor(every.logprobs), torch.tensor(got.logprobs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chosen_token_is_the_likeliest(dtype: torch.dtype) -> None:
    """Over several stretches of the vocabulary, with equals, infinities, and a row that is NaN."""
    logits = torch.randn(4, 9001, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[1, 5000:] = float("-inf")
    logits[2, [4095, 4096, 9000]] = 9.0
    logits[3] = float("nan")
    copy, logprobs = torch.zeros(4, 9001), torch.zeros(4)
    tokens, ages = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 3, 5, 9], dtype=torch.int32)
    choose_greedy(logits, copy, tokens, logprobs, ages, torch.tensor([1, 1, 1, 0], dtype=torch.int32))
    assert tokens[:3].tolist() == [int(row.float().argmax()) for row in logits[:3]]
    assert tokens[2] == 4095
    assert 0 <= tokens[3] < 9001 and logprobs[3].isnan()
    torch.testing.assert_close(logprobs[:3], logits[:3].float().log_softmax(-1).amax(-1))
    torch.testing.assert_close(copy, logits.float(), equal_nan=True)
    assert ages.tolist() == [1, 4, 6, 9]
