"""Both protocols through the real SDKs and a real local socket."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Callable

import pytest

from agents.base import ProposalRequest
from agents.errors import BudgetExceededError, ProposerError
from agents.llm import LLMProposer
from agents.prices import SpendLimit
from agents.providers.base import Endpoint, Message, Patience, Provider, resolve_endpoint
from agents.registry import make_proposer
from agents.testing import FakeModelServer, ProposerConformance, Scripted

from .conftest import ANSWER, FLOW, LANGUAGE

SECRET = "sk-test-51d0c7f2e9ab"
SOON = {"retry-after-ms": "5"}
PROTOCOLS = ("openai", "anthropic")
SEED = ProposalRequest(kind="seed", seed=3, objective="fast and accurate")


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ask(protocol: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LLMProposer]:
    """A proposer of the protocol at a server, with a key in the environment."""
    monkeypatch.setenv(f"{protocol.upper()}_API_KEY", SECRET)

    def make(server: FakeModelServer, limit: SpendLimit | None = None, **options: object) -> LLMProposer:
        made = make_proposer(f"{protocol}:m1@{server.url}", language=LANGUAGE, limit=limit, **options)
        assert isinstance(made, LLMProposer)
        return made

    return make


def failing(proposer: LLMProposer) -> ProposerError:
    with pytest.raises(ProposerError) as caught:
        asyncio.run(proposer.propose(SEED))
    return caught.value


def test_success_end_to_end(protocol: str, ask: Callable[..., LLMProposer]) -> None:
    answer = Scripted(ANSWER, input_tokens=1200, output_tokens=300, cache_read_tokens=1000)
    with FakeModelServer([answer]) as server:
        proposer = ask(server, max_tokens=900, temperature=0.4, input_price=1.0, output_price=10.0)
        proposal = asyncio.run(proposer.propose(SEED))
        (received,) = server.received
        url = server.url
    assert proposal.source == FLOW
    assert proposal.idea == "means are cheap and good enough."
    assert proposal.proposer == f"{protocol}:m1@{url.removesuffix('/v1') if protocol == 'anthropic' else url}"
    usage = proposal.usage
    assert (usage.input_tokens, usage.output_tokens, usage.calls) == (1200, 300, 1)
    assert usage.dollars == pytest.approx((1200 * 1.0 + 300 * 10.0) / 1e6)
    body = received.body
    assert received.protocol == protocol
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m1", 900, 0.4)
    assert LANGUAGE in json.dumps(body)
    assert "fast and accurate" in body["messages"][-1]["content"]
    if protocol == "openai":
        assert received.headers["authorization"] == f"Bearer {SECRET}"
        assert body["seed"] == 3
        assert body["messages"][0]["role"] == "system"
    else:
        assert SECRET in (
            received.headers.get("x-api-key", ""),
            received.headers.get("authorization", "")[7:],
        )
        assert body["system"][0]["cache_control"] == {"type": "ephemeral"}
        assert "seed" not in body


def test_model_defaults_are_left_alone(ask: Callable[..., LLMProposer]) -> None:
    with FakeModelServer([Scripted(ANSWER)]) as server:
        asyncio.run(ask(server).propose(SEED))
        assert "temperature" not in server.received[0].body


def test_unknown_price_is_none_not_zero(ask: Callable[..., LLMProposer]) -> None:
    with FakeModelServer([Scripted(ANSWER)]) as server:
        assert asyncio.run(ask(server).propose(SEED)).usage.dollars is None


@pytest.mark.parametrize("status", [429, 500, 529])
def test_passing_trouble_is_retried(ask: Callable[..., LLMProposer], status: int) -> None:
    busy = Scripted("busy", status=status, headers=SOON)
    with FakeModelServer([busy, busy, Scripted(ANSWER)]) as server:
        proposal = asyncio.run(ask(server).propose(SEED))
        assert len(server.received) == 3
    assert proposal.source == FLOW
    assert proposal.usage.calls == 3


@pytest.mark.parametrize(
    ("status", "message", "code", "retryable"),
    [
        (401, "invalid key", "VA011", False),
        (403, "not allowed", "VA011", False),
        (404, "model m1 does not exist", "VA018", False),
        (400, "temperature is not supported", "VA019", False),
        (400, "prompt is too long: 300000 tokens > 200000 maximum", "VA017", False),
        (400, "This model's maximum context length is 8192 tokens", "VA017", False),
        (400, "Your credit balance is too low", "VA013", False),
        (413, "request too large", "VA017", False),
        (429, "slow down", "VA012", True),
        (429, "You exceeded your current quota", "VA013", False),
        (500, "internal", "VA014", True),
        (529, "overloaded", "VA014", True),
    ],
)
def test_refusals_are_typed(
    ask: Callable[..., LLMProposer], status: int, message: str, code: str, retryable: bool
) -> None:
    with FakeModelServer([Scripted(message, status=status, headers=SOON)]) as server:
        limit = SpendLimit(tokens=100_000)
        error = failing(ask(server, limit, max_retries=1))
        asked = len(server.received)
    assert (error.code, error.retryable) == (code, retryable)
    assert message in error.message
    assert error.remedy
    assert error.usage.calls == asked == (2 if status == 429 or status >= 500 else 1)
    assert limit.spent_tokens == 0
    assert json.loads(json.dumps(error.to_json()))["retryable"] is retryable


def test_slow_answer_times_out_and_counts_as_spent(ask: Callable[..., LLMProposer]) -> None:
    limit = SpendLimit(tokens=100_000)
    with FakeModelServer([Scripted(ANSWER, delay_s=20)]) as server:
        start = time.monotonic()
        error = failing(ask(server, limit, timeout_s=0.3, max_retries=0))
        assert time.monotonic() - start < 5
    assert (error.code, error.retryable, error.maybe_billed) == ("VA015", True, True)
    assert limit.spent_tokens > 16_000


def test_deadline_bounds_retries_and_pauses(ask: Callable[..., LLMProposer]) -> None:
    with FakeModelServer([Scripted("busy", status=429, headers={"retry-after": "60"})]) as server:
        start = time.monotonic()
        error = failing(ask(server, timeout_s=30, deadline_s=0.5))
        assert time.monotonic() - start < 5
    assert error.code == "VA015"


def test_cancelled_call_counts_as_spent(ask: Callable[..., LLMProposer]) -> None:
    limit = SpendLimit(tokens=100_000)

    async def cancel(proposer: LLMProposer, server: FakeModelServer) -> None:
        task = asyncio.create_task(proposer.propose(SEED))
        while not server.received:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with FakeModelServer([Scripted(ANSWER, delay_s=20)]) as server:
        asyncio.run(cancel(ask(server, limit), server))
    assert limit.spent_tokens > 16_000


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"choices": [], "content": null, "usage": {}}',
    ],
)
def test_malformed_answer(ask: Callable[..., LLMProposer], raw: bytes) -> None:
    with FakeModelServer([Scripted(raw=raw)]) as server:
        error = failing(ask(server, max_retries=0))
    assert error.code == "VA020"
    assert "protocol" in error.remedy


def test_answer_without_token_counts_is_not_taken_for_free(
    protocol: str, ask: Callable[..., LLMProposer]
) -> None:
    body = json.loads(Scripted(ANSWER).body(protocol, "m1"))  # type: ignore[arg-type]
    del body["usage"]
    with FakeModelServer([Scripted(raw=json.dumps(body).encode())]) as server:
        assert failing(ask(server, max_retries=0)).code == "VA020"


def test_server_that_hangs_up_or_is_not_there(ask: Callable[..., LLMProposer]) -> None:
    with FakeModelServer([Scripted(hang_up=True)]) as server:
        proposer = ask(server, max_retries=0)
        assert failing(proposer).code == "VA016"
    error = failing(proposer)  # closed by now
    assert (error.code, error.retryable) == ("VA016", True)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Scripted("I would rather not.", stop="refusal"), "VA021"),
        (Scripted(ANSWER[: len(ANSWER) // 2], stop="length"), "VA022"),
        (Scripted("", stop="length"), "VA022"),
        (Scripted("There is no such program."), "VA023"),
        (Scripted(""), "VA023"),
    ],
)
def test_answer_without_a_program_is_paid_for(
    ask: Callable[..., LLMProposer], answer: Scripted, code: str
) -> None:
    limit = SpendLimit(dollars=1.0)
    with FakeModelServer([answer]) as server:
        error = failing(ask(server, limit, input_price=1.0, output_price=10.0))
    assert (error.code, error.retryable) == (code, True)
    assert (error.usage.input_tokens, error.usage.output_tokens) == (100, 20)
    assert error.usage.dollars == pytest.approx(limit.spent_dollars) == pytest.approx(3e-4)


def test_program_that_is_whole_survives_the_token_limit(ask: Callable[..., LLMProposer]) -> None:
    with FakeModelServer([Scripted(ANSWER + "And furthermore", stop="length")]) as server:
        assert asyncio.run(ask(server).propose(SEED)).source == FLOW


def test_limit_is_checked_before_the_call(ask: Callable[..., LLMProposer]) -> None:
    with FakeModelServer([Scripted(ANSWER)]) as server:
        for limit, options, code in (
            (SpendLimit(dollars=0.01), {"input_price": 1.0, "output_price": 10.0}, "VA030"),
            (SpendLimit(dollars=100.0), {}, "VA031"),
            (SpendLimit(tokens=1000), {}, "VA030"),
        ):
            error = failing(ask(server, limit, **options))
            assert isinstance(error, BudgetExceededError)
            assert error.code == code
        assert server.received == []


def test_key_is_in_no_error_log_or_representation(
    protocol: str, ask: Callable[..., LLMProposer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f"Incorrect API key provided: {SECRET}; also sk-other-secret-123456"
    with FakeModelServer([Scripted(echo, status=401), Scripted(raw=f'"{SECRET}"'.encode())]) as server:
        proposer = ask(server, max_retries=0)
        errors = [failing(proposer), failing(proposer)]
    for error in errors:
        shown = (
            "".join(traceback.format_exception(error))
            + str(error)
            + repr(error)
            + json.dumps(error.to_json())
        )
        assert SECRET not in shown
        assert "sk-other" not in shown
        assert error.__context__ is None
    assert "[key]" in errors[0].message
    assert SECRET not in caplog.text
    assert SECRET not in repr(proposer) + repr(vars(proposer)) + repr(vars(proposer._provider))


def test_missing_key_names_the_variable(protocol: str) -> None:
    with pytest.raises(ProposerError) as caught:
        make_proposer(f"{protocol}:m1", language=LANGUAGE)
    assert caught.value.code == "VA010"
    assert f"{protocol.upper()}_API_KEY" in caught.value.message


def test_own_server_needs_no_key(protocol: str) -> None:
    with FakeModelServer([Scripted(ANSWER)]) as server:
        proposer = make_proposer(f"{protocol}:m1@{server.url}", language=LANGUAGE)
        assert asyncio.run(proposer.propose(SEED)).source == FLOW


def endpoint(url: str) -> Endpoint:
    return resolve_endpoint(
        url, key_variable="OPENAI_API_KEY", url_variable="UNSET_URL", official="https://x.org"
    )


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://llm.example.org/v1", True),
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://10.0.0.7:30000/v1", False),
        ("http://127.0.0.1.example.org/v1", False),
    ],
)
def test_key_never_travels_in_clear_text(monkeypatch: pytest.MonkeyPatch, url: str, sent: bool) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    chosen = endpoint(url)
    assert (chosen.key == SECRET, chosen.withheld) == (sent, not sent)
    assert SECRET not in repr(chosen)


@pytest.mark.parametrize(
    "url", ["http://user:hunter2@h/v1", "http://h/v1?key=hunter2", "ftp://h", "h:80", "http://[::1"]
)
def test_address_with_a_secret_or_without_sense_is_refused_unquoted(url: str) -> None:
    with pytest.raises(ProposerError) as caught:
        endpoint(url)
    assert caught.value.code == "VA001"
    assert "hunter2" not in str(caught.value)


def test_address_from_the_environment(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeModelServer([Scripted(ANSWER)]) as server:
        url = server.url if protocol == "openai" else server.url.removesuffix("/v1")
        monkeypatch.setenv(f"{protocol.upper()}_BASE_URL", url)
        proposer = make_proposer(f"{protocol}:m1", language=LANGUAGE)
        assert asyncio.run(proposer.propose(SEED)).source == FLOW


def test_provider_keeps_the_conversation(protocol: str, ask: Callable[..., LLMProposer]) -> None:
    turns = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
    with FakeModelServer([Scripted("four")]) as server:
        provider: Provider = ask(server)._provider
        completion = asyncio.run(provider.complete("rules", turns, 10))
        sent = server.received[0].body["messages"]
    assert completion.text == "four"
    assert [turn["content"] for turn in sent if turn["role"] != "system"] == ["one", "two", "three"]


@pytest.mark.parametrize("value", [{"timeout_s": 0.0}, {"deadline_s": -1.0}, {"max_retries": -1}])
def test_senseless_patience_is_refused(value: dict[str, float]) -> None:
    with pytest.raises(ProposerError) as caught:
        Patience(**value)  # type: ignore[arg-type]
    assert caught.value.code == "VA002"


class _Conformance(ProposerConformance):
    protocol = ""

    @pytest.fixture(autouse=True)
    def _serve(self) -> object:
        with FakeModelServer([Scripted(ANSWER)]) as server:
            self.url = server.url
            yield

    def make_proposer(self) -> LLMProposer:
        made = make_proposer(f"{self.protocol}:m1@{self.url}", language=LANGUAGE)
        assert isinstance(made, LLMProposer)
        return made


class TestOpenAIConformance(_Conformance):
    protocol = "openai"


class TestAnthropicConformance(_Conformance):
    protocol = "anthropic"
