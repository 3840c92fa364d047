from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.errors import BudgetExceededError, ProposerError
from agents.prices import Estimate, Price, SpendLimit, estimate

OPENAI = "https://api.openai.com/v1"


def test_known_model_has_a_price_and_scales_with_tokens() -> None:
    price = Price("gpt-5-mini", OPENAI)
    one, ten = price.dollars(1000, 100), price.dollars(10_000, 1000)
    assert one is not None
    assert one > 0
    assert ten == pytest.approx(10 * one)


def test_cached_tokens_cost_less_than_fresh_ones() -> None:
    price = Price("claude-sonnet-4-5", "https://api.anthropic.com")
    fresh, cached = price.dollars(10_000, 1), price.dollars(10_000, 1, cache_read_tokens=9000)
    written = price.dollars(10_000, 1, cache_write_tokens=9000)
    assert fresh is not None
    assert cached is not None
    assert written is not None
    assert cached < fresh < written


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("no-such-model-xyz", OPENAI),
        ("gpt-5-mini", "http://127.0.0.1:30000/v1"),
        ("qwen3", "https://llm.example/v1"),
    ],
)
def test_unknown_is_unpriced_not_free(model: str, url: str) -> None:
    assert Price(model, url).dollars(1000, 1000) is None
    assert estimate(Price(model, url), ["prompt"], 100).dollars is None


def test_given_price_overrides_the_table() -> None:
    assert Price("qwen3", "http://127.0.0.1/v1", 2.0, 10.0).dollars(500_000, 100_000) == pytest.approx(2.0)


@pytest.mark.parametrize("pair", [(1.0, None), (None, 1.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_half_or_senseless_price_is_refused(pair: tuple[float | None, float | None]) -> None:
    with pytest.raises(ProposerError) as caught:
        Price("m", OPENAI, *pair)
    assert caught.value.code == "VA002"


def test_reservation_stops_concurrent_calls_before_the_cap() -> None:
    limit = SpendLimit(dollars=1.0)
    first = limit.reserve(Estimate(1000, 0.6), "m")
    with pytest.raises(BudgetExceededError) as caught:
        limit.reserve(Estimate(1000, 0.6), "m")
    assert caught.value.code == "VA030"
    assert not caught.value.retryable
    limit.settle(first, 0.1, 300)
    limit.reserve(Estimate(1000, 0.6), "m")
    assert limit.spent_dollars == pytest.approx(0.1)


def test_resumed_spending_counts() -> None:
    with pytest.raises(BudgetExceededError):
        SpendLimit(dollars=1.0, spent_dollars=0.9).reserve(Estimate(1, 0.2), "m")


def test_dollar_cap_refuses_an_unpriced_model() -> None:
    with pytest.raises(BudgetExceededError) as caught:
        SpendLimit(dollars=1.0).reserve(Estimate(10, None), "m")
    assert caught.value.code == "VA031"
    assert "input_price" in caught.value.remedy


def test_token_cap_holds_an_unpriced_model() -> None:
    limit = SpendLimit(tokens=1000)
    ticket = limit.reserve(Estimate(800, None), "m")
    with pytest.raises(BudgetExceededError):
        limit.reserve(Estimate(300, None), "m")
    limit.release(ticket)
    limit.keep(limit.reserve(Estimate(300, None), "m"))
    assert limit.spent_tokens == 300


@given(st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 1)), max_size=40))
def test_spending_never_passes_the_cap_when_calls_stay_within_their_estimate(
    calls: list[tuple[float, float]],
) -> None:
    limit = SpendLimit(dollars=1.0)
    open_calls: list[tuple[int, float]] = []
    for wanted, share in calls:
        try:
            open_calls.append((limit.reserve(Estimate(1, wanted), "m"), wanted * share))
        except BudgetExceededError:
            if open_calls:
                ticket, cost = open_calls.pop(0)
                limit.settle(ticket, cost, 1)
    for ticket, cost in open_calls:
        limit.settle(ticket, cost, 1)
    assert limit.spent_dollars <= 1.0 + 1e-9


def test_estimate_is_an_upper_guess_for_code_and_prose() -> None:
    # OpenAI's rule of thumb: a token is 3/4 of an English word, so 1,000 words are about 1,300 tokens.
    prose = "attention to every page of the cache " * 143
    assert 1300 < estimate(Price("x", OPENAI), [prose], 0).tokens < 2600


@pytest.mark.parametrize("cached", [2_000, 10**12])
def test_a_server_that_reports_more_cached_tokens_than_there_were_makes_the_call_unpriced(
    cached: int,
) -> None:
    """A price table refuses such counts; a campaign must not end by it."""
    assert Price("gpt-5-mini", OPENAI).dollars(1000, 100, cache_read_tokens=cached) is None
