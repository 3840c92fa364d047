"""Every architecture on a GPU, in bf16 through captured graphs, against transformers in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from vortex_core import library
from vortex_core.engine.engine import Engine
from vortex_core.engine.models.random_weights import random_model
from vortex_core.specs import load_model

_COMMON: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "max_position_embeddings": 8192,
    "initializer_range": 0.08,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
_GROUPED: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen3": _GROUPED,
    "qwen3_moe": _GROUPED | _EXPERTS | {"num_experts": 8, "norm_topk_prob": True},
    "minimax_m2": _GROUPED | {"num_experts_per_tok": 2, "num_local_experts": 8, "rotary_dim": 32},
    # The attention of GLM-4.7-Flash itself: 20 heads on a latent of 512 + 64.
    "glm4_moe_lite": _EXPERTS
    | {"num_attention_heads": 20, "num_key_value_heads": 20, "n_routed_experts": 8, "n_shared_experts": 1}
    | {"q_lora_rank": 128, "kv_lora_rank": 512, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64}
    | {"v_head_dim": 256},
}


def _ids(length: int, seed: int) -> list[int]:
    return torch.randint(2, 1000, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _model(name: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **(_COMMON | ARCHITECTURES[name]))
    # Rounded once, so that both precisions start from the same weights.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().to("cuda")
    for where, buffer in model.named_buffers():
        if where.endswith("e_score_correction_bias"):
            buffer.normal_(0.0, 10.0)  # decides which experts run, so that rounding changes no choice
    return model


def _transformers(model: Any, prompts: list[list[int]], tokens: list[list[int]]) -> torch.Tensor:
    """Log-probabilities of the tokens after each prompt, `[prompt, token]`, on the CPU."""
    found = []
    with torch.inference_mode():
        for ids, forced in zip(prompts, tokens, strict=True):
            logits = model(torch.tensor([ids + forced], device="cuda")).logits[0, len(ids) - 1 : -1].float()
            found.append(torch.log_softmax(logits, -1).cpu()[range(16), forced])
    return torch.stack(found)


def _forced(engine: Engine, prompts: list[list[int]], tokens: list[list[int]]) -> torch.Tensor:
    pinned = [engine.prefill(ids) for ids in prompts]
    result = engine.decode(pinned, max_new_tokens=len(tokens[0]), forced=tokens)
    for prompt in pinned:
        engine.release(prompt)
    return torch.tensor(result.logprobs)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_logits_are_transformers_within_bf16(name: str) -> None:
    model = _model(name)
    prompts, tokens = [_ids(40, 1), _ids(700, 2)], [_ids(16, 3), _ids(16, 4)]
    rounded = _transformers(model, prompts, tokens)
    wanted = _transformers(copy.deepcopy(model).float(), prompts, tokens)
    theirs = (rounded - wanted).abs()
    engine = Engine(model, max_tokens=4096)
    dense = _forced(engine, prompts, tokens)
    error = (dense - wanted).abs()
    assert wanted.std() > 0.5
    # The bound is what bf16 costs transformers itself. A plain router's close calls fall otherwise at any rounding,
    # and move a token by tenths: there the median speaks for the rest.
    close_calls = name == "qwen3_moe"
    assert error.median() < max(0.02, 1.7 * theirs.median()), (error.median(), theirs.median())
    assert close_calls or error.mean() < max(0.03, 1.7 * theirs.mean()), (error.mean(), theirs.mean())
    everything = library.load("block_topk").with_knobs(budget="length", page_size=16)
    engine.load_flow(everything.program, everything.knobs)
    apart = (_forced(engine, prompts, tokens) - dense).abs()
    assert apart.median() < 0.03 and (close_calls or apart.max() < 0.2), (apart.median(), apart.max())
    sparse = library.load("block_topk").with_knobs(budget="128", page_size=16)
    engine.load_flow(sparse.program, sparse.knobs)
    assert (_forced(engine, prompts, tokens)[1] - dense[1]).abs().max() > 0.01, "sparse is not dense"
    engine.check_integrity()


@pytest.mark.parametrize("flow", library.mla_names())
def test_latent_flows_run_in_captured_steps(flow: str) -> None:
    engine = Engine(_model("glm4_moe_lite"), max_tokens=4096)
    prompts = [engine.prefill(_ids(n, n)) for n in (300, 1500)]
    traced = library.load(flow).with_knobs(budget="length")
    dense = engine.decode(prompts, max_new_tokens=12)
    engine.load_flow(traced.program, traced.knobs)
    forced = engine.decode(prompts, max_new_tokens=12, forced=dense.tokens)
    assert (torch.tensor(forced.logprobs) - torch.tensor(dense.logprobs)).abs().max() < 0.2
    small = library.load(flow).with_knobs(budget="256")
    engine.load_flow(small.program, small.knobs)
    assert engine.decode(prompts, max_new_tokens=12).density < 0.6


@pytest.fixture
def peak() -> Callable[[], int]:
    """Bytes of GPU memory at the worst moment since the test began."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return lambda: torch.cuda.max_memory_allocated() - before


def test_random_weights_are_made_in_place(peak: Callable[[], int]) -> None:
    spec = load_model("qwen3-1.7b")
    model, named = random_model(spec, device="cuda")
    assert "throughput only" in named.name
    assert sum(p.numel() for p in model.parameters()) == spec.parameters
    assert peak() < 1.1 * spec.weight_bytes("bf16")
