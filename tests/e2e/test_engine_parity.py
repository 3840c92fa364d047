"""The engine on the real model: token for token what transformers generates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from vortex_core import library
from vortex_core.engine import Engine
from vortex_core.engine.models.weights import ModelPath

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(600)]
NEW_TOKENS = 16
LENGTHS = (12, 60, 127, 128, 129, 200, 260, 520)


@pytest.fixture(scope="module")
def engine(smollm2: ModelPath) -> Engine:
    # float32: two correct bf16 computations may part at a near tie, two float32 ones practically never do.
    return Engine.from_model(str(smollm2.directory), dtype=torch.float32, max_tokens=8192)


@pytest.fixture(scope="module")
def prompts(engine: Engine, root: Path) -> list[list[int]]:
    """Eight stretches of the haystack, of lengths around the edges of blocks."""
    files = sorted((root / "evaluators" / "data" / "haystack").glob("*.txt"))
    ids = engine.tokenizer("\n".join(f.read_text(encoding="utf-8") for f in files[:2])).input_ids
    return [ids[900 * i : 900 * i + n] for i, n in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def expected(smollm2: ModelPath, prompts: list[list[int]]) -> list[list[int]]:
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2.directory, dtype=torch.float32)
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        outputs.append(out[0, len(prompt) :].tolist())
    return outputs


@pytest.mark.parametrize("flow", [None, "dense", "block_topk", "quest", "streaming"])
def test_with_everything_selected_tokens_equal_transformers(
    engine: Engine, prompts: list[list[int]], expected: list[list[int]], flow: str | None
) -> None:
    pinned = [engine.prefill(p) for p in prompts]
    traced = None if flow is None else library.load(flow).with_knobs(budget="length")
    engine.load_flow(traced and traced.program, traced.knobs if traced else None)
    result = engine.decode(pinned, max_new_tokens=NEW_TOKENS)
    assert result.tokens == expected
    assert result.density == 1.0
    assert result.ir_hash == (traced.ir_hash if traced else "dense")
    engine.check_integrity()


def test_a_small_budget_reads_little_and_stays_close(engine: Engine, prompts: list[list[int]]) -> None:
    prompt = engine.prefill(prompts[-1])
    engine.load_flow(None)
    dense = engine.decode([prompt], max_new_tokens=NEW_TOKENS)
    quest = library.load("quest").with_knobs(budget="256")
    engine.load_flow(quest.program, quest.knobs)
    sparse = engine.decode([prompt], max_new_tokens=NEW_TOKENS, forced=dense.tokens)
    assert 0.4 < sparse.density < 0.55
    loss = sum(dense.logprobs[0]) - sum(sparse.logprobs[0])
    assert abs(loss) / NEW_TOKENS < 0.3, "nats a token of the dense continuation"
