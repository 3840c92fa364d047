"""Drafts in the order of what they promise: their sizes are exact, the better ones are found, chance is repeatable."""

from __future__ import annotations

import asyncio
import random
import statistics
from dataclasses import replace

import pytest

from agents.base import Parent, ProposalRequest, Room
from agents.grammar import recipe_draw, recipe_moves, recipe_sizes
from agents.grammar.promising import ENOUGH, Promising
from agents.grammar.proposer import GrammarProposer
from agents.grammar.recipe import Recipe, parse
from agents.grammar.recipe_bytes import page_bytes
from agents.grammar.recipe_draw import Taste
from agents.grammar.recipes import written
from agents.grammar.surrogate import Surrogate
from vortex_core.ir.cost import state_bytes_per_token
from vortex_core.ir.knobs import Knobs
from vortex_core.specs import load_model

KNOBS = Knobs(page_size=16, budget="128")
ROOM = Room(16, 64, 409.6)


def drawn(seed: int, count: int) -> list[Recipe]:
    """Recipes that fit."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        one = recipe_sizes.sized(rng, recipe_draw.draw(rng, Taste()), fits, 6)
        if one is not None:
            found.append(one.normal())
    return found


def fits(recipe: Recipe) -> bool:
    taken = page_bytes(recipe.normal(), ROOM)
    return taken is not None and taken <= ROOM.bytes


def worth(recipe: Recipe) -> float:
    """A measure with a form of its own: bits of slow pairs, with a centre, and a pool of one kind."""
    at = [next((b for b in recipe.bands if b.low <= n < b.high), None) for n in range(16)]
    slow = sum(min(3, b.planes) + (b.centre == "mean") for b in at[8:] if b is not None and b.by_token)
    return 0.5 + slow / 80 + 0.05 * (recipe.pool == "mass") - 0.1 * abs(recipe.temperature - 0.8)


@pytest.mark.parametrize("model", ["smollm2-135m", "retrieval-gqa", "retrieval-mla"])
def test_bytes_of_a_recipe_are_those_of_its_program(model: str):
    geometry, rng = load_model(model).geometry(), random.Random(7)
    room = Room(KNOBS.page_size, geometry.head_dim, 0.0)
    for _ in range(40):
        recipe = recipe_draw.draw(rng, Taste()).normal()
        kept = state_bytes_per_token(written(recipe), KNOBS, geometry)
        assert page_bytes(recipe, room) == pytest.approx(kept * KNOBS.page_size / geometry.kv_heads)


def test_a_surrogate_ranks_what_it_has_not_seen():
    recipes = drawn(1, 160)
    learned = Surrogate([(r, worth(r)) for r in recipes[:100]])
    mean, deviation = learned.expects(recipes[100:])
    order = sorted(range(60), key=lambda n: -mean[n])
    values = [worth(recipes[100 + n]) for n in order]
    assert statistics.mean(values[:15]) > statistics.mean(values[-15:]) + 0.05
    assert (deviation > 0).all()
    assert learned.expects(recipes[:1])[1][0] < deviation.mean()  # of what was measured it is surer


def request(kind: str, recipes: list[Recipe], **more: object) -> ProposalRequest:
    measured = [(r.text, worth(r)) for r in recipes]
    model = load_model("smollm2-135m").model_dump(mode="json")
    knobs = {"page_size": 16, "budget": "128"}
    return replace(
        ProposalRequest(kind, 5, model=model, knobs=knobs, measured=measured, room=ROOM),  # type: ignore[arg-type]
        **more,
    )


def test_children_that_promise_most_are_better_than_children_drawn():
    recipes = drawn(2, 80)
    best = max(recipes, key=worth)
    asked = request("mutate", recipes)
    first = [worth(next(Promising().drafts(random.Random(n), asked, [best], Taste()))[0]) for n in range(12)]
    blind = []
    for n in range(60):
        child = recipe_moves.mutate(random.Random(n), best, Taste())
        if child is not None and fits(child[0]):
            blind.append(worth(child[0]))
    assert statistics.mean(first) > statistics.mean(blind) + 0.01
    assert statistics.median(first) >= worth(best)


def test_too_little_measured_promises_nothing():
    few = drawn(3, ENOUGH - 1)
    assert list(Promising().drafts(random.Random(0), request("mutate", few), few[:1], Taste())) == []
    enough = drawn(3, ENOUGH)
    unbounded = request("mutate", enough, room=None)
    assert list(Promising().drafts(random.Random(0), unbounded, few[:1], Taste())) == []


def test_equal_requests_give_equal_proposals_whatever_came_before():
    recipes = drawn(4, 60)
    best = max(recipes, key=worth)
    proposer = GrammarProposer()
    seed = asyncio.run(proposer.propose(request("seed", [])))
    assert seed.flow is not None
    flow = replace(seed.flow, program=written(best).canonical(), doc=best.text)
    asked = request("mutate", recipes, parents=(Parent(flow, ""),))
    first = asyncio.run(proposer.propose(asked))
    asyncio.run(proposer.propose(request("mutate", recipes[:40], parents=(Parent(flow, ""),))))
    again = asyncio.run(proposer.propose(asked))
    fresh = asyncio.run(GrammarProposer().propose(asked))
    assert first.source == again.source == fresh.source
    child = parse(first.flow.doc if first.flow is not None else "")
    assert child is not None
    assert child.normal() not in recipes
