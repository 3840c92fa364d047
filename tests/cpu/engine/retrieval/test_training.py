"""The retrieval task, and the training's shortcuts against transformers' own forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vortex_core.engine.retrieval.alphabet import FIRST_KEY, FIRST_NOISE, FIRST_VALUE
from vortex_core.engine.retrieval.model import Shape, every_expert, hidden_states, new_model, rotary_of
from vortex_core.engine.retrieval.task import Texts, noise_texts, stream_texts
from vortex_core.engine.retrieval.train import WINDOW, Stage, Trainer, accuracy, save, train

SMALL = Shape(hidden=32, heads=2, kv_lora=32, qk_nope=16, qk_rope=16)


def told(texts: Texts) -> list[list[dict[int, int]]]:
    """What a text has said of each key before each question, by plain reading."""
    rows = []
    for ids in texts.ids.tolist():
        known: dict[int, int] = {}
        seen = []
        for place, token in enumerate(ids):
            if place in texts.asked:
                seen.append(dict(known))
            if FIRST_KEY <= token < FIRST_VALUE and place + 1 < len(ids):
                known[token] = ids[place + 1]
        rows.append(seen)
    return rows


@pytest.mark.parametrize(
    "texts",
    [
        stream_texts(3, 41, 5, torch.Generator().manual_seed(1)),
        noise_texts(3, 64, 9, 7, torch.Generator().manual_seed(2)),
        noise_texts(2, 33, 9, 7, torch.Generator().manual_seed(3)),  # no room for noise
    ],
    ids=["stream", "noise", "full"],
)
def test_a_question_is_known_when_the_text_has_told_it(texts: Texts) -> None:
    for row, seen in enumerate(told(texts)):
        for question, known in enumerate(seen):
            key = int(texts.ids[row, texts.asked[question]])
            assert bool(texts.known[row, question]) == (key in known)
            if key in known:
                assert known[key] == int(texts.answers[row, question])
            assert FIRST_VALUE <= int(texts.answers[row, question]) < FIRST_NOISE


def test_noise_hides_every_pair_once() -> None:
    texts = noise_texts(4, 100, 12, 5, torch.Generator().manual_seed(4))
    story = texts.ids[:, :90]
    keys = (story >= FIRST_KEY) & (story < FIRST_VALUE)
    values = (story >= FIRST_VALUE) & (story < FIRST_NOISE)
    assert keys.sum(1).tolist() == values.sum(1).tolist() == [12] * 4
    assert torch.equal(keys[:, :-1], values[:, 1:])
    assert all(len(set(row[k].tolist())) == 12 for row, k in zip(story, keys, strict=True))


def test_training_computes_what_transformers_does(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = new_model(SMALL).eval()
    ids = noise_texts(2, 64, 8, 4, torch.Generator()).ids
    with torch.no_grad():
        stock = model(input_ids=ids, use_cache=False).logits
        every_expert(model)
        ours = model.lm_head(hidden_states(model, ids, rotary_of(model, 64))[1])
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-5)
    save(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].to(torch.bfloat16).to(value.dtype)), name
    assert accuracy(loaded, 128, pairs=8, texts=16) < 0.2  # untrained


def test_steps_learn_the_token_before() -> None:
    trainer = Trainer(new_model(SMALL), rate=1e-2)
    stage = Stage(length=33, pairs=4, batch=16, steps=120)
    losses = [trainer.step(stage) for _ in range(stage.steps)]
    early, late = losses[0], [sum(x) / 10 for x in zip(*losses[-10:], strict=True)]
    assert late[0] < early[0] - 0.5
    assert late[1] < 5.0 < early[1]  # below what the frequencies of tokens alone give (5.5)


def test_a_curriculum_ends_where_a_stage_was_not_learnt() -> None:
    said: list[str] = []
    trainer = Trainer(new_model(SMALL))
    easy = Stage(length=9, pairs=1, batch=4, steps=30, enough=0.0)
    hard = Stage(length=33, pairs=4, batch=4, steps=6)
    assert train(trainer, curriculum=(hard, easy), say=said.append) < 0.5
    assert (trainer.steps, len(said)) == (6, 1)
    train(trainer, curriculum=(easy,), say=said.append)
    assert trainer.steps == 6 + WINDOW  # enough at the first look
