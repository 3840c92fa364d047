"""The proposer that asks a language model: a prompt out, one program in, every token accounted for."""

from __future__ import annotations

from dataclasses import replace

from agents.base import Proposal, ProposalRequest, Proposer, Usage
from agents.errors import ProposerError
from agents.prices import SpendLimit, estimate
from agents.prompting import line, system_prompt, user_prompt
from agents.providers.base import Completion, Message, Provider
from agents.reply import MAX_SOURCE, extract

_SEEDS = 2**31  # servers take a signed 32-bit seed


class LLMProposer(Proposer):
    """Asks one model for whole programs. Holds no campaign state; the spending limit is the caller's.

    Args:
        provider: the model.
        language: the language reference, given to the model word for word.
        limit: checked before and settled after each call.
        max_tokens: longest answer, reasoning included.
        temperature: None for the model's own default.
    """

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
                `VA021`-`VA023` for an answer without a program (its `usage` says what it cost),
                `VA030`-`VA031` from the spending limit, before any money is spent.
        """
        prompt = user_prompt(request)
        completion = await self._ask(prompt, request.seed % _SEEDS)
        usage = self._usage(completion)
        reply = None if completion.stop == "refusal" else extract(completion.text)
        if reply is None or (completion.stop == "length" and not reply.complete):
            raise self._unusable(completion, usage)
        return Proposal(reply.source, reply.idea, self.name, usage, prompt, completion.text)

    async def _ask(self, prompt: str, seed: int) -> Completion:
        price = self._provider.price
        most = estimate(price, (self._system, prompt), self._max_tokens)
        ticket = self._limit.reserve(most, self.name)
        try:
            completion = await self._provider.complete(
                self._system, [Message("user", prompt)], self._max_tokens, self._temperature, seed
            )
        except ProposerError as error:
            if error.maybe_billed:  # counted as the most that it can have cost, here and in the event log
                self._limit.keep(ticket)
                error.usage = replace(error.usage, dollars=most.dollars)
            else:
                self._limit.release(ticket)
            raise
        except BaseException:  # cancelled in flight: the provider may finish, and charge for, the work
            self._limit.keep(ticket)
            raise
        usage = self._usage(completion)
        self._limit.settle(ticket, usage.dollars, usage.input_tokens + usage.output_tokens)
        return completion

    def _usage(self, completion: Completion) -> Usage:
        dollars = self._provider.price.dollars(
            completion.input_tokens,
            completion.output_tokens,
            cache_read_tokens=completion.cache_read_tokens,
            cache_write_tokens=completion.cache_write_tokens,
        )
        return Usage(completion.input_tokens, completion.output_tokens, dollars, completion.attempts)

    def _unusable(self, completion: Completion, usage: Usage) -> ProposerError:
        if completion.stop == "refusal":
            return ProposerError(
                "VA021", f"{self.name} declined to answer", "ask again, or use another model", usage=usage
            )
        if completion.stop == "length":
            return ProposerError(
                "VA022",
                f"the answer of {self.name} was cut off after {completion.output_tokens} tokens",
                f"raise max_tokens above {self._max_tokens}",
                usage=usage,
            )
        said = line(completion.text, 160) or "nothing"
        return ProposerError(
            "VA023",
            f"the answer of {self.name} has no program with a class derived from vFlow "
            f"(of at most {MAX_SOURCE} characters); it begins: {said}",
            "ask again; if it persists, the model is too weak for the task",
            usage=usage,
        )
