"""Several proposers as one: a bandit sends each request to the member that gains most per dollar.

Upper confidence bound (Auer, Cesa-Bianchi, Fischer 2002) on gain per unit of cost, where cost is the price
of the proposal plus what evaluating it costs, so that a free proposer is not infinitely good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from agents.base import Proposal, ProposalRequest, Proposer
from agents.errors import ProposerError


@dataclass
class _Arm:
    proposer: Proposer
    asked: int = 0
    told: int = 0
    closed: bool = False
    gain: float = 0.0
    dollars: float = 0.0
    priced: int = 0


class EnsembleProposer(Proposer):
    """Chooses a member for each request.

    A member that only a person can put right (no such model, no key) is asked no more while others work; the next
    session asks it again. Without `tell`, members take turns. A resumed campaign rebuilds the counts by
    replaying its `tell`s.

    Args:
        members: proposers with different names.
        evaluation_dollars: what evaluating one candidate costs, in dollars.
        exploration: weight of the confidence bound.
    """

    def __init__(
        self, members: Sequence[Proposer], *, evaluation_dollars: float = 0.01, exploration: float = 0.5
    ) -> None:
        names = [member.name for member in members]
        if len(set(names)) != len(names):
            raise ProposerError("VA001", f"ensemble of {', '.join(names)} repeats a member", "name each once")
        self.name = ",".join(names)
        self.repairs = any(member.repairs for member in members)
        self.needs_language = any(member.needs_language for member in members)
        self._arms = {member.name: _Arm(member) for member in members}
        self._evaluation = evaluation_dollars
        self._exploration = exploration

    async def propose(self, request: ProposalRequest) -> Proposal:
        """One program by the member that `choose` names.

        Raises:
            ProposerError: that member's, with its name in `proposer`. It is retryable where another member is
                left to be asked instead.
        """
        member = self.choose(repair=request.kind == "repair")
        arm = self._arms[member]
        arm.asked += 1
        try:
            return await arm.proposer.propose(request)
        except ProposerError as error:
            error.proposer = member
            arm.closed |= error.fault in ("user", "budget") and not error.retryable
            error.retryable |= arm.closed and any(not other.closed for other in self._arms.values())
            raise

    def tell(self, member: str, gain: float, dollars: float | None) -> None:
        """Report what a proposal brought.

        Args:
            member: `Proposal.proposer`, or `ProposerError.proposer`.
            gain: improvement it brought, at least 0 (a failure brings 0), in any fixed unit.
            dollars: what the proposal cost, None if unpriced.

        Raises:
            ProposerError: `VA001` for a name that is not a member's.
        """
        if member not in self._arms:
            raise ProposerError(
                "VA001", f"{member!r} is not in the ensemble {self.name}", "tell a member's name"
            )
        arm = self._arms[member]
        arm.told += 1
        arm.asked = max(arm.asked, arm.told)  # replaying a log tells without asking
        arm.gain += max(0.0, gain)
        if dollars is not None:
            arm.dollars += dollars
            arm.priced += 1

    def choose(self, *, repair: bool = False) -> str:
        """The member to ask next. Deterministic; members never asked come first, in order.

        Args:
            repair: only members that can mend a program are chosen, where there are any.
        """
        able = {name: arm for name, arm in self._arms.items() if arm.proposer.repairs or not repair}
        working = {name: arm for name, arm in (able or self._arms).items() if not arm.closed}
        arms = (working or able or self._arms).items()
        if any(arm.told == 0 for _, arm in arms):
            return min(arms, key=lambda item: item[1].asked)[0]
        rates = {name: (arm.gain / arm.told) / self._cost(arm) for name, arm in arms}
        best = max(rates.values()) or 1.0
        total = sum(arm.asked for _, arm in arms)
        bounds = {
            name: rates[name] / best + self._exploration * math.sqrt(2 * math.log(total) / arm.asked)
            for name, arm in arms
        }
        return max(bounds, key=lambda name: bounds[name])

    def _cost(self, arm: _Arm) -> float:
        """Dollars a proposal of `arm` takes. An unpriced member is taken to cost what the priced ones do."""
        if arm.priced:
            return self._evaluation + arm.dollars / arm.priced
        priced = [other for other in self._arms.values() if other.priced]
        known = sum(a.dollars for a in priced) / sum(a.priced for a in priced) if priced else 0.0
        return self._evaluation + known
