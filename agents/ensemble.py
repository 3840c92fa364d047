"""Several proposers as one: a bandit sends each request to the member, and to the kind of change, that gains most per
dollar.

Upper confidence bound (Auer, Cesa-Bianchi, Fischer 2002) on gain per unit of cost, where cost is the price
of the proposal plus what evaluating it costs, so that a free proposer is not infinitely good. A member is chosen by
all it has brought, then, where a parent is to be changed, how to change it by what that brought with this member.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from agents.base import Proposal, ProposalRequest, Proposer, RequestKind
from agents.errors import ProposerError

Name = TypeVar("Name", bound=str)


@dataclass
class Record:
    """What was asked of one choice, and what came of it."""

    asked: int = 0
    told: int = 0
    gain: float = 0.0
    dollars: float = 0.0
    priced: int = 0

    def tell(self, gain: float, dollars: float | None) -> None:
        """Count one outcome; replaying a log tells without asking."""
        self.told += 1
        self.asked = max(self.asked, self.told)
        self.gain += max(0.0, gain)
        if dollars is not None:
            self.dollars += dollars
            self.priced += 1


@dataclass
class _Arm:
    proposer: Proposer
    closed: bool = False
    total: Record = field(default_factory=Record)
    kinds: dict[RequestKind, Record] = field(default_factory=dict)


class EnsembleProposer(Proposer):
    """Chooses a member, and a kind of change, for each request.

    A member that only a person can put right (no such model, no key) is asked no more while others work; the next
    session asks it again. Without `tell`, members take turns. A resumed campaign rebuilds the counts by
    replaying its `tell`s, also after members were added or taken away.

    Args:
        members: proposers with different names.
        evaluation_dollars: what evaluating one candidate costs, in dollars.
        exploration: weight of the confidence bound.
    """

    def __init__(
        self, members: Sequence[Proposer], *, evaluation_dollars: float = 0.01, exploration: float = 1.0
    ) -> None:
        names = [member.name for member in members]
        if len(set(names)) != len(names):
            raise ProposerError("VA001", f"ensemble of {', '.join(names)} repeats a member", "name each once")
        self.name = ",".join(names)
        self.repairs = any(member.repairs for member in members)
        self.needs_language = any(member.needs_language for member in members)
        self._arms = {
            member.name: _Arm(member, kinds={kind: Record() for kind in member.changes}) for member in members
        }
        self._evaluation = evaluation_dollars
        self._exploration = exploration

    @property
    def members(self) -> tuple[Proposer, ...]:
        """Who is chosen among."""
        return tuple(arm.proposer for arm in self._arms.values())

    async def propose(self, request: ProposalRequest) -> Proposal:
        """One program by the member that `choose` names, by the kind of change that `change` names.

        Raises:
            ProposerError: that member's, with its name in `proposer`. It is retryable where another member is
                left to be asked instead.
        """
        member = self.choose(repair=request.kind == "repair")
        arm = self._arms[member]
        kind = self.change(member, request.knobs) if request.kind == "mutate" else request.kind
        arm.total.asked += 1
        if kind in arm.kinds:
            arm.kinds[kind].asked += 1
        try:
            answer = await arm.proposer.propose(replace(request, kind=kind))
        except ProposerError as error:
            error.proposer, error.kind = member, kind
            arm.closed |= error.fault in ("user", "budget") and not error.retryable
            error.retryable |= arm.closed and any(not other.closed for other in self._arms.values())
            raise
        return replace(answer, kind=kind)

    def prices(self) -> dict[str, Any]:
        """See `Proposer`."""
        return {name: price for arm in self._arms.values() for name, price in arm.proposer.prices().items()}

    def tell(self, member: str, gain: float, dollars: float | None, kind: str = "") -> None:
        """Report what a proposal brought. Of a member that is no longer in the list, nothing is kept.

        Args:
            member: `Proposal.proposer`, or `ProposerError.proposer`.
            gain: improvement it brought, at least 0 (a failure brings 0), in any fixed unit.
            dollars: what the proposal cost, None if unpriced.
            kind: what was asked.
        """
        arm = self._arms.get(member)
        if arm is None:
            return
        arm.total.tell(gain, dollars)
        for known, record in arm.kinds.items():
            if known == kind:
                record.tell(gain, dollars)

    def choose(self, *, repair: bool = False) -> str:
        """The member to ask next. Deterministic; members never asked come first, in order.

        Args:
            repair: only members that can mend a program are chosen, where there are any.
        """
        able = {name: arm for name, arm in self._arms.items() if arm.proposer.repairs or not repair}
        working = {name: arm for name, arm in (able or self._arms).items() if not arm.closed}
        arms = working or able or self._arms
        return self._best({name: arm.total for name, arm in arms.items()})

    def change(self, member: str, given: Collection[str] = ()) -> RequestKind:
        """How `member` is to change a parent.

        Args:
            given: knobs that the campaign gives every program. Where the budget is among them, choosing knobs is none.
        """
        kinds = self._arms[member].kinds
        if "budget" in given:
            kinds = {kind: record for kind, record in kinds.items() if kind != "tune"}
        return self._best(kinds) if kinds else "mutate"

    def _best(self, records: Mapping[Name, Record]) -> Name:
        if any(record.told == 0 for record in records.values()):
            return min(records.items(), key=lambda item: item[1].asked)[0]
        mean = self._mean_dollars(records.values())
        rates = {
            name: record.gain / record.told / self._cost(record, mean) for name, record in records.items()
        }
        best = max(rates.values()) or 1.0
        total = sum(record.asked for record in records.values())
        bounds = {
            name: rates[name] / best + self._exploration * math.sqrt(2 * math.log(total) / record.asked)
            for name, record in records.items()
        }
        return max(bounds, key=lambda name: bounds[name])

    def _cost(self, record: Record, mean: float) -> float:
        """Dollars one proposal takes. One without a price is taken to cost what those with one do."""
        return self._evaluation + (record.dollars / record.priced if record.priced else mean)

    @staticmethod
    def _mean_dollars(records: Iterable[Record]) -> float:
        priced = [record for record in records if record.priced]
        return sum(r.dollars for r in priced) / sum(r.priced for r in priced) if priced else 0.0
