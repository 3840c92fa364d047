"""Every architecture through the engine: logits and tokens are transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.engine.engine import Engine
from vortex_core.errors import VortexError
from vortex_core.ir.knobs import Knobs

Make = Callable[..., Any]
NAMES = ("llama", "qwen3", "qwen3_moe", "glm4_moe_lite", "deepseek_v3", "minimax_m2")
LATENT = ("glm4_moe_lite", "deepseek_v3")


@pytest.fixture(scope="module")
def engines(tiny: Make) -> Callable[[str], Engine]:
    """One engine an architecture, made when first asked for."""
    made: dict[str, Engine] = {}

    def get(name: str) -> Engine:
        if name not in made:
            made[name] = Engine(tiny(name), max_tokens=4096)
        made[name].load_flow(None)
        return made[name]

    return get


def _greedy(model: Any, prompt: list[int], n: int) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        max_new_tokens=n,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_greedy_tokens_equal_transformers(engines: Make, tiny: Make, ids: Make, name: str) -> None:
    engine, model = engines(name), tiny(name)
    prompts = [ids(n, n) for n in (1, 129, 1300)]  # 1300: more than one chunk of prefill
    forced = [ids(20, 5 + i) for i in range(3)]
    pinned = [engine.prefill(p) for p in prompts]
    scored = engine.decode(pinned, max_new_tokens=20, forced=forced)
    with torch.inference_mode():
        for prompt, tokens, logprobs in zip(prompts, forced, scored.logprobs, strict=True):
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
            expected = torch.log_softmax(logits, -1)[range(20), tokens]
            assert expected.max() - expected.min() > 2, "a model that says nothing tests nothing"
            torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-4, rtol=1e-4)
    free = engine.decode(pinned, max_new_tokens=10)
    assert free.tokens == [_greedy(model, p, 10) for p in prompts]
    engine.check_integrity()


@pytest.mark.parametrize("name", NAMES)
def test_with_everything_selected_tokens_equal_transformers(
    engines: Make, tiny: Make, ids: Make, name: str
) -> None:
    engine, model = engines(name), tiny(name)
    prompts = [ids(n, n) for n in (60, 400)]
    expected = [_greedy(model, p, 10) for p in prompts]
    flows = ["block_topk", "quest"]
    if name in LATENT:
        flows += ["rope_unaware_block_topk", "rope_weighted_block_topk", "rope_unaware_lserve_centroid"]
    pinned = [engine.prefill(p) for p in prompts]
    for flow in flows:
        traced = library.load(flow).with_knobs(budget="length")
        engine.load_flow(traced.program, traced.knobs)
        result = engine.decode(pinned, max_new_tokens=10)
        assert (result.tokens, result.density) == (expected, 1.0), flow


@pytest.mark.parametrize("flow", ["block_topk", "rope_unaware_block_topk", "rope_weighted_block_topk", "h2o"])
def test_sparse_latent_decode_is_that_of_the_oracle(engines: Make, ids: Make, flow: str) -> None:
    engine = engines("glm4_moe_lite")
    pinned = [engine.prefill(ids(n, n)) for n in (300, 333)]
    knobs = Knobs(page_size=16, budget="96")
    program = library.load(flow).program
    found = []
    for backend in ("torch", "oracle"):
        engine.load_compiled(backends.get(backend).compile(program, knobs, engine.geometry))
        found.append(engine.decode(pinned, max_new_tokens=24))
    assert found[0].tokens == found[1].tokens
    assert 0.2 < found[0].density == found[1].density < 0.4
    torch.testing.assert_close(
        torch.tensor(found[0].logprobs), torch.tensor(found[1].logprobs), atol=1e-4, rtol=1e-4
    )
    engine.load_flow(None)
    assert engine.decode(pinned, max_new_tokens=24).logprobs != found[0].logprobs, "sparse is not dense"


@pytest.mark.parametrize("name", LATENT)
def test_the_pool_holds_one_latent_row_a_token(engines: Make, ids: Make, tiny: Make, name: str) -> None:
    engine, config = engines(name), tiny(name).config
    rank, rope = config.kv_lora_rank, config.qk_rope_head_dim
    pool = engine.cache.pool
    assert pool.k.shape == (3, 1, 4096, rank + rope)
    assert pool.v.data_ptr() == pool.k.data_ptr(), "values are the latent itself"
    assert (engine.geometry.group, engine.geometry.rope_dim, engine.geometry.value_dim) == (5, rope, rank)
    prompt = ids(70, 1)
    pinned = engine.prefill(prompt)
    # The first layer's latent, from transformers' modules.
    model = tiny(name)
    with torch.inference_mode():
        layer = model.model.layers[0]
        x = layer.input_layernorm(model.model.embed_tokens(torch.tensor([prompt])))
        compressed = layer.self_attn.kv_a_proj_with_mqa(x)[0, : pinned.cached]
        latent = layer.self_attn.kv_a_layernorm(compressed[:, :rank])
    page, table = engine.kv(0, 16).k[0], engine.page_table([pinned], 16)[0]
    stored = page[table].flatten(0, 1)[: pinned.cached]
    torch.testing.assert_close(stored[:, :rank], latent, atol=1e-5, rtol=1e-5)
    # Position 0 is not rotated, only its pairs are laid apart.
    torch.testing.assert_close(
        stored[0, rank:],
        torch.cat((compressed[0, rank::2], compressed[0, rank + 1 :: 2])),
        atol=1e-5,
        rtol=1e-5,
    )


def test_latent_attention_of_an_unknown_kind_is_refused(tiny: Make) -> None:
    model = tiny("glm4_moe_lite")
    del model.model.layers[1].self_attn.kv_a_layernorm
    with pytest.raises(VortexError, match="other parts") as caught:
        Engine(model)
    assert caught.value.code == "VE012"
