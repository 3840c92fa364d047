"""From an arm's turn to a proposal: what is asked next, who answers, and what a failure means for the campaign."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Mapping
from typing import Any

from agents.base import Proposal as Answer
from agents.base import ProposalRequest, Proposer, Usage
from agents.errors import ProposerError
from agents.grammar.proposer import GrammarProposer
from search.campaign import feedback, fitting
from search.campaign.arms import Arms
from search.campaign.lessons import Lessons
from search.campaign.pipeline import Pipeline
from search.campaign.queue import Queue
from search.campaign.replay import Recording
from search.config import CampaignConfig
from search.errors import proposer_down
from search.log import events as ev
from search.log.state import USER, CampaignState, Candidate, Proposal
from vortex_core.errors import VortexError


class Asking:
    """Asks proposers and records what they say.

    Args:
        config: the campaign.
        state: read only; it changes through `record`.
        record: writes events.
        proposers: by arm name.
        arms: whose strategies say what is wanted.
        pipeline: knows flows, files and the model's shapes, and holds work back when the campaign is to stop.
        model: description of the model for prompts.
        lessons: what this run and others found out.
        recording: replays these asks instead of asking the strategies.
    """

    def __init__(
        self,
        config: CampaignConfig,
        state: CampaignState,
        record: Callable[..., None],
        proposers: Mapping[str, Proposer],
        arms: Arms,
        pipeline: Pipeline,
        model: dict[str, Any],
        lessons: Lessons,
        recording: Recording | None,
    ) -> None:
        self.config = config
        self.state = state
        self.record = record
        self.proposers = proposers
        self.arms = arms
        self.pipeline = pipeline
        self.model = model
        self.lessons = lessons
        self.recording = recording
        self.spent: str | None = None
        """Why nobody can be asked any more, once that is so."""
        self.queue = Queue(pipeline.run.folder, state)
        self._files = pipeline.run.files
        self._fits = fitting.fits(config, pipeline.geometry)
        self._room = fitting.room(config, pipeline.geometry)
        self._stepper = GrammarProposer()
        self._broken: dict[int, Proposal] = {}
        self._short: list[Candidate] = []

    # -- what is asked -----------------------------------------------------------------------------------

    @property
    def replayed(self) -> bool:
        """Whether all asks of the recording were made."""
        return self.recording is not None and len(self.state.proposals) + 1 not in self.recording.asks

    def broken(self, proposal: Proposal | None) -> None:
        """Remember a proposal that its author may be asked to mend."""
        if proposal is None or proposal.arm == USER or proposal.depth >= self.config.repairs:
            return
        if not self.proposers[proposal.arm].repairs:
            return
        if not proposal.repaired and feedback.repair_error(proposal, self.state):
            self._broken[proposal.id] = proposal

    def screened(self, candidate: Candidate) -> None:
        """Remember a found program that broke a gate of the screen, for others to be told: looking once is enough."""
        if feedback.screened_out(candidate, self.config):
            insort(self._short, candidate, key=lambda c: c.number)

    def mending(self, number: int) -> None:
        """The repair of a proposal was asked for."""
        self._broken.pop(number, None)

    def next(self) -> Proposal:
        """The next request: what a user handed in, a due repair, else for the arm furthest behind its share."""
        number = len(self.state.proposals) + 1
        if self.recording is not None:
            self.record(self.recording.asks[number])
            return self.state.proposals[number]
        if waiting := self.queue.waiting():
            self.record(ev.Asked(number, USER, "handed in", (), 0, USER, by=waiting[0]))
            return self.state.proposals[number]
        broken = self._broken[min(self._broken)] if self._broken else None
        if broken is not None:
            self.record(
                ev.Asked(
                    number, broken.arm, "repair", broken.parents, broken.seed + 1, broken.proposer, broken.id
                )
            )
            return self.state.proposals[number]
        arm = self.arms.next()
        ask = self.arms.strategies[arm.name].ask(self.state.asks(arm.name))
        name = self._author(arm.name, ask.kind, ask.point).name
        self.record(
            ev.Asked(number, arm.name, ask.kind, ask.parents, ask.seed, name, point=ask.point, by=ask.by)
        )
        return self.state.proposals[number]

    def _author(self, arm: str, kind: str, point: tuple[float, ...]) -> Proposer:
        """Who answers: the arm's proposer, or the grammar where there is nothing for an author to do."""
        if self.recording is not None:  # answers as they were, a user's too
            return next(iter(self.proposers.values()))
        proposer = self.proposers[arm]
        return self._stepper if point or kind not in proposer.kinds else proposer

    # -- what is answered --------------------------------------------------------------------------------

    async def answer(self, proposal: Proposal) -> Answer | None:
        """The answer to an ask, recorded; None for a failure, which is recorded too.

        Raises:
            VortexError: a failure that only a person can mend, or one more than the campaign has patience for.
        """
        async with self.pipeline.drain.work():  # what is paid for is waited for, and recorded
            return await self._ask(proposal)

    async def _ask(self, proposal: Proposal) -> Answer | None:
        began = time.monotonic()
        try:
            if proposal.arm == USER and self.recording is None:
                answer = self.queue.read(proposal.by)
            else:
                answer = await self._write(proposal)
        except VortexError as error:
            used = error.usage if isinstance(error, ProposerError) else Usage()
            self.record(
                ev.ProposalFailed(
                    proposal.id,
                    error.to_json(),
                    time.monotonic() - began,
                    used.input_tokens,
                    used.output_tokens,
                    used.dollars,
                    used.calls,
                    error.proposer if isinstance(error, ProposerError) else "",
                    error.kind if isinstance(error, ProposerError) else "",
                    used.cached_tokens,
                )
            )
            if self.recording is None and proposal.arm != USER:  # a user's mistake says nothing of proposers
                self._judge(error)
            return None
        self.record(
            ev.Proposed(
                proposal.id,
                self._files.put(answer.source, ".py"),
                answer.idea,
                answer.proposer,
                time.monotonic() - began,
                answer.usage.input_tokens,
                answer.usage.output_tokens,
                answer.usage.dollars,
                answer.usage.calls,
                prompt=self._files.put(answer.prompt, ".txt") if answer.prompt else "",
                reply=self._files.put(answer.reply, ".txt") if answer.reply else "",
                change=answer.kind,
                cached_tokens=answer.usage.cached_tokens,
            )
        )
        return answer

    async def _write(self, proposal: Proposal) -> Answer:
        """What the ask's author writes."""
        request = self._request(proposal)
        return await self._author(proposal.arm, proposal.request, proposal.point).propose(request)

    def _request(self, proposal: Proposal) -> ProposalRequest:
        if self.recording is not None:  # answered by its number
            return ProposalRequest(kind="seed", seed=proposal.seed, number=proposal.id)
        in_words = self._author(proposal.arm, proposal.request, proposal.point).needs_language
        return feedback.make_request(
            proposal,
            self.state,
            self._files,
            self.config,
            self.model,
            flow=self.pipeline.flow,
            fits=self._fits,
            room=self._room,
            best=self.arms.best(proposal.arm),
            measured=self.arms.measured(proposal.arm),
            in_words=in_words,
            alone=self.arms.alone(proposal.arm),
            lessons=self.lessons.now(self.state) if in_words else (),
            short=self._short,
            book=lambda who, tokens, dollars: self.record(ev.CallBooked(proposal.id, who, tokens, dollars)),
        )

    def _judge(self, error: VortexError) -> None:
        """What a failed ask means for the campaign. A budget that is used up ends the search, with finals; an ask that
        found nothing new may be followed by one that does, until the space counts as exhausted (`budget.NOTHING_NEW`);
        what only a person can mend pauses the search; anything else may pass, for as long as the patience lasts."""
        failures = self.state.proposer_failures_in_a_row
        if error.fault == "budget":
            if not error.retryable:
                self.spent = f"the proposer's budget: {error.message}"
        elif error.fault == "user" and not error.retryable:
            raise error
        elif failures >= self.config.proposer_patience:
            raise proposer_down(failures, str(error)) from error
