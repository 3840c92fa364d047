"""Continuous batching: random arrivals with conservation of blocks, equal results, admission, refusal."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vortex_core import library
from vortex_core.engine.decode.sampling import Sampling
from vortex_core.engine.scheduler import Request, Scheduler
from vortex_core.errors import VortexError
from vortex_core.ir.knobs import Knobs

Make = Callable[..., Any]


def _request(rng: random.Random, ids: Make, number: int) -> Request:
    common = ids(140, 99)[: rng.choice([0, 0, 130, 140])]
    return Request(
        [*common, *ids(rng.randint(1, 200), number)],
        max_new_tokens=rng.randint(1, 25),
        stop_ids=tuple(rng.sample(range(2, 128), 4)),
        sampling=Sampling(temperature=rng.choice([0.0, 1.0]), top_p=0.9, seed=number),
    )


@pytest.mark.parametrize("flow", [None, "quest"])
@pytest.mark.parametrize("seed", range(3))
def test_random_arrivals_finish_as_if_alone(
    make_engine: Make, ids: Make, seed: int, flow: str | None
) -> None:
    rng = random.Random(seed)
    engine = make_engine(max_tokens=12 * 128)  # room for about four requests: most have to wait
    if flow:
        engine.load_flow(library.load(flow).program, Knobs(page_size=8, budget="64", reuse_steps=2))
    requests = [_request(rng, ids, i) for i in range(12)]
    scheduler = Scheduler(engine, max_batch=6)
    arriving = list(requests)
    waited = most = 0
    while len(scheduler.finished) < len(requests):
        for _ in range(rng.randint(0, 3)):
            if arriving:
                scheduler.submit(arriving.pop(0))
        scheduler.step()
        engine.check_integrity()
        waited += bool(scheduler.waiting)
        most = max(most, len(scheduler.running))
    assert waited, "the pool was never full"
    assert most > 1, "nothing ever ran together"
    assert engine.cache.blocks.available == engine.cache.blocks.total
    for request_id, request in enumerate(requests):
        got = scheduler.finished[request_id]
        (alone,) = engine.generate([request])
        assert (got.tokens, got.finish) == (alone.tokens, alone.finish)
        assert 0 < got.first_token_seconds <= got.seconds
        stopped = got.tokens[-1] in request.stop_ids
        assert got.finish == ("stop" if stopped else "length")
        assert stopped or len(got.tokens) == request.max_new_tokens


@pytest.mark.parametrize("flow", ["quest", "h2o"])
def test_preempted_requests_go_on_as_if_nothing_had_happened(make_engine: Make, ids: Make, flow: str) -> None:
    """Requests that outgrow the pool together: some give their blocks back and are computed again."""
    rng = random.Random(7)
    engine = make_engine(max_tokens=5 * 128)
    engine.load_flow(library.load(flow).program, Knobs(page_size=16, budget="64", reuse_steps=3))
    requests = [
        Request(
            ids(rng.randint(60, 120), i),
            max_new_tokens=rng.randint(200, 260),
            sampling=Sampling(temperature=float(i % 2), seed=i),
        )
        for i in range(3)
    ]
    scheduler = Scheduler(engine, max_batch=3)
    for request in requests:
        scheduler.submit(request)
    shown: dict[int, list[int]] = {i: [] for i in range(len(requests))}
    while len(scheduler.finished) < len(requests):
        for event in scheduler.step():
            shown[event.request_id].append(event.token)
        engine.check_integrity()
    assert scheduler.preemptions, "the pool was large enough for all"
    assert scheduler.preemptions == sum(g.preemptions for g in scheduler.finished.values())
    assert engine.cache.blocks.available == engine.cache.blocks.total
    for request_id, request in enumerate(requests):
        (alone,) = engine.generate([request])
        assert scheduler.finished[request_id].tokens == alone.tokens
        assert shown[request_id] == alone.tokens, "a token was shown twice, or never"


def test_a_long_prompt_is_prefilled_between_the_steps_of_others(
    make_engine: Make, ids: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    monkeypatch.setattr("vortex_core.engine.kv.prompts.PREFILL_CHUNK", {"cpu": 100})
    scheduler = Scheduler(engine)
    first = scheduler.submit(Request(ids(20, 0), max_new_tokens=20))
    assert [e.request_id for e in scheduler.step()] == [first]
    second = scheduler.submit(Request(ids(450, 1), max_new_tokens=2))
    steps = [[e.request_id for e in scheduler.step()] for _ in range(6)]
    assert steps == [[first]] * 4 + [[first, second]] * 2, "449 tokens are five chunks"
    engine.check_integrity()
    scheduler.abort()
    (alone,) = engine.generate([Request(ids(450, 1), max_new_tokens=2)])
    assert scheduler.finished[second].tokens == alone.tokens


def test_streams_show_tokens_as_they_come_and_may_be_closed(make_engine: Make, ids: Make) -> None:
    engine = make_engine()
    requests = [Request(ids(30, 0), max_new_tokens=4), Request(ids(60, 1), max_new_tokens=6)]
    want = [g.tokens for g in engine.generate(requests)]
    events = list(engine.stream(requests))
    assert [[e.token for e in events if e.request_id == i] for i in range(2)] == want
    assert [e.finish for e in events if e.request_id == 1] == [None] * 5 + ["length"]
    stream = engine.stream(requests)
    next(stream)
    stream.close()
    engine.check_integrity()
    assert engine.cache.blocks.available == engine.cache.blocks.total


def test_stop_strings_end_a_request_and_are_left_out(make_engine: Make, ids: Make) -> None:
    class Letters:
        """Token t is the letter t mod 26."""

        def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
            return "".join(chr(97 + token % 26) for token in tokens)

    engine = make_engine()
    request = Request(ids(40, 3), max_new_tokens=20)
    with pytest.raises(VortexError, match="without a tokenizer"):
        engine.generate([replace(request, stop_strings=("x",))])
    engine.tokenizer = Letters()
    (whole,) = engine.generate([request])
    assert whole.text == Letters().decode(whole.tokens, skip_special_tokens=True)
    assert whole.text is not None
    stop = whole.text[7:10]
    at = whole.text.index(stop)
    stopping = replace(request, stop_strings=("no such text", stop))
    (stopped,) = engine.generate([stopping])
    assert (stopped.text, stopped.finish) == (whole.text[:at], "stop")
    assert stopped.tokens == whole.tokens[: at + 3]
    assert "".join(e.text for e in engine.stream([stopping])) == whole.text[:at], "part of it was shown"


def test_results_come_in_the_order_of_requests_and_match_decode(make_engine: Make, ids: Make) -> None:
    engine = make_engine()
    requests = [Request(ids(n, n), max_new_tokens=m) for n, m in ((300, 3), (20, 9), (150, 6))]
    done = engine.generate(requests)
    assert [len(g.tokens) for g in done] == [3, 9, 6]
    for request, generation in zip(requests, done, strict=True):
        prompt = engine.prefill(request.token_ids)
        assert engine.decode([prompt], max_new_tokens=request.max_new_tokens).tokens == [generation.tokens]


def test_requests_beyond_the_batch_or_the_memory_wait(make_engine: Make, ids: Make) -> None:
    engine = make_engine(max_tokens=6 * 128)
    scheduler = Scheduler(engine, max_batch=2)
    for i in range(3):
        scheduler.submit(Request(ids(10, i), max_new_tokens=5))
    scheduler.step()
    assert (len(scheduler.running), len(scheduler.waiting)) == (2, 1), "max_batch"
    while len(scheduler.finished) < 3:
        scheduler.step()
    for i in range(2):
        scheduler.submit(Request(ids(300, i), max_new_tokens=5))  # 3 blocks and 1 in reserve each
    scheduler.step()
    assert (len(scheduler.running), len(scheduler.waiting)) == (1, 1), "memory"


def test_an_impossible_request_is_refused_before_any_runs(make_engine: Make, ids: Make) -> None:
    engine = make_engine(max_tokens=4 * 128)
    with pytest.raises(VortexError, match="needs 640 tokens of KV cache, 512 would fit") as caught:
        engine.generate([Request(ids(10, 0), 5), Request(ids(400, 1), 50)])
    assert caught.value.code == "VE010"
    pinned = engine.prefill(ids(129, 2))
    with pytest.raises(VortexError, match="384 would fit"):
        engine.generate([Request(ids(300, 1), 200)])
    with pytest.raises(VortexError, match="max_new_tokens is 0"):
        engine.generate([Request(ids(300, 1), 0)])
    engine.release(pinned)
    engine.check_integrity()
    assert engine.cache.blocks.available == 4


def test_room_taken_while_waiting_is_an_error_not_a_hang(make_engine: Make, ids: Make) -> None:
    engine = make_engine(max_tokens=4 * 128)
    scheduler = Scheduler(engine)
    scheduler.submit(Request(ids(200, 0), max_new_tokens=100))
    pinned = engine.prefill(ids(200, 1))
    with pytest.raises(VortexError, match="needs 512 tokens of KV cache, 256 would fit"):
        scheduler.step()
    engine.release(pinned)
    scheduler.step()
    assert len(scheduler.running) == 1


def test_abort_gives_everything_back(make_engine: Make, ids: Make) -> None:
    engine = make_engine(max_tokens=8 * 128)
    scheduler = Scheduler(engine)
    for i in range(4):
        scheduler.submit(Request(ids(200, i), max_new_tokens=30))
    scheduler.step()
    assert scheduler.running
    scheduler.abort()
    engine.check_integrity()
    assert engine.cache.blocks.available == 8
    assert not scheduler.running
    assert not scheduler.waiting
