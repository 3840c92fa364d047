"""Sequences below a flow's crossover attend to everything: the same tokens and log-probabilities as dense attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.cpu.engine.conftest import random_ids
from vortex_core import library
from vortex_core.ir.crossover import NEVER, Crossover
from vortex_core.ir.knobs import Knobs

Make = Callable[..., Any]
KNOBS = Knobs(page_size=16, budget="32", keep_last=1)
LENGTHS = (400, 90)
STEPS = 6


def decode(
    engine: Any, crossover: Crossover | None, *, flow: str = "quest", lengths: tuple[int, ...] = LENGTHS
) -> Any:
    program = None if crossover is None else library.load(flow).program
    engine.load_flow(program, KNOBS, crossover=crossover)
    prompts = [engine.prefill(random_ids(n, n)) for n in lengths]
    try:
        return engine.decode(prompts, max_new_tokens=STEPS)
    finally:
        for prompt in prompts:
            engine.release(prompt)
        engine.check_integrity()


@pytest.mark.parametrize("flow", ["quest", "twilight", "streaming"])
def test_all_below_is_dense_attention(make_engine: Make, flow: str) -> None:
    dense = decode(make_engine(), None)
    found = decode(make_engine(), Crossover(((1, 1000),)), flow=flow)  # anew: blocks in the same order
    assert found.tokens == dense.tokens
    assert found.logprobs == dense.logprobs, "not merely near: the same computation"
    assert found.density == 1.0


def test_some_below_are_as_dense_and_the_others_as_the_flow(make_engine: Make) -> None:
    engine = make_engine()
    dense, sparse = decode(engine, None), decode(engine, NEVER)
    mixed = decode(engine, Crossover(((1, 200),)))
    assert dense.tokens[1] != sparse.tokens[1] or dense.logprobs[1] != sparse.logprobs[1]
    assert mixed.logprobs[0] == pytest.approx(sparse.logprobs[0], abs=1e-5)
    assert mixed.logprobs[1] == pytest.approx(dense.logprobs[1], abs=1e-5)
    assert sparse.density < mixed.density < 1.0


def test_none_below_is_the_flow_as_it_was_written(make_engine: Make) -> None:
    ruled, written = decode(make_engine(), Crossover(((1, 50),))), decode(make_engine(), NEVER)
    assert ruled.logprobs == written.logprobs
    assert ruled.density == written.density


def test_the_batch_decides_where_it_lies(make_engine: Make) -> None:
    engine = make_engine()
    rule = Crossover(((1, 1000), (2, 60)))
    both = decode(engine, rule)
    assert both.density == decode(engine, NEVER).density
    alone = decode(engine, rule, lengths=(400,))
    assert alone.density == 1.0
    assert alone.logprobs[0] == pytest.approx(decode(engine, None, lengths=(400,)).logprobs[0], abs=1e-5)


def test_a_sequence_that_grows_past_it_selects_by_states_of_all_its_pages(make_engine: Make) -> None:
    """The pages that dense steps completed are scored as those of a prompt."""
    start, steps = 90, 40  # pages end at 96, 112 and 128: the first two below the crossover
    ids = random_ids(start, 7)

    def run(crossover: Crossover) -> Any:
        engine = make_engine()
        engine.load_flow(library.load("quest").program, KNOBS, crossover=crossover)
        prompt = engine.prefill(ids)
        dense = engine.decode([prompt], max_new_tokens=steps, forced=[forced])
        engine.release(prompt)
        return dense

    forced = [int(x) for x in random_ids(steps, 8)]
    sparse, grown = run(NEVER), run(Crossover(((1, 120),)))
    behind = 120 - start
    assert grown.logprobs[0][:behind] != sparse.logprobs[0][:behind]
    assert grown.density > sparse.density
    everything = run(Crossover(((1, 1000),)))
    assert grown.logprobs[0][: behind - 1] == everything.logprobs[0][: behind - 1]
    assert grown.logprobs[0][behind:] != everything.logprobs[0][behind:]


def test_flows_that_can_have_none_run_as_written(make_engine: Make) -> None:
    engine = make_engine()
    found = decode(engine, Crossover(((1, 1000),)), flow="h2o")
    assert engine.flow.crossover == NEVER
    assert found.density < 1.0
