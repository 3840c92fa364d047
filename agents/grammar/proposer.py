"""The proposer that needs no model, no key and no network."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from agents.base import Proposal, ProposalRequest, Proposer
from agents.errors import ProposerError
from agents.grammar.crossover import cross
from agents.grammar.mutation import Subject, mutate
from agents.grammar.settings import random_knobs
from agents.grammar.signals import Growth
from agents.grammar.term import from_program, to_program
from agents.prompting import check
from vortex_core.errors import VortexError
from vortex_core.flow.emit import emit, state_labels
from vortex_core.ir.flow import Flow, flow_key
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.lint import lint
from vortex_core.ir.program import Program
from vortex_core.ir.verify import verify

_DEFAULT_LAYERS = 32
_IDEA_LENGTH = 240
_SHARES = (
    0.5,
    0.75,
    1.0,
)  # of the largest size, drawn for each draft: small programs are faster and likelier


@dataclass(frozen=True)
class Draft:
    """A program before it is known to be new."""

    written: Program
    knobs: Knobs
    idea: str

    @property
    def program(self) -> Program:
        """The canonical program, which is computed once: asking it for its own hash would do that again."""
        return self.written.canonical()

    @property
    def key(self) -> str:
        """Identity of program and knobs."""
        return flow_key(self.written, self.knobs)


def variable(program: Program) -> bool:
    """Whether there is something to vary. Dense attention has nothing, and learned values are only good for the
    expressions they were learned in."""
    nodes = (*program.cache.nodes, *program.index.nodes)
    return not program.selects_everything and all(n.op != "param" for n in nodes)


class GrammarProposer(Proposer):
    """Grows programs from a typed grammar, changes them and crosses them, on the IR itself.

    Equal requests give equal proposals. A proposal takes a few milliseconds and is neither one of the candidates
    already tried nor a parent.

    Args:
        max_nodes: operations of a canonical program, both methods together.
            Children of larger parents may be as large as those; so for states.
        max_states: page states of a program.
        tries: drafts before it gives up.
    """

    name = "grammar"
    repairs = False  # it writes only legal programs from what it is given: it has nothing to mend them with
    needs_language = False

    def __init__(self, *, max_nodes: int = 64, max_states: int = 4, tries: int = 80) -> None:
        for option, value in (("max_nodes", max_nodes), ("max_states", max_states), ("tries", tries)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ProposerError("VA002", f"{option} is {value!r}", "give a whole number from 1")
        self.max_nodes = max_nodes
        self.max_states = max_states
        self.tries = tries

    async def propose(self, request: ProposalRequest) -> Proposal:
        """One program for one request.

        Raises:
            ProposerError: `VA004` for a request that lacks something or asks for a repair, `VA024` if nothing
                new was found.
        """
        check(request)
        if request.kind == "repair":
            raise ProposerError(
                "VA004",
                "the grammar repairs nothing: it changes programs that are legal",
                "ask a language model for repairs, e.g. --proposer anthropic:MODEL",
            )
        if request.kind not in ("seed", "mutate", "crossover"):
            raise ProposerError("VA004", f"the grammar knows no {request.kind}", "ask for mutate")
        return self.write(self.draft(request))

    def write(self, draft: Draft) -> Proposal:
        """A draft as source."""
        source = emit(draft.program, draft.knobs, flow_name(draft), draft.idea)
        return Proposal(source=source, idea=draft.idea, proposer=self.name)

    def draft(self, request: ProposalRequest) -> Draft:
        """The program of `propose`, before it is written down.

        Raises:
            ProposerError: `VA024` if nothing new was found.
        """
        rng = random.Random(f"{request.kind}/{request.seed}")
        sources = [p.flow for p in request.parents]
        parents = {(s.ir_hash, s.knobs) for s in sources}
        largest = max((size(s.program) for s in sources), default=0)
        most = max([self.max_states, *(len(s.program.states) for s in sources)])
        for attempt in range(self.tries):
            # What cannot be varied any further is left alone in the end: a fresh program is always new.
            limit = max(rng.choice(_SHARES) * self.max_nodes, largest)
            grow = attempt >= self.tries // 2 or not sources
            draft = _grown(rng, request.model) if grow else _varied(rng, request.model, sources)
            if draft is None or size(draft.written) > limit:  # told before canonicalising, which costs
                continue
            if size(draft.program) > limit or len(draft.program.states) > most:
                continue
            ir_hash = draft.written.ir_hash
            known = draft.key in request.tried or (ir_hash, draft.knobs) in parents
            if not known and (ir_hash in {h for h, _ in parents} or sensible(draft)):
                return draft
        raise ProposerError("VA024", f"nothing new in {self.tries} drafts", "raise tries or max_nodes")


def _grown(rng: random.Random, model: dict[str, Any]) -> Draft:
    growth = Growth(rng, mla=model.get("mla") is not None)
    program = to_program(growth.flow())
    return Draft(program, random_knobs(rng, _layers(model)), _line(f"grown: {', '.join(growth.notes)}"))


def _varied(rng: random.Random, model: dict[str, Any], sources: list[Flow]) -> Draft | None:
    """A change to the first of the sources that can be varied, or what it becomes with the second."""
    sources = [s for s in sources if variable(s.program)]
    if not sources:
        return _grown(rng, model)
    first, *others = sources
    mla = model.get("mla") is not None
    subject = Subject(from_program(first.program), first.knobs, rng, _layers(model), mla)
    if others:
        cross(subject, from_program(others[0].program), others[0].knobs)
    else:
        mutate(subject)
    if not subject.done:
        return None
    names = " x ".join(s.name or s.ir_hash for s in sources)
    try:
        program = to_program(subject.flow)
    except VortexError as error:
        if (
            error.fault == "candidate"
        ):  # the change made a program that the language refuses: mostly too large
            return None
        raise
    return Draft(program, subject.knobs, _line(f"{names}: {', '.join(subject.done)}"))


def _layers(model: dict[str, Any]) -> int:
    layers = model.get("layers")
    return layers if isinstance(layers, int) and layers > 0 else _DEFAULT_LAYERS


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _IDEA_LENGTH else f"{text[: _IDEA_LENGTH - 3]}..."


def size(program: Program) -> int:
    """Operations of both methods."""
    return len(program.cache.nodes) + len(program.index.nodes)


def sensible(draft: Draft) -> bool:
    """Whether it is worth measuring: it reads the query and chooses some pages, by a score that differs."""
    verify(draft.program)
    if draft.program.selects_everything or not any(n.op == "q" for n in draft.program.index.nodes):
        return False
    try:
        lint(draft.program, draft.program, draft.knobs)
    except VortexError:  # a score that cancelled out, or a budget below what is kept
        return False
    return True


def flow_name(draft: Draft) -> str:
    """A name that says what a page keeps and how pages are chosen, with a piece of the candidate's key."""
    program = draft.program
    parts = sorted({label.rstrip("0123456789") for label in state_labels(program).values()})[:3]
    if program.result.op != "topk":
        parts.append(program.result.op)
    return "_".join([*(parts or ["pages"]), draft.key[:6]])
