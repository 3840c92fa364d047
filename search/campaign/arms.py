"""The arms of a campaign: whose turn it is, and who hears what came of a proposal."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from dataclasses import replace

from agents.base import Proposer
from search.campaign import feedback
from search.campaign.archive import Verdict, reference_point
from search.campaign.front import Front
from search.campaign.landscape import standing
from search.campaign.learned import Learned
from search.campaign.strategies.base import Outcome, Strategy
from search.campaign.strategies.registry import make_strategy
from search.config import Arm, CampaignConfig
from search.log.state import USER, CampaignState, Candidate, Proposal

_BEST = 24
"""Of an arm, whose descriptions a proposer is shown."""
_MEASURED = 1024
"""Of an arm, whose numbers it is told."""


class Arms:
    """Every arm's strategy, the front of what it found and its most accurate programs.

    Args:
        config: the campaign.
        proposers: by arm name; they hear what their answers gained.
        seed: of the campaign.
        state: read only.
        learned: how fast programs are whose speed is only modelled, where the campaign measures speeds.
    """

    def __init__(
        self,
        config: CampaignConfig,
        proposers: Mapping[str, Proposer],
        seed: int,
        state: CampaignState,
        learned: Learned | None = None,
    ) -> None:
        self.config = config
        self.learned = learned
        self.proposers = proposers
        self.state = state
        # Arms differ in their randomness, or a control would repeat the arm it is compared with.
        self.strategies: dict[str, Strategy] = {
            arm.name: make_strategy(arm.strategy, seed + 7919 * i) for i, arm in enumerate(config.arms)
        }
        searched = config.objective if config.screen is None else config.screen.objective(config.objective)
        self.fronts = {arm.name: Front(reference_point(searched)) for arm in config.arms}
        self._best: dict[str, list[tuple[float, str]]] = {arm.name: [] for arm in config.arms}
        self._measured: dict[str, dict[str, tuple[str, float]]] = {arm.name: {} for arm in config.arms}
        self._listed: dict[str, tuple[tuple[str, float], ...]] = {}  # of `measured`, until the next result
        self._controls = {arm.name for arm in config.arms if arm.control}

    def next(self) -> Arm:
        """The arm furthest behind its share."""
        return min(self.config.arms, key=lambda arm: (self.state.asks(arm.name) + 1) / arm.share)

    def best(self, arm: str) -> list[str]:
        """Keys of an arm's most accurate programs that keep the gates: what a grammar learns its choices from. Controls
        learn nothing."""
        return [] if self.alone(arm) else [key for _, key in self._best[arm]]

    def measured(self, arm: str) -> tuple[tuple[str, float], ...]:
        """Descriptions of an arm's programs that keep the gates, and their accuracy when they were first measured: what
        dearer measurements tell apart later would not be on one scale."""
        if self.alone(arm):
            return ()
        if arm not in self._listed:
            self._listed[arm] = tuple(self._measured[arm].values())
        return self._listed[arm]

    def alone(self, arm: str) -> bool:
        """Whether an arm is a control, which learns from nothing but its own."""
        return arm in self._controls

    def tell(self, outcome: Outcome, proposal: Proposal | None, candidate: Candidate | None) -> None:
        """Let strategies and proposers hear of an outcome; without a proposal it is the library's."""
        cell, size = ("", 0) if candidate is None else (candidate.cell, candidate.size)
        if proposal is not None and proposal.arm == USER:
            if outcome == "asked":
                return
            proposal = None  # as the library's: where every arm may go on from, and no arm's doing
        told = feedback.make_tell(outcome, proposal, candidate, self.config, cell, size)
        if candidate is not None and told.speed is not None and self.learned is not None:
            told = replace(told, speed=self.learned.speeds([candidate]).get(candidate.key, told.speed))
        # What the library offers is where every arm may begin; what one arm finds is its own.
        for name in self.strategies if proposal is None else (proposal.arm,):
            self.strategies[name].tell(told)
        if proposal is None or outcome == "asked":
            return
        gain = 0.0
        if told.outcome == "scored" and told.verdict is not Verdict.FAILED:
            assert told.accuracy is not None
            assert told.speed is not None
            gain = self.fronts[proposal.arm].add((told.accuracy, told.speed))
            self._note_best(proposal.arm, told.accuracy, told.key)
            self._note_measured(proposal.arm, told.accuracy, told.key, candidate.doc if candidate else "")
        first = candidate is None or self.config.screen is None or candidate.status("search") == "waiting"
        if proposal.answered_by and first:
            self.proposers[proposal.arm].tell(
                proposal.answered_by, gain, proposal.dollars, proposal.change or proposal.request
            )

    def tell_anew(self) -> None:
        """Speeds of what was told before have become other ones: all that keeps the screen's gates is told again, as
        nobody's ask, and fronts are begun anew."""
        assert self.learned is not None
        known = [
            (c, told)
            for c in self.state.candidates.values()
            if not c.is_dense
            and c.key not in self.state.twins
            and (told := standing(c, self.config)) is not None
        ]
        known = [(c, told) for c, told in known if told.verdict is not Verdict.FAILED]
        speeds = self.learned.speeds([c for c, _ in known])
        for arm, front in self.fronts.items():
            self.fronts[arm] = Front(front.reference)
        for c, found in known:
            ours = c.arm in self.strategies and c.proposal is not None
            proposal = self.state.proposals[c.proposal] if ours and c.proposal is not None else None
            again = feedback.make_tell("scored", proposal, c, self.config, c.cell, c.size)
            again = replace(again, speed=speeds.get(c.key, found.speed.value), by="", own=False)
            for name in (c.arm,) if ours else self.strategies:
                self.strategies[name].tell(again)
            if ours and again.speed is not None:
                self.fronts[c.arm].add((found.accuracy.value, again.speed))

    def _note_measured(self, arm: str, accuracy: float, key: str, doc: str) -> None:
        measured = self._measured[arm]
        self._listed.pop(arm, None)
        measured.setdefault(key, (doc, accuracy))
        if len(measured) >= 2 * _MEASURED:  # the best of them and the latest stay
            best = sorted(measured, key=lambda k: -measured[k][1])[: _MEASURED // 2]
            kept = {*best, *list(measured)[-_MEASURED // 2 :]}
            self._measured[arm] = {k: v for k, v in measured.items() if k in kept}

    def _note_best(self, arm: str, accuracy: float, key: str) -> None:
        best = self._best[arm]
        if any(known == key for _, known in best):
            return
        insort(best, (-accuracy, key))
        del best[_BEST:]
