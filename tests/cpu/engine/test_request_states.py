"""States of requests in the engine: pages are shared and states are not, and who comes next to a seat begins anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from vortex_core.engine.decode.sampling import Sampling
from vortex_core.engine.engine import Engine
from vortex_core.engine.requests import Request
from vortex_core.engine.scheduler import Scheduler
from vortex_core.ir.knobs import Knobs
from vortex_core.runtime.pool_flow import SEATS
from vortex_core.sandbox.load import trace_source

Make = Callable[..., Any]

# What is selected changes from step to step, and whoever saw another's queries or steps selects other pages.
REMEMBERS = '''
from vortex_core import ops, register, vFlow

@register("remembers")
class Remembers(vFlow):
    """Pages like the query of the step before, and ever newer ones."""

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim, dtype="fp32"),
                "before": page.state(head="G", dim=page.head_dim, dtype="fp32", carried=True, scope="request"),
                "steps": page.state(dtype="fp32", carried=True, scope="request")}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        far = ops.position() - 2 * cache["steps"]
        score = cache["before"].dot(cache["mean"], "dim").max("head") - 0.3 * far.abs()
        cache["before"], cache["steps"] = q, cache["steps"] + 1
        return ops.topk(score)
'''
KNOBS = Knobs(page_size=8, budget="40", keep_first=1, keep_last=1)


def load(engine: Engine, **knobs: Any) -> None:
    engine.load_flow(trace_source(REMEMBERS).program, KNOBS.with_(**knobs))


def alone(make_engine: Make, prompts: Sequence[Sequence[int]], steps: int, **knobs: Any) -> list[list[int]]:
    """Tokens of each prompt in an engine that has seen nothing else."""
    found = []
    for ids in prompts:
        engine = make_engine()
        load(engine, **knobs)
        found.append(engine.decode([engine.prefill(ids)], max_new_tokens=steps).tokens[0])
    return found


def test_requests_share_their_first_pages_and_not_their_states(make_engine: Make, ids: Make) -> None:
    prefix = ids(260, 1)
    prompts = [[*prefix, *ids(40, 2)], [*prefix, *ids(37, 3)], prefix[:200]]
    engine = make_engine()
    load(engine)
    assert not engine.private_pages
    pinned = [engine.prefill(p) for p in prompts]
    assert pinned[0].blocks[:2] == pinned[1].blocks[:2]
    together = engine.decode(pinned, max_new_tokens=12)
    assert together.tokens == alone(make_engine, prompts, 12)
    assert together.density < 0.5
    engine.check_integrity()


def test_who_comes_to_a_seat_begins_anew(make_engine: Make, ids: Make) -> None:
    prompts = [ids(180 + n, n) for n in range(3)]
    want = alone(make_engine, prompts, 8)
    engine = make_engine()
    load(engine)
    for ids_, tokens in zip(prompts, want, strict=True):  # on the same seat, one after the other
        pinned = engine.prefill(ids_)
        assert engine.decode([pinned], max_new_tokens=8).tokens == [tokens]
    assert engine.cache._seats == 1


def test_continuations_of_one_prompt_have_states_of_their_own(make_engine: Make, ids: Make) -> None:
    engine = make_engine()
    load(engine)
    pinned = engine.prefill(ids(300, 4))
    drawn = [Sampling(1.0, seed=n) for n in range(3)]
    together = engine.decode([pinned] * 3, max_new_tokens=10, sampling=drawn)
    one_by_one = [engine.decode([pinned], max_new_tokens=10, sampling=[s]).tokens[0] for s in drawn]
    assert together.tokens == one_by_one
    assert len({tuple(tokens) for tokens in one_by_one}) == 3


@pytest.mark.parametrize("reuse", [1, 3])
def test_requests_that_come_and_go_answer_as_if_alone(make_engine: Make, ids: Make, reuse: int) -> None:
    prompts = [ids(n, n) for n in (150, 7, 300, 8, 9, 220)]
    want = alone(make_engine, prompts, 9, reuse_steps=reuse)
    engine = make_engine()
    load(engine, reuse_steps=reuse)
    requests = [Request(p, 9 - n % 3) for n, p in enumerate(prompts)]
    found = engine.generate(requests, max_batch=2)
    assert [f.tokens for f in found] == [t[: 9 - n % 3] for n, t in enumerate(want)]
    assert engine.cache._seats == 2
    engine.check_integrity()


def test_a_preempted_request_goes_on_as_if_nothing_had_happened(make_engine: Make, ids: Make) -> None:
    """Its tokens are fed again, through the flow, from the first step on: so its states are those it had."""
    prompts = [ids(126, 1), ids(125, 2), ids(20, 3)]
    want = alone(make_engine, prompts, 9)
    engine = make_engine(1024)
    load(engine)
    scheduler, blocks = Scheduler(engine, max_batch=2), engine.cache.blocks
    for p in prompts:
        scheduler.submit(Request(p, 9))
    scheduler.step()
    taken = blocks.allocate(blocks.available - 1)  # for a while: one block for two to grow into
    while not scheduler.preemptions:
        scheduler.step()
    blocks.release(taken)
    while len(scheduler.finished) < len(prompts):
        scheduler.step()
    assert [scheduler.finished[i].tokens for i in range(3)] == want


def test_there_is_room_for_more_requests_than_at_first(make_engine: Make, ids: Make) -> None:
    prompts = [ids(40 + n % 7, n) for n in range(SEATS + 6)]
    engine = make_engine(128 * (SEATS + 8) * 2, layers=1)
    load(engine)
    assert engine.flow is not None
    before = engine.flow.state_bytes
    pinned = [engine.prefill(p) for p in prompts]
    together = engine.decode(pinned, max_new_tokens=5).tokens
    assert engine.flow.state_bytes > before
    some = [0, SEATS - 1, SEATS, SEATS + 5]
    assert [together[i] for i in some] == [
        engine.decode([pinned[i]], max_new_tokens=5).tokens[0] for i in some
    ]


def test_a_swap_leaves_nothing_behind(make_engine: Make, ids: Make) -> None:
    pinned_ids = ids(200, 5)
    (want,) = alone(make_engine, [pinned_ids], 8)
    engine = make_engine()
    load(engine)
    pinned = engine.prefill(pinned_ids)
    engine.decode([pinned], max_new_tokens=3)
    engine.load_flow(None)
    load(engine)
    assert engine.decode([pinned], max_new_tokens=8).tokens == [want]


def test_forced_tokens_are_steps(make_engine: Make, ids: Make) -> None:
    """Teacher forcing with the answer itself carries on what answering did."""
    engine = make_engine()
    load(engine)
    pinned = engine.prefill(ids(200, 6))
    free = engine.decode([pinned], max_new_tokens=8)
    forced = engine.decode([pinned], max_new_tokens=8, forced=[free.tokens[0]])
    assert forced.logprobs[0] == pytest.approx(free.logprobs[0], abs=1e-5)
