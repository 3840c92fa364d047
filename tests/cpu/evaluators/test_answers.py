"""Answers that are drawn or scripted, on a tiny model behind the real engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evaluators.answers import draw_seed
from evaluators.bench import Bench, capacity
from evaluators.plan import EvaluationPlan
from evaluators.stages.accuracy import AccuracyStage
from evaluators.stages.base import Context, Deadline, run_stage
from tests.cpu.evaluators.conftest import PLAN, candidate
from vortex_core.engine import Engine, Sampling

SAMPLES = 6


def asking(*tasks: dict[str, Any], batch: int = 4) -> EvaluationPlan:
    accuracy = {"tasks": tasks, "batch": batch, "gate_items": 1, "gate_margin": 0.5, "margin": 0.2}
    return EvaluationPlan.model_validate(PLAN | {"accuracy": accuracy})


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    path.write_text("\n".join(json.dumps({"q": f"{n} and {n}?", "a": str(n % 10)}) for n in range(1, 31)))
    return {
        "task": "jsonl", "name": "sums", "path": str(path), "prompt": "{q}", "answer": "{a}", "metric": "contains",
        "context": 32, "items": 5, "max_new_tokens": 12, "stops": ["\n"],
    }  # fmt: skip


def test_samples_of_one_prefill_give_shares_and_pass_at_k(
    engine: Engine, sums: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = asking(sums | {"samples": SAMPLES, "temperature": 1.0}, batch=4)
    bench = Bench(engine, plan, "weights")
    prefilled = []
    monkeypatch.setattr(
        engine, "prefill", lambda ids, original=engine.prefill: prefilled.append(len(ids)) or original(ids)
    )
    prompts = bench.prompts(0)
    places = prompts.items.in_order(1)
    together = []
    monkeypatch.setattr(
        engine,
        "decode",
        lambda asked, original=engine.decode, **rest: together.append(len(asked)) or original(asked, **rest),
    )
    answers = bench.answer(None, 0, places, Deadline("test", None))
    assert len(prefilled) == 5 + 2, "each item once, and the passages"
    # Draws of different items are decoded together: of four items that a batch holds, and of the fifth.
    assert together == [4] * SAMPLES + [4, 2]
    for place in places:
        item = prompts.items.needles[place[0]][place[1]]
        # What six calls of one sample each would have said.
        texts = []
        for draw in range(SAMPLES):
            drawn = engine.decode(
                [prompts.needles[place]],
                max_new_tokens=12,
                stop_ids=(10, 257),
                sampling=Sampling(temperature=1.0, seed=draw_seed(item) + draw),
            )
            texts.append(engine.tokenizer.decode(drawn.tokens[0], skip_special_tokens=True).split("\n")[0])
        right = [item.score(text) for text in texts]
        assert answers.scores[place] == sum(right) / SAMPLES
        assert answers.passed[place] == max(right)
        assert answers.texts[place].split("\n")[0] == texts[0]
        assert 1 <= answers.tokens[place] <= 12
    bench._release(0)


def test_everything_selected_draws_what_dense_draws(engine: Engine, sums: dict[str, Any]) -> None:
    plan = asking(sums | {"samples": SAMPLES, "temperature": 1.0})
    bench = Bench(engine, plan, "weights")
    context = Context(plan, engine.spec, bench)
    result = run_stage(AccuracyStage(), candidate("quest", budget="length"), context, 0)
    assert result.passed
    assert result.metrics["accuracy_delta"].value == 0
    assert result.metrics["answer_tokens"].value == 1
    table = result.info["tasks"]["sums@32"]
    assert table["samples"] == SAMPLES
    assert result.metrics[f"sums_pass_at_{SAMPLES}"].value == table["pass"] == table["dense_pass"]
    bench._release(0)


def test_greedy_answers_have_one_sample_only(sums: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="need a temperature"):
        asking(sums | {"samples": 2})


def test_the_pool_has_room_for_every_sample_of_a_long_answer(sums: dict[str, Any]) -> None:
    short = asking(sums)
    long = asking(sums | {"samples": SAMPLES, "temperature": 1.0, "max_new_tokens": 600})
    assert capacity(long) - capacity(short) >= 2 * 600
    assert long.longest_context == max(short.longest_context, 632)


def test_scripted_tokens_are_fed_and_the_rest_is_the_models(engine: Engine) -> None:
    """What the engine is fed by decode steps continues the text as if it had been read."""
    engine.load_flow(None)
    ids, told = list(b"A long time ago, "), list(b"in a town")
    prompt, whole = engine.prefill(ids), engine.prefill([*ids, *told[:-1]])
    # The last token of a prompt is decoded with the first step, so nine told tokens are eight and the next step's.
    found = engine.decode([prompt], max_new_tokens=12, forced=[[*told, None, None, None]]).tokens[0]
    plain = engine.decode([whole], max_new_tokens=4, forced=[[told[-1], None, None, None]]).tokens[0]
    assert found[:9] == told
    assert found[9:] == plain[1:]
    for each in (prompt, whole):
        engine.release(each)
