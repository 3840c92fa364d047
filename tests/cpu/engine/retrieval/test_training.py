"""The retrieval task, and the training's shortcuts against transformers' own forward pass."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from vortex_core.engine.retrieval.alphabet import (
    COUNT,
    FIRST_KEY,
    FIRST_NOISE,
    FIRST_NUMBER,
    FIRST_VALUE,
    HOP,
    VOCAB,
)
from vortex_core.engine.retrieval.lesson import UNASKED
from vortex_core.engine.retrieval.measure import FRESH_SEED, accuracy, real_story, skill_accuracy
from vortex_core.engine.retrieval.model import (
    GqaShape,
    MlaShape,
    Shape,
    every_expert,
    hidden_states,
    new_model,
    rotary_of,
)
from vortex_core.engine.retrieval.stories import SKILLS, StoryStage
from vortex_core.engine.retrieval.task import PairStage, Texts, noise_texts, stream_texts
from vortex_core.engine.retrieval.train import WINDOW, Trainer, save, started_from, train

SMALL = MlaShape(hidden=32, heads=2, kv_lora=32, qk_nope=16, qk_rope=16)
SMALL_GQA = GqaShape(hidden=32, heads=2, kv_heads=1, head_dim=16)
STORIES = StoryStage(length=64, pairs=5, counted=2, questions=4, batch=6, steps=9, longest=4096)


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


@pytest.mark.parametrize("shape", [SMALL, SMALL_GQA])
def test_training_computes_what_transformers_does(shape: Shape, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = new_model(shape).eval()
    ids = noise_texts(2, 64, 8, 4, torch.Generator()).ids
    with torch.no_grad():
        stock = model(input_ids=ids, use_cache=False).logits
        every_expert(model)
        ours = model.lm_head(hidden_states(model, ids, rotary_of(model, torch.arange(64)[None]))[1])
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-5)
    save(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].to(torch.bfloat16).to(value.dtype)), name
    assert accuracy(loaded, 128, pairs=8, texts=16) < 0.2  # untrained


def test_steps_learn_the_token_before() -> None:
    trainer = Trainer(new_model(SMALL), rate=1e-2)
    stage = PairStage(length=33, pairs=4, batch=16, steps=120)
    losses = [trainer.step(stage.lesson(trainer.generator)).losses for _ in range(stage.steps)]
    early, late = losses[0].tolist(), torch.stack(losses[-10:]).mean(0).tolist()
    assert late[0] < early[0] - 0.5
    assert late[1] < 5.0 < early[1]  # below what the frequencies of tokens alone give (5.5)


def test_a_curriculum_ends_where_a_stage_was_not_learnt() -> None:
    said: list[str] = []
    trainer = Trainer(new_model(SMALL))
    easy = PairStage(length=9, pairs=1, batch=4, steps=30, enough=0.0)
    hard = PairStage(length=33, pairs=4, batch=4, steps=6)
    assert train(trainer, curriculum=(hard, easy), say=said.append) < 0.5
    assert (trainer.steps, len(said)) == (6, 1)
    train(trainer, curriculum=(easy,), say=said.append)
    assert trainer.steps == 6 + WINDOW  # enough at the first look


def skills(ids: list[int], asked: list[int], lesson_of: str) -> int:
    """The right answer to a question (its two tokens) about a text, by plain reading."""
    told = {k: v for k, v in pairwise(ids) if FIRST_KEY <= k < FIRST_VALUE <= v < FIRST_NOISE}
    key = asked[1]
    if lesson_of == "count":
        assert asked[0] == COUNT
        return FIRST_NUMBER - 1 + sum(pair == (key, told[key]) for pair in pairwise(ids))
    if lesson_of == "hop":
        assert asked[0] == HOP
        key = told[key] - FIRST_VALUE + FIRST_KEY
    return told[key]


def test_stories_ask_for_what_they_tell() -> None:
    lesson = STORIES.lesson(torch.Generator().manual_seed(6))
    seen = set()
    for target in lesson.targets:
        if target.skill not in SKILLS:
            continue
        for row, place, wanted in zip(
            *(t.tolist() for t in (target.rows, target.places, target.wanted)), strict=True
        ):
            if wanted == UNASKED:
                continue
            ids = lesson.ids[row].tolist()
            assert skills(ids[: STORIES.length], ids[place - 1 : place + 1], target.skill) == wanted
            seen.add((target.skill, wanted))
    assert len({wanted for skill, wanted in seen if skill == "count"}) > 4
    for target in lesson.targets:  # the token before, where no position jumps
        if target.layer == 0:
            assert lesson.positions is not None
            asked = target.wanted != UNASKED
            rows, places = target.rows[asked], target.places[asked]
            assert len(rows) > 100
            assert (lesson.positions[rows, places] - lesson.positions[rows, places - 1] == 1).all()
            assert torch.equal(lesson.ids[rows, places - 1], target.wanted[asked])


def test_questions_see_the_story_and_not_each_other() -> None:
    lesson = STORIES.lesson(torch.Generator().manual_seed(7))
    assert lesson.bias is not None and lesson.positions is not None
    length, size = STORIES.length, lesson.ids.shape[1]
    sees = lesson.bias[0, 0] > -1e9
    for place in range(length, size):
        wanted = {*range(length), *range(place - (place - length) % 2, place + 1)}
        assert set(sees[place].nonzero()[:, 0].tolist()) == wanted
    assert torch.equal(sees[:length, :length], torch.ones(length, length).tril().bool())
    assert (lesson.positions[:, length:].diff(dim=1).abs() == 1).all()
    assert lesson.positions.max() > 2 * length
    assert lesson.positions.max() <= STORIES.longest + 2


def test_far_noise_counts_as_often_as_the_long_text_has_it() -> None:
    """Pairs, the start and what is near count once; all other noise of a text has one weight."""
    lesson = STORIES.lesson(torch.Generator().manual_seed(8))
    assert lesson.bias is not None
    weights = lesson.bias[:, 0].exp()
    noise = (lesson.ids >= FIRST_NOISE) & (lesson.ids < VOCAB)
    for row in range(len(lesson.ids)):
        last = weights[row, STORIES.length - 1, : STORIES.length]
        far, near = last[:-17], last[-17:]
        assert (near == 1).all()
        assert (far[~noise[row, : len(far)]] == 1).all()
        repeated = far[noise[row, : len(far)]]
        assert (repeated - repeated[0]).abs().max() < 1e-3
        assert 1 <= float(repeated[0]) <= STORIES.longest / STORIES.length + 1e-3


def test_real_stories_are_what_a_prompt_holds() -> None:
    ids, questions = real_story(200, 8, 12, torch.Generator().manual_seed(9))
    assert len(ids) == 200
    for skill, (asked, wanted) in questions.items():
        for question, answer in zip(asked.tolist(), wanted.tolist(), strict=True):
            assert skills(ids.tolist(), question, skill) == answer
    found = skill_accuracy(new_model(SMALL_GQA).eval(), 128, pairs=8, texts=3, questions=8)
    assert set(found) == set(SKILLS)
    assert max(found.values()) < 0.5  # untrained


def test_a_question_is_read_alone() -> None:
    """The report's answers are those of a whole forward pass over text and question."""
    model = new_model(SMALL_GQA).eval()
    generator = torch.Generator().manual_seed(FRESH_SEED + 100)
    ids, questions = real_story(98, 8, 4, generator)
    right = 0
    with torch.no_grad():
        for asked, wanted in questions.values():
            whole = torch.cat([ids.expand(4, -1), asked], 1)
            right += int((model(input_ids=whole, use_cache=False).logits[:, -1].argmax(-1) == wanted).sum())
    found = skill_accuracy(model, 100, pairs=8, texts=1, questions=4)
    assert sum(found.values()) * 4 == right


def test_inner_layers_learn_what_they_are_asked() -> None:
    trainer = Trainer(new_model(SMALL_GQA), rate=5e-3)
    stage = StoryStage(length=32, pairs=3, counted=1, questions=4, batch=16, steps=60, longest=32, alphabet=8)
    seen = [trainer.step(stage.lesson(trainer.generator)) for _ in range(stage.steps)]
    before = 2  # the token before
    assert seen[-1].losses[before] < seen[0].losses[before] - 1
    assert seen[-1].right["name"] > 0.9 > seen[0].right["name"]


def test_a_training_that_was_cut_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    first = PairStage(length=9, pairs=1, batch=4, steps=60, enough=1.0, alphabet=1)
    second = PairStage(length=9, pairs=1, batch=4, steps=8, alphabet=1)
    whole = Trainer(new_model(SMALL), rate=1e-2)
    assert train(whole, curriculum=(first, second)) == 1
    said: list[str] = []

    def cut(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            Trainer(new_model(SMALL), rate=1e-2), curriculum=(first, second), say=cut, kept=tmp_path / "state"
        )
    resumed = Trainer(new_model(SMALL, seed=5), rate=1e-2)
    train(resumed, curriculum=(first, second), kept=tmp_path / "state")
    assert resumed.steps == whole.steps > second.steps
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value)


def test_training_ends_when_its_time_is_over(tmp_path: Path) -> None:
    """What is learnt by then stands, and the rate has fallen; what was saved is where another training begins."""
    endless = PairStage(length=9, pairs=1, batch=4, steps=10**9, alphabet=1)
    trainer = Trainer(new_model(SMALL), rate=1e-2)
    assert train(trainer, curriculum=(endless,), seconds=3) > 0.9
    assert 0 < trainer.steps < 10**6
    assert (endless.smaller(3).batch, endless.smaller(9).batch) == (1, 1)
    assert STORIES.smaller(2).batch == 3 and STORIES.smaller(2).length == STORIES.length
    assert trainer.optimizer.param_groups[0]["lr"] < 0.5e-2
    save(trainer.model, tmp_path)
    for ours, theirs in zip(
        trainer.model.state_dict().values(),
        started_from(str(tmp_path), SMALL).state_dict().values(),
        strict=True,
    ):
        torch.testing.assert_close(theirs, ours.to(torch.bfloat16).float())


def test_a_training_under_way_is_saved_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vortex_core.engine.retrieval.train.SAVED_EVERY", 0.0)
    stage = PairStage(length=9, pairs=1, batch=4, steps=3 * WINDOW, alphabet=1)
    trainer, at = Trainer(new_model(SMALL)), []
    train(trainer, curriculum=(stage,), save=lambda: at.append(trainer.steps))
    assert at == [WINDOW, 2 * WINDOW, 3 * WINDOW]
