"""The proposer that asks a language model: a prompt out, one program in, every token accounted for."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from agents.base import CHANGES, Proposal, ProposalRequest, Proposer, Usage
from agents.edits import chosen_knobs, edited
from agents.errors import ProposerError
from agents.prices import Estimate, SpendLimit, estimate
from agents.prompting import line, system_prompt, user_prompt
from agents.providers.base import Completion, Message, Provider
from agents.reply import MAX_SOURCE, Reply, extract, idea_of
from vortex_core.errors import VortexError
from vortex_core.flow.emit import emit
from vortex_core.flow.vflow import plain_name

_SEEDS = 2**31  # servers take a signed 32-bit seed
_TYPICAL_ANSWER = (
    1_500  # tokens of a program with its idea, measured on the programs of `benchmarks.first_try`
)


@dataclass(frozen=True)
class Forecast:
    """What one call is expected to take.

    Attributes:
        most: what is set aside before a call.
        typical: the same prompt with an answer of ordinary length.
    """

    most: Estimate
    typical: Estimate


class LLMProposer(Proposer):
    """Asks one model for programs. Holds no campaign state; the spending limit is the caller's.

    Args:
        provider: the model.
        language: the language reference, given to the model word for word.
        limit: checked before and settled after each call.
        max_tokens: longest answer, reasoning included.
        temperature: None for the model's own default.
    """

    changes = CHANGES

    def __init__(
        self,
        provider: Provider,
        *,
        language: str,
        limit: SpendLimit | None = None,
        max_tokens: int = 16_000,
        temperature: float | None = None,
    ) -> None:
        if not language.strip():
            raise ProposerError("VA002", "the language reference is empty", "pass the text of the reference")
        if max_tokens < 1:
            raise ProposerError("VA002", f"max_tokens is {max_tokens}", "give at least a few thousand tokens")
        self.name = provider.name
        self._provider = provider
        self._system = system_prompt(language)
        self._limit = limit or SpendLimit()
        self._max_tokens = max_tokens
        self._temperature = temperature

    async def propose(self, request: ProposalRequest) -> Proposal:
        """One program for one request.

        Raises:
            ProposerError: `VA004` for a request that lacks something, `VA010`-`VA020` from the provider,
                `VA021`-`VA026` for an answer without a program (its `usage` says what it cost),
                `VA030`-`VA031` from the spending limit, before any money is spent.
        """
        prompt = user_prompt(request)
        completion, usage = await self._ask(prompt, request)
        if completion.stop == "refusal":
            raise self._refused(usage)
        reply = self._read(completion.text, request, usage)
        if reply is None or (completion.stop == "length" and not reply.complete):
            raise self._unusable(completion, usage)
        return Proposal(reply.source, reply.idea, self.name, usage, prompt, completion.text, request.kind)

    def forecast(self, request: ProposalRequest) -> Forecast:
        """What a call for `request` takes; nothing is sent."""
        texts = self._system, user_prompt(request)
        price = self._provider.price
        return Forecast(
            estimate(price, texts, self._max_tokens),
            estimate(price, texts, min(self._max_tokens, _TYPICAL_ANSWER)),
        )

    def prices(self) -> dict[str, Any]:
        """See `Proposer`."""
        return {self.name: self._provider.price.snapshot()}

    async def _ask(self, prompt: str, request: ProposalRequest) -> tuple[Completion, Usage]:
        most = estimate(self._provider.price, (self._system, prompt), self._max_tokens)
        ticket = self._limit.reserve(most, self.name)
        if request.book is not None:
            request.book(self.name, most.tokens, most.dollars)
        try:
            completion = await self._provider.complete(
                self._system,
                [Message("user", prompt)],
                self._max_tokens,
                self._temperature,
                request.seed % _SEEDS,
            )
        except ProposerError as error:
            if error.maybe_billed:  # counted as the most that it can have cost, here and in the event log
                self._limit.keep(ticket)
                error.usage = replace(error.usage, dollars=most.dollars, input_tokens=most.tokens)
            else:
                self._limit.release(ticket)
            raise
        except BaseException:  # cancelled in flight: the provider may finish, and charge for, the work
            self._limit.keep(ticket)
            raise
        usage = self._usage(_plausible(completion, len((self._system + prompt).encode()), self._max_tokens))
        self._limit.settle(ticket, usage.dollars, usage.input_tokens + usage.output_tokens)
        return completion, usage

    def _usage(self, completion: Completion) -> Usage:
        dollars = self._provider.price.dollars(
            completion.input_tokens,
            completion.output_tokens,
            cache_read_tokens=completion.cache_read_tokens,
            cache_write_tokens=completion.cache_write_tokens,
        )
        return Usage(
            completion.input_tokens,
            completion.output_tokens,
            dollars,
            completion.attempts,
            completion.cache_read_tokens,
        )

    def _read(self, text: str, request: ProposalRequest, usage: Usage) -> Reply | None:
        """The program an answer stands for, by what was asked."""
        whole = extract(text)
        if whole is not None or request.kind not in ("diff", "tune"):
            return whole
        parent = request.parents[0]
        if request.kind == "diff":
            source = edited(text, parent.source)
            if source is None:
                raise ProposerError(
                    "VA025",
                    f"{self.name}: the edits quote what does not stand in the parent once; {_begins(text)}",
                    "ask again, or for the whole program",
                    usage=usage,
                )
            return Reply(source, idea_of(text), True)
        try:
            knobs = chosen_knobs(text)
            if knobs is None:
                raise VortexError("VA026", f"no JSON object of knobs; {_begins(text)}", "ask again")
            flow = parent.flow.with_knobs(**knobs)
        except (TypeError, VortexError) as error:
            raise ProposerError(
                "VA026", f"{self.name}: {line(error, 300)}", "ask again", usage=usage
            ) from None
        named = [word for word in parent.name.split() if not re.fullmatch(r"c\d+", word)]
        name = plain_name(named[0] if named else "flow")
        return Reply(emit(flow.program, flow.knobs, name, flow.doc), idea_of(text), True)

    def _refused(self, usage: Usage) -> ProposerError:
        return ProposerError(
            "VA021", f"{self.name} declined to answer", "ask again, or use another model", usage=usage
        )

    def _unusable(self, completion: Completion, usage: Usage) -> ProposerError:
        if completion.stop == "length":
            return ProposerError(
                "VA022",
                f"the answer of {self.name} was cut off after {completion.output_tokens} tokens",
                f"raise max_tokens above {self._max_tokens}",
                usage=usage,
            )
        return ProposerError(
            "VA023",
            f"the answer of {self.name} has no program with a class derived from vFlow "
            f"(of at most {MAX_SOURCE} characters); {_begins(completion.text)}",
            "ask again; if it persists, the model is too weak for the task",
            usage=usage,
        )


def _begins(text: str) -> str:
    return f"it begins: {line(text, 160) or 'nothing'}"


def _plausible(completion: Completion, prompt_bytes: int, max_tokens: int) -> Completion:
    """No text has more tokens than bytes, no answer far more than was allowed: a server that reports such counts must
    not end a campaign by them."""
    prompt = min(completion.input_tokens, prompt_bytes + 4096)
    return replace(
        completion, input_tokens=prompt, output_tokens=min(completion.output_tokens, 2 * max_tokens)
    )
