"""Ways to win an evaluation without being better. Each is refused, priced as what it is, or found to be no better.

A false win would be: the static stage lets a flow be accurate at one point and fast at another, work that is dense
counts as sparse, or the statistics accept what loses the margin. `test_there_are_enough` counts them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evaluators import stats
from evaluators.plan import load_plan
from evaluators.reference import DenseReference
from evaluators.sequential import sequential_test
from evaluators.stages.base import Context, run_stage
from evaluators.stages.registry import get_stage
from evaluators.tasks.base import FRESH_SEEDS, draw_row
from evaluators.tasks.items import ItemSet
from evaluators.tasks.metrics import METRICS
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow
from vortex_core.sandbox.load import trace_source
from vortex_core.specs import load_model

SMOLLM = load_model("smollm2-135m")
QUEST = library.load("quest")

# Accurate where it is asked, fast elsewhere, or dense everywhere that answers are asked for.
BUDGETS = (
    "max(64, 4000 - length)",
    "length if length < 4096 else 64",
    "length if length < 2200 else 128",
    "length if length <= 1100 else 128",
    "64 if length > 5000 else 512",
    "512 if length == 1024 else 64",
    "64 if length > 1040 else length",
    "max(64, 8192 - length)",
    "max(64, 2000 - length / 2)",
    "64 + length % 1024",
    "64 + 1023 - length % 1024",
    "4096 * 1024 / length",
    "1024 * 1024 / length + 64",
    "length if length % 128 == 0 else 64",
    "512 if length % 2 == 0 else 64",
    "512 if length < 1040 else 496 if length < 1100 else 64",
    "max(64, 600 - max(0, length - 1030) * 10)",
    "length if layer < 15 else max(64, 3000 - length)",
    "1024 - length / 16",
    "length",
    "length + 64",
    "100000",
    "0.999 * length",
    "length - 1",
    "length if layer < 30 else 64",
    "max(4096, length / 2)",
)

KNOBS: tuple[dict[str, Any], ...] = (
    {"keep_last": 64, "page_size": 128},
    {"keep_first": 64, "page_size": 128},
    {"keep_first": 33, "keep_last": 33, "page_size": 64, "budget": "64"},
    {"dense_layers": tuple(range(30))},
    {"dense_layers": (30,), "budget": "64"},
    {"dense_layers": tuple(range(1000)), "budget": "64"},
    {"page_size": 128, "budget": "3969"},
)


def static(flow: Flow, **plan: Any) -> Any:
    """What the stage `static` says, on the default plan."""
    context = Context(load_plan("default").model_copy(update=plan), SMOLLM)
    return run_stage(get_stage("static"), flow, context, 0)


@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_that_cheat_are_refused(budget: str) -> None:
    result = static(QUEST.with_knobs(budget=budget).flow)
    assert not result.passed and result.failure is not None, budget
    assert (result.failure.kind, result.failure.error["code"]) == ("candidate", "VV101")


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_knobs_that_make_it_dense_or_address_nothing_are_refused(knobs: dict[str, Any]) -> None:
    result = static(QUEST.with_knobs(**knobs).flow)
    assert not result.passed and result.failure is not None
    assert result.failure.error["code"] == "VV101"


@pytest.mark.parametrize("knobs", [{"reuse_steps": 4}, {"reuse_steps": 64}], ids=str)
def test_what_the_target_would_not_serve_wins_nothing(knobs: dict[str, Any]) -> None:
    result = static(QUEST.with_knobs(**knobs).flow, target="sglang")
    assert not result.passed


DISGUISES = {
    "everything beside a state": "return ops.everything()",
    "a union with everything": "return ops.union(ops.topk((q * cache['a']).sum('dim').max('head')), ops.everything())",
}


@pytest.mark.parametrize("body", DISGUISES.values(), ids=DISGUISES)
def test_dense_in_disguise_is_dense(body: str) -> None:
    source = f"""from vortex_core import ops, vFlow


class Disguised(vFlow):
    def create_cache(self, page):
        return {{"a": page.state(dim=page.head_dim)}}

    def forward_cache(self, page):
        return {{"a": page.k.mean("token")}}

    def forward_indexer(self, q, cache):
        {body}
"""
    try:
        flow = trace_source(source).flow
    except VortexError:
        return  # refused where it is traced
    if flow.program.selects_everything:  # known as what it is: dense, which no search counts as found
        assert flow.program.ir_hash == library.load("dense").flow.program.ir_hash
        return
    from vortex_core.ir.launches import layer_costs

    costs = layer_costs(flow.program, flow.knobs, SMOLLM.geometry(), batch=1, length=4096, kv_bytes=2.0)
    assert all(cost.density == 1 for cost in costs), "priced as sparse though it reads everything"


# ---- a candidate that answers worse, and luck


@pytest.mark.parametrize("loss", [0.1, 0.15, 0.3])
def test_looking_often_does_not_accept_a_loss(loss: float) -> None:
    rng = np.random.default_rng(int(loss * 100))
    accepted = 0
    for _ in range(200):
        lost = rng.random(300) < loss
        accepted += sequential_test([-float(x) for x in lost], margin=0.1).outcome == "accept"
    assert accepted / 200 <= 0.05


def test_the_luckiest_of_forty_is_not_accepted_on_fresh_items() -> None:
    """All lose the margin; the one that looked best on the search's items is asked again."""
    rng, accepted, chosen = np.random.default_rng(1), 0, []
    for _ in range(100):
        searched = rng.random((40, 39)) < 0.1  # lost items of forty candidates
        best = int(searched.sum(1).argmin())
        chosen.append(searched[best].mean())
        accepted += sequential_test([-float(x) for x in rng.random(39) < 0.1], margin=0.1).outcome == "accept"
    assert np.mean(chosen) < 0.03  # on the items it was chosen by it seems to lose nothing
    assert accepted / 100 <= 0.08


def test_the_best_of_ten_finalists_is_flattered_by_fresh_items_and_not_by_sealed_ones() -> None:
    """Ten programs, each of which loses more than the margin, meet fresh items, and the best of them the sealed ones,
    once. What a run states is of those, and calls a loss "proven" to be kept as seldom as it may."""
    rng, kept, fresh_better, proven = np.random.default_rng(2), 0, 0, 0
    for _ in range(200):
        fresh = rng.random((10, 78)) >= 0.15
        best = int(fresh.sum(1).argmax())
        sealed = rng.random(78) >= 0.15
        kept += fresh[best].mean() >= 0.9
        fresh_better += fresh[best].mean() > sealed.mean()
        difference = stats.paired_difference(list(map(float, sealed)), [1.0] * 78)
        proven += stats.standing(difference, 0.1) == "proven"
    assert kept > 100, "by value the luckiest of ten keeps a gate that none of them keeps"
    assert fresh_better > 150, "its fresh items flatter it"
    assert proven <= 0.05 * 200


@pytest.mark.parametrize("items", [8, 17, 25, 34])
def test_few_items_prove_nothing(items: int) -> None:
    equal = [1.0] * items
    assert stats.standing(stats.paired_difference(equal, equal), 0.1) == "kept by value"
    assert sequential_test([0.0] * items, margin=0.1).outcome == "undecided"


def test_a_loss_that_is_certain_is_not_called_kept() -> None:
    found = stats.Interval(-0.15, -0.2, -0.11, 100)
    assert stats.standing(found, 0.1) == "broken"


def test_repeating_an_item_does_not_make_it_many() -> None:
    once = stats.clustered_difference([1.0, 1.0, 0.0], [1.0, 1.0, 1.0], "abc")
    often = stats.clustered_difference([1.0, 1.0, 0.0] * 50, [1.0] * 150, "abc" * 50)
    assert often.n == once.n == 3
    assert often.high - often.low == pytest.approx(once.high - once.low)


# ---- answers


@pytest.mark.parametrize("text", ["", " ", "I do not know.", "7", "7654321", "123456", "12345678"])
def test_stopping_early_or_guessing_is_not_an_answer(text: str) -> None:
    """A shorter answer is not a faster one either: speed is taken over a fixed number of steps."""
    assert not METRICS["number"](text, ("1234567",))


# ---- items and caches


def test_dense_answers_of_other_items_or_engines_are_not_taken() -> None:
    reference = DenseReference("engine", "items", "m", 0, {"a@1": [1.0]}, {"a@1": ["x"]}, {}, {}, [])
    items = ItemSet(0, {"a@1": (None,)}, ())  # type: ignore[arg-type]
    reference.check("engine", "items", items)
    for identity, digest in (("engine", "others"), ("another", "items")):
        with pytest.raises(VortexError) as caught:
            reference.check(identity, digest, items)
        assert caught.value.code == "VV005"


def test_a_results_key_knows_the_budget() -> None:
    keys = {QUEST.with_knobs(budget=str(b)).flow.key for b in (64, 128, 256)}
    assert len(keys) == 3


def test_a_file_of_rows_gives_search_and_finals_different_ones() -> None:
    drawn = {
        seed: {draw_row(90, seed, i) for i in range(30)} for seed in (0, FRESH_SEEDS, 2 * FRESH_SEEDS + 7)
    }
    assert not set.intersection(*drawn.values())
    assert sum(map(len, drawn.values())) == 90


def test_there_are_enough() -> None:
    singles = 3 + 1 + 4 + 1 + 1 + 7 + 1 + 1 + 1
    assert len(BUDGETS) + len(KNOBS) + 2 + len(DISGUISES) + singles >= 40
