"""What model servers do wrong, and what it means: an answer, a typed failure that may pass, and exact accounts."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time

import pytest

from agents.base import ProposalRequest
from agents.errors import ProposerError
from agents.llm import LLMProposer
from agents.prices import SpendLimit
from agents.providers.pace import Pace
from agents.registry import make_proposer
from agents.testing import FakeModelServer, Scripted

from .conftest import ANSWER, FLOW, LANGUAGE

PROTOCOLS = ("openai", "openai-responses", "anthropic")
SEED = ProposalRequest(kind="seed", seed=3)
PRICES = {"input_price": 1.0, "output_price": 10.0}


def proposer(
    protocol: str, server: FakeModelServer, limit: SpendLimit | None = None, **options: object
) -> LLMProposer:
    made = make_proposer(
        f"{protocol}:m@{server.url}", language=LANGUAGE, limit=limit, **{**PRICES, **options}
    )
    assert isinstance(made, LLMProposer)
    return made


def chat(message: dict[str, object], usage: object = None, **choice: object) -> bytes:
    usage = usage or {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    body = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "usage": usage}
    choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}, **choice}]
    return json.dumps(body | {"choices": choices}).encode()


def settled(asked: LLMProposer) -> str:
    """What became of a request: a program, or the code of a failure that may pass."""
    try:
        found = asyncio.run(asked.propose(SEED))
    except ProposerError as error:
        return error.code if error.retryable else f"{error.code} for good"
    return "program" if found.source == FLOW else "another program"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_arrives_whole_and_counted(protocol: str, stream: bool) -> None:
    answer = Scripted(ANSWER, input_tokens=1200, output_tokens=300, cache_read_tokens=1000)
    limit = SpendLimit(tokens=10**6)
    with FakeModelServer([answer]) as server:
        found = asyncio.run(proposer(protocol, server, limit, stream=stream).propose(SEED))
        assert bool(server.received[0].body.get("stream")) is stream
    assert found.source == FLOW
    assert found.usage.dollars == pytest.approx((1200 + 300 * 10) / 1e6)
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.cached_tokens) == (
        1200,
        300,
        1000,
    )
    assert limit.spent_tokens == 1500


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("stream", [False, True])
def test_half_an_answer_may_have_been_charged(protocol: str, stream: bool) -> None:
    limit = SpendLimit(tokens=10**6)
    with FakeModelServer([Scripted(ANSWER, half=True)]) as server, pytest.raises(ProposerError) as caught:
        asyncio.run(proposer(protocol, server, limit, stream=stream, max_retries=0).propose(SEED))
    assert caught.value.code in ("VA016", "VA020")
    assert caught.value.retryable
    if stream:
        assert caught.value.maybe_billed
        assert limit.spent_tokens > 16_000


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_kept_in_both_forms(protocol: str, form: str) -> None:
    wait = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    busy = Scripted("slow down", status=429, headers={"retry-after": wait})
    with FakeModelServer([busy, Scripted(ANSWER)]) as server:
        began = time.monotonic()
        found = asyncio.run(proposer(protocol, server).propose(SEED))
    assert found.usage.calls == 2
    assert 0.7 < time.monotonic() - began < 10


REFUSED_OPTIONS = [
    (
        "openai",
        {"temperature": 0.5},
        "Unsupported value: 'temperature' does not support 0.5 with this model.",
        "temperature",
    ),
    (
        "openai",
        {},
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "max_tokens",
    ),
    ("openai", {}, "Extra inputs are not permitted: seed", "seed"),
    ("openai", {"structured": True}, "response_format is not supported", "response_format"),
    ("openai-responses", {"temperature": 0.5}, "Unsupported parameter: 'temperature'", "temperature"),
    ("anthropic", {"temperature": 0.5}, "`temperature` is deprecated for this model.", "temperature"),
]


@pytest.mark.parametrize(("protocol", "options", "message", "name"), REFUSED_OPTIONS)
def test_what_a_server_refuses_is_left_out_from_then_on(
    protocol: str, options: dict[str, object], message: str, name: str
) -> None:
    with FakeModelServer([Scripted(message, status=400), Scripted(ANSWER)]) as server:
        asked = proposer(protocol, server, **options)
        for _ in range(2):
            assert asyncio.run(asked.propose(SEED)).source == FLOW
        bodies = [received.body for received in server.received]
    assert len(bodies) == 3
    assert name in bodies[0]
    assert all(name not in body for body in bodies[1:])
    if name == "max_tokens":
        assert bodies[1]["max_completion_tokens"] == bodies[0]["max_tokens"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_structured_answer_is_a_program(protocol: str) -> None:
    with FakeModelServer([Scripted(json.dumps({"idea": "means", "program": FLOW}))]) as server:
        found = asyncio.run(proposer(protocol, server, structured=True).propose(SEED))
        body = server.received[0].body
    assert (found.source, found.idea) == (FLOW, "means")
    assert {"response_format", "text", "tools"} & body.keys()


CALLED = {
    "content": None,
    "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": ANSWER}}],
}
PAID = {
    "null content": (chat({"content": None}), "VA023"),
    "reasoning only": (chat({"content": None, "reasoning_content": "hm", "reasoning": "hm"}), "VA023"),
    "refusal": (chat({"content": None, "refusal": "no"}), "VA021"),
    "empty choices": (
        b'{"id":"c","model":"m","choices":[],"usage":{"prompt_tokens":100,"completion_tokens":20}}',
        "VA023",
    ),
    "200 kB of prose": (chat({"content": "word " * 40_000}), "VA023"),
}


@pytest.mark.parametrize("name", PAID)
def test_an_answer_without_a_program_is_paid_to_the_token(name: str) -> None:
    raw, code = PAID[name]
    limit = SpendLimit(tokens=10**6)
    with FakeModelServer([Scripted(raw=raw)]) as server, pytest.raises(ProposerError) as caught:
        asyncio.run(proposer("openai", server, limit).propose(SEED))
    assert caught.value.code == code
    assert limit.spent_tokens == 120


@pytest.mark.parametrize(
    "raw",
    [chat(CALLED), chat({"content": "x" * 200_000 + "\n\n" + ANSWER, "reasoning_content": "hm"})],
    ids=["tool call", "after 200 kB"],
)
def test_a_program_in_an_odd_place_is_found(raw: bytes) -> None:
    with FakeModelServer([Scripted(raw=raw)]) as server:
        assert asyncio.run(proposer("openai", server).propose(SEED)).source == FLOW


NONSENSE = [
    {"prompt_tokens": -5, "completion_tokens": -1},
    {"prompt_tokens": 10**15, "completion_tokens": 10**15},
    {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 10**9}},
    {"prompt_tokens": "many", "completion_tokens": None},
    {"prompt_tokens": 1e400, "completion_tokens": 1},
]


@pytest.mark.parametrize("usage", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_usage_is_bounded_by_what_was_reserved(usage: dict[str, object]) -> None:
    limit = SpendLimit(dollars=10.0)
    with FakeModelServer([Scripted(raw=chat({"content": ANSWER}, usage))]) as server:
        outcome = settled(proposer("openai", server, limit))
    assert outcome in ("program", "VA020")
    assert 0 <= limit.spent_dollars < 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_that_are_no_text_are_outside_the_protocol(protocol: str) -> None:
    raw = Scripted(ANSWER).body(protocol, "m").replace(b"means are cheap", b"\xff\xfe\x80")  # type: ignore[arg-type]
    with FakeModelServer([Scripted(raw=raw)]) as server:
        assert settled(proposer(protocol, server)) in ("program", "VA020")


def test_every_call_is_booked_before_it_is_sent() -> None:
    booked: list[tuple[str, int, float | None]] = []
    with FakeModelServer([Scripted(ANSWER)]) as server:

        def book(who: str, tokens: int, dollars: float | None) -> None:
            assert server.received == []
            booked.append((who, tokens, dollars))

        asked = proposer("openai", server)
        asyncio.run(asked.propose(ProposalRequest(kind="seed", seed=1, book=book)))
    ((who, tokens, dollars),) = booked
    assert who == asked.name
    assert tokens > 16_000
    assert dollars is not None and dollars > 0.16


def test_a_server_that_pushes_back_is_asked_less_at_once() -> None:
    async def go() -> tuple[float, float, int]:
        pace, most, now = Pace(start=4), 0, 0

        async def call(*, pushed: bool) -> None:
            nonlocal most, now
            async with pace.turn() as turn:
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.001)
                now -= 1
                turn.pushed = pushed

        await asyncio.gather(*(call(pushed=False) for _ in range(40)))
        wide = pace.bound
        for _ in range(3):
            await call(pushed=True)
        return wide, pace.bound, most

    wide, narrow, most = asyncio.run(go())
    assert wide > 6
    assert narrow < wide / 4
    assert 4 <= most <= wide
