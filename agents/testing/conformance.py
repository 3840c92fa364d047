"""What every proposer must do. Subclass `ProposerConformance`, give it a proposer, and let pytest collect it.

Only plain asserts: the suite needs no test framework to be imported.
"""

from __future__ import annotations

import ast
import asyncio
import json
from dataclasses import asdict, replace
from functools import cache
from typing import Any

from agents.base import Attempt, FailedAttempt, Parent, Proposal, ProposalRequest, Proposer, RequestKind
from vortex_core.errors import VortexError

BROKEN = '''from vortex_core import ops, register, vFlow


@register("broken")
class Broken(vFlow):
    """Reduces over a dimension that the tensor does not have."""

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        return ops.topk((q * cache["mean"]).sum("token"))
'''
ALL_KINDS: tuple[RequestKind, ...] = ("seed", "mutate", "crossover", "repair")


class ProposerConformance:
    """The contract of `agents.base.Proposer`, as tests.

    Attributes:
        deterministic: the same request gives the same source. True for offline proposers.
        kinds: the request kinds it serves; others must be refused with a typed error.
    """

    deterministic = False
    kinds: tuple[RequestKind, ...] = ALL_KINDS

    def make_proposer(self) -> Proposer:
        """A fresh proposer."""
        raise NotImplementedError

    def parents(self) -> tuple[Parent, Parent]:
        """Two different evaluated programs. The default takes two library flows."""
        from vortex_core import library

        return self._parent(library.load("block_topk")), self._parent(library.load("quest"))

    @staticmethod
    def _parent(traced: Any) -> Parent:
        metric = {
            "value": 0.9,
            "low": 0.8,
            "high": 0.97,
            "unit": "",
            "higher_is_better": True,
            "how": "measured",
        }
        return Parent(
            flow=traced.flow,
            source=traced.source,
            metrics={"accuracy": metric, "recall": {**metric, "value": 0.85}},
            info={"recall": {"worst_head": {"layer": 3, "head": 1, "recall": 0.4}}},
        )

    def request(self, kind: RequestKind, seed: int = 7) -> ProposalRequest:
        """A well-formed request of `kind`."""
        first, second = self.parents()
        parents: dict[RequestKind, tuple[Parent, ...]] = {"mutate": (first,), "crossover": (first, second)}
        failed = FailedAttempt(BROKEN, tracer_error(BROKEN)) if kind == "repair" else None
        return ProposalRequest(
            kind=kind,
            seed=seed,
            parents=parents.get(kind, ()),
            failed=failed,
            model={"name": "test-model", "layers": 4, "kv_heads": 2, "head_dim": 64},
            objective="highest decode throughput with accuracy within 0.02 of dense",
            ledger=(
                Attempt(
                    "0123456789abcdef", "fedcba9876543210", "c004 narrow", "recall", "VV103", "recall 0.31"
                ),
            ),
            tried={"0123456789abcdef"},
        )

    def test_name_identifies_it(self) -> None:
        name = self.make_proposer().name
        assert name == name.strip() != ""
        assert self.make_proposer().name == name

    def test_says_what_it_can(self) -> None:
        """A campaign asks for repairs where `repairs`, and speaks in words where `needs_language`."""
        proposer = self.make_proposer()
        assert isinstance(proposer.repairs, bool)
        assert isinstance(proposer.needs_language, bool)
        assert proposer.repairs == ("repair" in self.kinds)

    def test_hears_what_its_proposals_brought(self) -> None:
        """A gain, nothing, an unknown price: all are heard without complaint."""
        proposer = self.make_proposer()
        answer = asyncio.run(proposer.propose(self.request(self.kinds[0])))
        for gain, dollars in ((0.5, 0.01), (0.0, None)):
            proposer.tell(answer.proposer, gain, dollars)

    def test_serves_its_kinds(self) -> None:
        for kind in self.kinds:
            proposer = self.make_proposer()
            check_proposal(asyncio.run(proposer.propose(self.request(kind))))

    def test_refuses_other_kinds_with_a_typed_error(self) -> None:
        for kind in ALL_KINDS:
            if kind in self.kinds:
                continue
            self._expect_typed_error(self.request(kind))

    def test_refuses_requests_that_lack_something(self) -> None:
        for kind in self.kinds:
            if kind != "seed":
                self._expect_typed_error(ProposalRequest(kind=kind, seed=1))

    def test_leaves_the_request_as_it_was(self) -> None:
        for kind in self.kinds:
            request = self.request(kind)
            before = asdict(request)
            asyncio.run(self.make_proposer().propose(request))
            assert asdict(request) == before

    def test_serves_several_requests_at_once(self) -> None:
        async def together() -> list[Proposal]:
            proposer = self.make_proposer()
            return await asyncio.gather(
                *(proposer.propose(self.request(kind, seed)) for seed, kind in enumerate(self.kinds))
            )

        proposals = asyncio.run(together())
        assert len(proposals) == len(self.kinds)
        for proposal in proposals:
            check_proposal(proposal)

    def test_survives_a_second_event_loop(self) -> None:
        proposer = self.make_proposer()
        for _ in range(2):
            check_proposal(asyncio.run(proposer.propose(self.request(self.kinds[0]))))

    def test_same_request_same_program_where_promised(self) -> None:
        if not self.deterministic:
            return
        for kind in self.kinds:
            first, second = (asyncio.run(self.make_proposer().propose(self.request(kind))) for _ in range(2))
            assert first.source == second.source

    def _expect_typed_error(self, request: ProposalRequest) -> None:
        caught: VortexError | None = None
        try:
            asyncio.run(self.make_proposer().propose(request))
        except VortexError as error:
            caught = error
        assert caught is not None, f"a {request.kind} request that cannot be served was served"
        json.dumps(caught.to_json())
        assert caught.code
        assert caught.remedy


@cache
def _refusal(source: str) -> VortexError:
    from vortex_core.sandbox.load import trace_source

    try:
        trace_source(source, "broken.py")
    except VortexError as error:
        return error
    raise AssertionError("the program that should be refused was traced")


def tracer_error(source: str) -> dict[str, Any]:
    """What the tracer says to a program that it refuses, as JSON."""
    return _refusal(source).to_json()


def check_proposal(proposal: Proposal) -> None:
    """Assert what holds for every proposal, whoever made it."""
    json.dumps(asdict(replace(proposal, flow=None)))
    tree = ast.parse(proposal.source)
    assert sum(isinstance(node, ast.ClassDef) for node in tree.body) >= 1
    assert proposal.source.endswith("\n")
    assert len(proposal.idea.splitlines()) <= 1
    assert proposal.proposer
    usage = proposal.usage
    assert usage.input_tokens >= 0
    assert usage.output_tokens >= 0
    assert usage.calls >= 0
    assert usage.dollars is None or usage.dollars >= 0
    if usage.dollars == 0:
        assert usage.input_tokens == usage.output_tokens == 0, "a model that worked was priced at zero"
