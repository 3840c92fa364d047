"""Recipes: what they write is legal and servable, is read back from text, and has children of the family."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from agents.base import Parent, ProposalRequest
from agents.grammar import recipe_draw, recipe_moves, recipe_sizes
from agents.grammar.proposer import GrammarProposer
from agents.grammar.recipe import Band, Recipe, legal, parse
from agents.grammar.recipe_draw import Taste
from agents.grammar.recipes import RecipeBook, written
from vortex_core import library
from vortex_core.flow.naming import state_labels
from vortex_core.ir.cost import kv_row_bytes, state_bytes_per_token
from vortex_core.ir.verify import verify
from vortex_core.sandbox.load import trace_source
from vortex_core.specs import load_model

MODEL = load_model("smollm2-135m")


def fits(program, knobs) -> bool:
    """Within a tenth of the KV bytes, and served by SGLang, as a campaign would ask."""
    if knobs.reuse_steps > 1 or program.needs_mass:
        return False
    geometry = MODEL.geometry()
    return state_bytes_per_token(program, knobs, geometry) <= 0.1 * kv_row_bytes(geometry, 2.0)


REQUEST = {"model": MODEL.model_dump(mode="json"), "fits": fits}
QUEST_SIZED = Recipe(
    (
        Band(6, 10, "signs", "mean", scaled=True, small="int4"),
        Band(10, 16, "range", "mean", scaled=True, planes=3, small="int8"),
    ),
    norm="fp8_e4m3",
    fitted=True,
)


@pytest.mark.parametrize("seed", range(12))
def test_recipes_drawn_changed_crossed_and_made_smaller_are_legal_programs(seed: int):
    rng = random.Random(seed)
    recipe = recipe_draw.draw(rng, Taste())
    others = [recipe]
    for _ in range(3):
        found = recipe_moves.mutate(rng, rng.choice(others), Taste())
        if found is not None:
            others.append(found[0])
    others.append(recipe_moves.cross(rng, others[0], others[-1])[0])
    smaller = recipe_moves.smaller(rng, others[-1])
    if smaller is not None:
        others.append(smaller[0])
    for one in others:
        if not legal(one):
            continue  # the proposer asks before it writes
        verify(written(one))
        assert parse(f"words {one.normal().text} more") == one.normal()


@pytest.mark.parametrize("seed", range(6))
def test_recipes_are_made_to_fit_a_bound_and_grow_into_it(seed: int):
    rng = random.Random(seed)
    drawn = [recipe_draw.draw(rng, Taste()) for _ in range(4)]
    knobs = library.load("quest").flow.knobs
    for recipe in drawn:
        found = recipe_sizes.sized(rng, recipe, lambda r: fits(written(r), knobs), 6)
        if found is not None:
            assert legal(found)
            assert fits(written(found), knobs)
    small = Recipe((Band(8, 16, "signs"),)).normal()
    sizes = {recipe_sizes.sized(rng, small, lambda r: fits(written(r), knobs), 6).text for _ in range(8)}
    assert len(sizes) > 2


def test_a_band_is_graded_with_the_finer_part_at_the_slow_pairs():
    rng = random.Random(0)
    order = ["mean", "signs", "range", "int2", "int3", "int4", "int8"]
    for _ in range(20):
        found = recipe_moves.grade_bits(rng, Recipe((Band(4, 16, "int4", "none"),)), Taste())
        assert found is not None
        fast, slow = found[0].bands
        assert order.index(slow.coder) > order.index(fast.coder)


def test_the_name_of_a_deep_recipe_takes_no_time():
    """Values that many others read are looked at once: closed, fitted recipes have 10^12 paths to the keys."""
    bands = tuple(Band(4 * n, 4 * n + 4, "signs", "fit", True, 4, small="int4") for n in range(4))
    program = written(Recipe(bands, fitted=True, closed=True)).canonical()
    began = time.process_time()
    assert len(set(state_labels(program).values())) == len(program.states)
    assert time.process_time() - began < 0.5


def test_a_text_that_is_no_recipe_is_none():
    for text in (
        "", "recipe[]", "recipe[0-16]", "recipe[16-0 signs | pool=mass]", "recipe[0-16 signs planes=9 | pool=mass]",
        "recipe[0-16 signs | pool=os.system]", "recipe[0-16 signs planes=x | pool=mass]", "recipe[a-b c | d]",
    ):  # fmt: skip
        assert parse(text) is None, text


def test_a_recipe_is_believed_only_where_it_writes_the_program():
    book = RecipeBook()
    program = written(QUEST_SIZED).canonical()
    flow = library.load("twilight").flow
    true = type(flow)("x", program, flow.knobs, f"idea {QUEST_SIZED.normal().text}")
    lie = type(flow)("x", library.load("h2o").flow.program, flow.knobs, true.doc)
    assert book.of(true) == QUEST_SIZED.normal()
    assert book.of(lie) is None
    assert book.of(library.load("quest").flow) is not None, "the library's Quest is of the family"


def test_the_state_bytes_of_a_recipe_are_what_the_field_would_count():
    geometry = MODEL.geometry()
    flow = library.load("quest").flow
    kept = state_bytes_per_token(written(QUEST_SIZED), flow.knobs, geometry)
    assert kept == state_bytes_per_token(flow.program, flow.knobs, geometry), "as many as Quest's"


def test_proposals_keep_the_campaigns_bounds_and_are_what_their_source_says():
    proposer = GrammarProposer()
    knobs = {"budget": "128", "page_size": 16}
    parents: list[Parent] = []
    for seed in range(6):
        kind = "seed" if seed < 3 else "mutate"
        chosen = tuple(parents[:1]) if kind == "mutate" else ()
        draft = proposer.draft(ProposalRequest(kind, seed, parents=chosen, knobs=knobs, **REQUEST))
        answer = proposer.write(draft)
        assert answer.flow is not None
        parents.append(Parent(answer.flow, answer.source))
        traced = trace_source(answer.source).flow
        assert traced.key == answer.flow.key
        assert (traced.knobs.budget, traced.knobs.page_size) == ("128", 16)
        assert fits(traced.program, traced.knobs)


def test_tuning_moves_constants_and_simplifying_takes_away():
    proposer = GrammarProposer()
    flow = proposer.write(
        proposer.draft(ProposalRequest("mutate", 1, parents=(Parent(_of(QUEST_SIZED), ""),), **REQUEST))
    ).flow
    assert flow is not None
    start = Parent(_of(QUEST_SIZED), "")
    points = [tuple([x] * 16) for x in (0.4, 0.45, 0.6)]
    tuned = [proposer.draft(ProposalRequest("tune", 0, (start,), point=p, **REQUEST)) for p in points]
    assert len({d.key for d in tuned}) == 3
    recipes = [d.recipe for d in tuned]
    assert all(r is not None and [b.coder for b in r.bands] == ["signs", "range"] for r in recipes)
    answer = asyncio.run(proposer.propose(ProposalRequest("tune", 0, (start,), point=points[0], **REQUEST)))
    assert answer.flow is not None
    assert answer.flow.key == tuned[0].key
    less = proposer.draft(ProposalRequest("simplify", 0, (start,), **REQUEST))
    assert len(less.program.cache.nodes) < len(start.flow.program.cache.nodes)
    quest = Parent(library.load("masked_quest").flow, "")
    assert proposer.draft(ProposalRequest("simplify", 3, (quest,), **REQUEST)).key != quest.flow.key


def test_choices_lean_towards_what_the_best_chose():
    best = Taste((QUEST_SIZED,) * 5)
    rng, plain = random.Random(0), random.Random(0)
    learned = sum(recipe_draw.draw(rng, best).norm == "fp8_e4m3" for _ in range(200))
    before = sum(recipe_draw.draw(plain, Taste()).norm == "fp8_e4m3" for _ in range(200))
    assert learned > 1.3 * before


def _of(recipe: Recipe):
    flow = library.load("quest").flow
    return type(flow)("parent", written(recipe).canonical(), flow.knobs, recipe.normal().text)
