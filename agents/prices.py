"""Prices of model calls and a spending limit that is checked before each one.

Prices come from the table packaged with genai-prices. A model it does not know is *unpriced*: its cost is
None, never zero. A call reserves the most it can cost before it is made and settles the true cost after.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from agents.errors import BudgetExceededError, ProposerError

# English and Python take 3.5-4.5 bytes a token with current tokenizers: 3 makes an upper guess.
_BYTES_PER_TOKEN = 3
_PER_MESSAGE_TOKENS = 16


@dataclass(frozen=True)
class Price:
    """How to price calls to one model.

    Attributes:
        model: the model's name.
        base_url: the server's address, which decides whose prices apply.
        input_per_million: dollars per million prompt tokens; with `output_per_million`, overrides the table.
        output_per_million: dollars per million produced tokens.
    """

    model: str
    base_url: str
    input_per_million: float | None = None
    output_per_million: float | None = None

    def __post_init__(self) -> None:
        given = (self.input_per_million, self.output_per_million)
        if (given[0] is None) != (given[1] is None):
            raise ProposerError(
                "VA002",
                "a price needs input_price and output_price together",
                "give both, in dollars per million",
            )
        if any(p is not None and not (math.isfinite(p) and p >= 0) for p in given):
            raise ProposerError(
                "VA002", f"price {given} is not a sum of money", "give dollars per million tokens"
            )

    def dollars(
        self,
        input_tokens: int,
        output_tokens: int,
        *,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
    ) -> float | None:
        """What a call costs, or None if the model is unpriced. Cached tokens are part of `input_tokens`."""
        if self.input_per_million is not None and self.output_per_million is not None:
            return (input_tokens * self.input_per_million + output_tokens * self.output_per_million) / 1e6
        from genai_prices import Usage, calc_price

        usage = Usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read_tokens=cache_read_tokens or None,
            cache_write_tokens=cache_write_tokens or None,
        )
        try:
            return float(calc_price(usage, self.model, provider_api_url=self.base_url).total_price)
        except (LookupError, ValueError):  # a model it does not know, or counts that it takes for nonsense
            return None

    def snapshot(self) -> dict[str, float | str | None]:
        """What is charged now, in dollars per million tokens, to be kept with a run: tables change."""
        million = 1_000_000
        return {
            "model": self.model,
            "input": self.dollars(million, 0),
            "output": self.dollars(0, million),
            "cached": self.dollars(million, 0, cache_read_tokens=million),
        }


@dataclass(frozen=True)
class Estimate:
    """The most a call is expected to take, before it is made. `dollars` None: unpriced."""

    tokens: int
    dollars: float | None


def estimate(price: Price, texts: Iterable[str], max_tokens: int) -> Estimate:
    """Upper guess for a prompt made of `texts` and an answer of `max_tokens`."""
    prompt = sum(math.ceil(len(t.encode()) / _BYTES_PER_TOKEN) + _PER_MESSAGE_TOKENS for t in texts)
    return Estimate(prompt + max_tokens, price.dollars(prompt, max_tokens))


class SpendLimit:
    """A cap on dollars, tokens, calls or all of them, shared by the calls of one campaign.

    It counts what calls to language models cost, not the machines that evaluate. Calls in flight count with
    their reservation, so concurrent calls cannot pass the cap together. One event loop owns it: no locks.

    Args:
        dollars: cap in dollars, None for none.
        tokens: cap on tokens in and out, None for none; the only cap that an unpriced model can respect.
        calls: cap on calls, None for none.
        spent_dollars: already spent, when a campaign resumes.
        spent_tokens: already used, when a campaign resumes.
        spent_calls: already made, when a campaign resumes.
    """

    def __init__(
        self,
        dollars: float | None = None,
        tokens: int | None = None,
        calls: int | None = None,
        *,
        spent_dollars: float = 0.0,
        spent_tokens: int = 0,
        spent_calls: int = 0,
    ) -> None:
        self.dollars = dollars
        self.tokens = tokens
        self.spent_dollars = spent_dollars
        self.spent_tokens = spent_tokens
        self.calls = calls
        self.spent_calls = spent_calls
        self._open: dict[int, Estimate] = {}
        self._next = 0

    def reserve(self, wanted: Estimate, model: str) -> int:
        """Set `wanted` aside; the ticket returned is settled later.

        Raises:
            BudgetExceededError: `VA030` if it does not fit, `VA031` if a dollar cap meets an unpriced model.
        """
        if self.dollars is not None:
            if wanted.dollars is None:
                raise BudgetExceededError(
                    "VA031",
                    f"no price is known for {model}, so a cap of ${self.dollars:.2f} cannot be kept",
                    "give input_price and output_price (dollars per million tokens), or cap tokens instead",
                )
            held = self.spent_dollars + sum(e.dollars or 0.0 for e in self._open.values())
            if held + wanted.dollars > self.dollars:
                raise BudgetExceededError(
                    "VA030",
                    f"${held:.4f} of ${self.dollars:.2f} is spent or reserved, and the next call to {model} "
                    f"may cost ${wanted.dollars:.4f}",
                    "raise the dollar cap, lower max_tokens, or use a cheaper model",
                )
        if self.tokens is not None:
            used = self.spent_tokens + sum(e.tokens for e in self._open.values())
            if used + wanted.tokens > self.tokens:
                raise BudgetExceededError(
                    "VA030",
                    f"{used} of {self.tokens} tokens are used or reserved, and the next call to {model} "
                    f"may take {wanted.tokens}",
                    "raise the token cap or lower max_tokens",
                )
        if self.calls is not None and self.spent_calls + len(self._open) >= self.calls:
            raise BudgetExceededError(
                "VA030", f"all of {self.calls} calls are made or under way", "raise the cap on calls"
            )
        ticket, self._next = self._next, self._next + 1
        self._open[ticket] = wanted
        return ticket

    def settle(self, ticket: int, dollars: float | None, tokens: int) -> None:
        """Replace a reservation by what the call took."""
        del self._open[ticket]
        self.spent_calls += 1
        self.spent_dollars += dollars or 0.0
        self.spent_tokens += tokens

    def keep(self, ticket: int) -> None:
        """Count a reservation in full: the answer was lost and the provider may have charged for it."""
        held = self._open[ticket]
        self.settle(ticket, held.dollars, held.tokens)

    def release(self, ticket: int) -> None:
        """Drop a reservation: the call was refused and cost nothing."""
        self.settle(ticket, 0.0, 0)
