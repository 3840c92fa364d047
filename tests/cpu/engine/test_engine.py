"""The engine against transformers: prefill, decode, forking, sharing, and its refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.engine.decode.sampling import Sampling
from vortex_core.engine.engine import Engine
from vortex_core.engine.kv.prompts import Prompts
from vortex_core.errors import VortexError
from vortex_core.ir.knobs import Knobs

Make = Callable[..., Any]


def _transformers_greedy(model: Any, prompt: list[int], n: int) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        max_new_tokens=n,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("architecture", "kv_heads", "group"),
    [("llama", 2, 3), ("llama", 1, 1), ("qwen3", 2, 4), ("qwen2", 3, 1)],
)
def test_greedy_tokens_equal_transformers(
    make_engine: Make, make_model: Make, ids: Make, architecture: str, kv_heads: int, group: int
) -> None:
    options = {"architecture": architecture, "kv_heads": kv_heads, "group": group}
    engine, model = make_engine(**options), make_model(**options)
    prompts = [ids(n, seed) for seed, n in enumerate((1, 2, 127, 128, 129, 130, 300, 1500))]
    pinned = [engine.prefill(p) for p in prompts]
    result = engine.decode(pinned, max_new_tokens=12)
    assert result.tokens == [_transformers_greedy(model, p, 12) for p in prompts]
    assert (result.density, result.ir_hash, len(result.step_seconds)) == (1.0, "dense", 12)
    engine.check_integrity()


def test_logprobs_of_forced_tokens_equal_transformers(make_engine: Make, make_model: Make, ids: Make) -> None:
    engine, model = make_engine(), make_model()
    prompt, forced = ids(200, 0), ids(20, 1)
    result = engine.decode([engine.prefill(prompt)], max_new_tokens=99, forced=[forced])
    logits = model(torch.tensor([prompt + forced])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, -1)[range(20), forced]
    assert result.tokens == [forced]
    torch.testing.assert_close(torch.tensor(result.logprobs[0]), expected, atol=2e-4, rtol=1e-4)


def test_a_batch_decodes_as_its_members_do_alone(make_engine: Make, ids: Make) -> None:
    engine = make_engine()
    prompts = [engine.prefill(ids(n, n)) for n in (5, 260, 64)]
    together = engine.decode(prompts, max_new_tokens=10)
    for i, prompt in enumerate(prompts):
        alone = engine.decode([prompt], max_new_tokens=10)
        assert alone.tokens[0] == together.tokens[i]
        torch.testing.assert_close(
            torch.tensor(alone.logprobs[0]), torch.tensor(together.logprobs[i]), atol=1e-4, rtol=1e-4
        )


def test_a_prompt_forked_many_times_stays_as_it_was(make_engine: Make, ids: Make) -> None:
    engine = make_engine()
    prompt = engine.prefill(ids(200, 0))
    k = engine.cache.pool.k[:, :, : prompt.cached].clone()
    available = engine.cache.blocks.available
    first = engine.decode([prompt], max_new_tokens=90)  # crosses a block boundary
    forks = engine.decode([prompt] * 3, max_new_tokens=90)
    assert forks.tokens == first.tokens * 3, (
        "the one that borrows the last block and those that copy it agree"
    )
    sampled = engine.decode([prompt] * 3, max_new_tokens=8, sampling=Sampling(temperature=1.0, seed=5))
    assert len({tuple(t) for t in sampled.tokens}) == 3, "each row has its own seed"
    named = [Sampling(temperature=1.0, seed=7), Sampling(), Sampling(temperature=1.0, seed=5)]
    each = engine.decode([prompt] * 3, max_new_tokens=8, sampling=named)
    assert each.tokens == [sampled.tokens[2], first.tokens[0][:8], sampled.tokens[0]]
    with pytest.raises(VortexError, match="2 samplings for 3 prompts"):
        engine.decode([prompt] * 3, max_new_tokens=8, sampling=named[:2])
    assert engine.decode([prompt], max_new_tokens=90).tokens == first.tokens
    assert engine.cache.blocks.available == available
    torch.testing.assert_close(engine.cache.pool.k[:, :, : prompt.cached], k, atol=0, rtol=0)
    engine.check_integrity()


def test_prefill_is_content_addressed_and_shares_prefixes(make_engine: Make, ids: Make) -> None:
    engine = make_engine()
    common = ids(300, 0)
    a = engine.prefill(common + ids(50, 1))
    b = engine.prefill(common + ids(70, 2))
    assert a.blocks[:2] == b.blocks[:2]
    assert a.blocks[2] != b.blocks[2]
    again = engine.prefill(list(a.token_ids))
    assert again is a
    fresh = make_engine()
    for prompt in (a, b):
        shared = engine.decode([prompt], max_new_tokens=10)
        alone = fresh.decode([fresh.prefill(prompt.token_ids)], max_new_tokens=10)
        assert shared.tokens == alone.tokens
    engine.release(a)
    engine.decode([a], max_new_tokens=1)
    engine.release(a)
    with pytest.raises(VortexError, match="was released") as caught:
        engine.decode([a], max_new_tokens=1)
    assert caught.value.code == "VE015"
    engine.check_integrity()
    revived = engine.prefill(a.token_ids)
    assert revived.blocks[:2] == b.blocks[:2]
    engine.check_integrity()


def test_prefill_in_chunks_over_scattered_blocks(make_engine: Make, make_model: Make, ids: Make) -> None:
    engine = make_engine(max_tokens=24 * 128)
    small = [engine.prefill(ids(100, seed)) for seed in range(24)]
    for prompt in small[::2] + small[1::4]:
        engine.release(prompt)
    prompt = ids(1900, 50)
    pinned = engine.prefill(prompt)
    assert max(b - a for a, b in zip(pinned.blocks, pinned.blocks[1:], strict=False)) > 1, "not one run"
    result = engine.decode([pinned], max_new_tokens=10)
    assert result.tokens == [_transformers_greedy(make_model(), prompt, 10)]
    engine.check_integrity()


def test_stop_ids_end_one_sequence_and_not_the_others(make_engine: Make, ids: Make) -> None:
    engine = make_engine()
    prompts = [engine.prefill(ids(n, n)) for n in (40, 50)]
    free = engine.decode(prompts, max_new_tokens=12)
    stop = next(t for t in free.tokens[0] if t not in free.tokens[1])
    stopped = engine.decode(prompts, max_new_tokens=12, stop_ids=[stop])
    end = free.tokens[0].index(stop) + 1
    assert stopped.tokens == [free.tokens[0][:end], free.tokens[1]]
    assert len(stopped.logprobs[0]) == end


def test_the_recorder_sees_the_queries_and_keys_of_every_layer(make_engine: Make, ids: Make) -> None:
    engine = make_engine()
    prompts = [engine.prefill(ids(n, n)) for n in (30, 140)]
    seen: list[tuple[int, tuple[int, ...], int]] = []

    def record(layer: int, q: torch.Tensor, kv: LayerKV, view: BatchView) -> None:
        seen.append((layer, tuple(q.shape), view.max_length))
        last = (view.lengths - 1) // kv.k.shape[2]
        page = view.block_table.gather(1, last[:, None])[:, 0]
        newest = kv.k[:, page, (view.lengths - 1) % kv.k.shape[2]]
        assert newest.abs().amax(-1).gt(0).all(), "the token being decoded is written already"

    engine.decode(prompts, max_new_tokens=2, recorder=record)
    assert seen == [(layer, (2, 6, 16), length) for length in (140, 141) for layer in range(3)]


def test_page_table_and_kv_reach_the_prompt_at_any_page_size(make_engine: Make, ids: Make) -> None:
    engine = make_engine()
    prompt = engine.prefill(ids(333, 0))
    engine.prefill(ids(10, 1))
    flat = []
    for size in (8, 64):
        kv, table = engine.kv(1, size), engine.page_table([prompt], size)
        flat.append(kv.k[:, table[0]].flatten(1, 2)[:, : prompt.cached])
    torch.testing.assert_close(flat[0], flat[1], atol=0, rtol=0)


def test_what_cannot_be_is_refused_with_a_reason(make_engine: Make, ids: Make) -> None:
    engine = make_engine(max_tokens=512)
    prompt = engine.prefill(ids(200, 0))
    cases: list[tuple[str, str, Callable[[], object]]] = [
        ("VE011", "empty", lambda: engine.prefill([])),
        ("VE011", "token id 500", lambda: engine.prefill([3, 500])),
        ("VE011", "5000 tokens", lambda: engine.prefill([3] * 5000)),
        ("VE010", "needs 600 tokens.*257 would fit", lambda: engine.prefill(ids(600, 1))),
        ("VE010", "needs 384 tokens.*256 would fit", lambda: engine.decode([prompt], max_new_tokens=400)),
        ("VE016", "nothing to decode", lambda: engine.decode([], max_new_tokens=3)),
        ("VE016", "nothing to decode", lambda: engine.decode([prompt], max_new_tokens=0)),
        ("VE016", "1 forced", lambda: engine.decode([prompt, prompt], max_new_tokens=3, forced=[[1]])),
    ]
    for code, words, call in cases:
        with pytest.raises(VortexError, match=words) as caught:
            call()
        assert caught.value.code == code
        engine.check_integrity()
    engine.prefill(ids(257, 1))  # what the message promised
    assert engine.cache.blocks.available == 0


def test_a_failing_forward_gives_its_blocks_back(make_engine: Make, ids: Make) -> None:
    engine = make_engine()

    def fail(*_: object) -> None:
        raise RuntimeError("a broken recorder")

    prompt = engine.prefill(ids(200, 0))
    available = engine.cache.blocks.available
    with pytest.raises(RuntimeError, match="broken"):
        engine.decode([prompt, prompt], max_new_tokens=3, recorder=fail)
    assert engine.cache.blocks.available == available
    engine.check_integrity()
    fresh = make_engine()
    expected = fresh.decode([fresh.prefill(prompt.token_ids)], max_new_tokens=3).tokens
    assert engine.decode([prompt], max_new_tokens=3).tokens == expected


def test_models_with_sliding_windows_are_refused(make_model: Make) -> None:
    model = make_model("mistral")
    model.config.sliding_window = 64
    with pytest.raises(VortexError, match=r"sliding") as caught:
        Engine(model).prefill([3, 4, 5])
    assert caught.value.code in ("VE012", "VM007")


def test_the_attention_hook_refuses_what_it_would_ignore() -> None:
    attention = AttentionInterface()["vortex"]
    x = torch.zeros(1, 1, 1, 16)
    with pytest.raises(VortexError, match="s_aux") as caught:
        attention(torch.nn.Identity(), x, x, x, None, scaling=1.0, vortex_step=None, s_aux=torch.zeros(1))
    assert caught.value.code == "VE012"


def test_kv_dtype_of_another_pool_is_refused(make_engine: Make) -> None:
    from vortex_core import library

    engine = make_engine()
    with pytest.raises(VortexError, match="float32") as caught:
        engine.load_flow(library.load("quest").program, Knobs(kv_dtype="fp8_e4m3"))
    assert caught.value.code == "VE013"


@pytest.mark.parametrize("flow", [None, "quest"])
def test_prompts_share_the_pages_on_which_they_agree(
    make_engine: Make, ids: Make, monkeypatch: pytest.MonkeyPatch, flow: str | None
) -> None:
    from vortex_core import library

    engine, fresh = make_engine(), make_engine()
    for each in (engine, fresh):
        if flow:
            each.load_flow(library.load(flow).program, Knobs(page_size=16, budget="64"))
    common = ids(128 + 75, 0)
    first = engine.prefill([*common, *ids(100, 1)])
    begins: list[int] = []
    chunk = Prompts.compute
    monkeypatch.setattr(
        Prompts, "compute", lambda self, prompt, at: begins.append(at) or chunk(self, prompt, at)
    )
    second = engine.prefill([*common, *ids(60, 2)])
    assert begins == [128 + 72], "a block is shared, nine pages of eight tokens are copied"
    assert second.blocks[0] == first.blocks[0]
    assert second.blocks[1] != first.blocks[1]
    engine.check_integrity()
    want = fresh.decode([fresh.prefill(second.token_ids)], max_new_tokens=6)
    got = engine.decode([second], max_new_tokens=6)
    assert got.tokens == want.tokens
    assert got.logprobs[0] == pytest.approx(want.logprobs[0], abs=1e-5)
    assert (
        engine.decode([first], max_new_tokens=6).tokens
        == fresh.decode([fresh.prefill(first.token_ids)], max_new_tokens=6).tokens
    ), "the source is as it was"
