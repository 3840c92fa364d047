"""The proposer that needs no model, no key and no network."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from agents.base import Proposal, ProposalRequest, Proposer, RequestKind
from agents.errors import ProposerError
from agents.grammar import recipe_draw, recipe_moves, recipe_sizes
from agents.grammar.crossover import cross
from agents.grammar.local import tune_recipe, tune_terms, without_something
from agents.grammar.marks import retuned
from agents.grammar.mutation import Subject, mutate
from agents.grammar.promising import Promising
from agents.grammar.recipe import Recipe
from agents.grammar.recipe_bytes import fits_room
from agents.grammar.recipe_draw import Taste
from agents.grammar.recipes import RecipeBook, taste_of, varied, written
from agents.grammar.settings import anchored, covers, random_knobs
from agents.grammar.signals import Growth
from agents.grammar.term import from_program, to_program
from agents.prompting import check
from vortex_core.errors import VortexError
from vortex_core.flow.emit import emit, state_labels
from vortex_core.ir.flow import Flow, flow_key
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.layers import check_dense_layers, check_reuse
from vortex_core.ir.lint import lint
from vortex_core.ir.program import Program
from vortex_core.ir.verify import verify

_DEFAULT_LAYERS = 32
_IDEA_LENGTH = 240
_KNOBS_ALONE = 0.05  # share of changes that leave the program as it is
_UNLEARNED = 0.15  # share of drafts that what was measured has no say in
_STEPS = {"tune": 1, "simplify": 16}
"""Drafts of what has few outcomes: a point is one program, and of a program some ten things can be taken away."""
_GROW = 6  # steps by which what is drawn may grow into the campaign's bound; a change stays a change
_SHARES = (
    0.5,
    0.75,
    1.0,
)  # of the largest size, drawn for each draft: small programs are faster and likelier


@dataclass(frozen=True)
class Draft:
    """A program before it is known to be new. `recipe`: what it was written by, where it was."""

    written: Program
    knobs: Knobs
    idea: str
    recipe: Recipe | None = None

    @property
    def program(self) -> Program:
        """The canonical program, which is computed once: asking it for its own hash would do that again."""
        return self.written.canonical()

    @property
    def key(self) -> str:
        """Identity of program and knobs."""
        return flow_key(self.written, self.knobs)

    @property
    def doc(self) -> str:
        """What the flow says of itself: the idea, and the recipe, by which its children are made."""
        return self.idea if self.recipe is None else f"{self.idea}\n\n{self.recipe.text}"


def variable(program: Program) -> bool:
    """Whether there is something to vary. Dense attention has nothing, and learned values are only good for the
    expressions they were learned in."""
    nodes = (*program.cache.nodes, *program.index.nodes)
    return not program.selects_everything and all(n.op != "param" for n in nodes)


class GrammarProposer(Proposer):
    """Grows programs from a typed grammar, changes them and crosses them, on the IR itself.

    Equal requests give equal proposals. A proposal takes some tens of milliseconds and is neither one of the candidates
    already tried nor a parent. Half of what is grown, and what comes of it, is written by recipe: the family that keeps
    a few bits of every token (`agents.grammar.recipe`).

    Args:
        max_nodes: operations of a canonical program that is grown, both methods together; recipes, whose form is fixed,
            may have more. Children of larger parents may be as large as those; so for states.
        max_states: page states of a program that is grown.
        tries: drafts before it gives up.
        recipes: share of the programs grown that are written by recipe.
    """

    name = "grammar"
    repairs = False  # it writes only legal programs from what it is given: it has nothing to mend them with
    needs_language = False
    kinds: frozenset[RequestKind] = frozenset(("seed", "mutate", "crossover", "tune", "simplify"))

    def __init__(
        self, *, max_nodes: int = 64, max_states: int = 4, tries: int = 80, recipes: float = 0.7
    ) -> None:
        for option, value in (("max_nodes", max_nodes), ("max_states", max_states), ("tries", tries)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ProposerError("VA002", f"{option} is {value!r}", "give a whole number from 1")
        if not isinstance(recipes, int | float) or isinstance(recipes, bool) or not 0 <= recipes <= 1:
            raise ProposerError("VA002", f"recipes is {recipes!r}", "give a share from 0 to 1")
        self.max_nodes = max_nodes
        self.max_states = max_states
        self.tries = tries
        self.recipes = recipes
        self._book = RecipeBook()
        self._promising = Promising()

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
        if request.kind not in self.kinds:
            raise ProposerError("VA004", f"the grammar knows no {request.kind}", "ask for mutate")
        if request.kind == "tune" and (moved := retuned(request.parents[0].source, request.point)):
            return Proposal(moved[0], _line(f"{request.parents[0].name}: {moved[1]}"), self.name)
        return self.write(self.draft(request))

    def write(self, draft: Draft) -> Proposal:
        """A draft as source, and as the flow that this source traces to."""
        name = flow_name(draft)
        source = emit(draft.program, draft.knobs, name, draft.doc)
        flow = Flow(name, draft.program, draft.knobs, draft.doc)
        return Proposal(source=source, idea=draft.idea, proposer=self.name, flow=flow)

    def draft(self, request: ProposalRequest) -> Draft:
        """The program of `propose`, before it is written down.

        Raises:
            ProposerError: `VA024` if nothing new was found.
        """
        rng = random.Random(f"{request.kind}/{request.seed}/{request.point}")
        sources = [p.flow for p in request.parents]
        parents = {s.key for s in sources}
        largest = max((size(s.program) for s in sources), default=0)
        most = max([self.max_states, *(len(s.program.states) for s in sources)])
        taste = taste_of(request.best)
        promised = self._promised(rng, request, taste)
        tries = min(self.tries, _STEPS.get(request.kind, self.tries))
        for attempt in range(tries):
            # What cannot be varied any further is left alone in the end: a fresh program is always new.
            limit = max(rng.choice(_SHARES) * self.max_nodes, largest)
            grow = not sources or (attempt >= self.tries // 2 and request.kind not in ("tune", "simplify"))
            draft = next(promised, None)
            if draft is None:
                draft = self._grown(rng, request, taste) if grow else self._changed(rng, request, taste)
            if draft is None:
                continue
            if draft.written.reads_dense_mass and 0 not in draft.knobs.dense_layers:
                draft = replace(draft, knobs=anchored(rng, draft.knobs, _layers(request.model)))
            if draft.written.residual is not None:
                draft = replace(draft, knobs=draft.knobs.with_(reuse_steps=1, reuse_layers=1))
            draft = _at(draft, request)
            free = draft.recipe is None
            if free and size(draft.written) > limit:  # told before canonicalising, which costs
                continue
            if _refused(draft, request):
                continue
            if free and (size(draft.program) > limit or len(draft.program.states) > most):
                continue
            known = draft.key in request.tried or draft.key in parents
            if not known and (draft.written.ir_hash in {s.ir_hash for s in sources} or sensible(draft)):
                self._book.note(draft.written.ir_hash, draft.recipe)
                return draft
        few = f"ask for another {'point' if request.kind == 'tune' else 'parent'}"
        raise ProposerError(
            "VA024",
            f"nothing new in {tries} draft{'s' * (tries > 1)}",
            few if request.kind in _STEPS else "raise tries or max_nodes",
        )

    def _promised(self, rng: random.Random, request: ProposalRequest, taste: Taste) -> Iterator[Draft]:
        """Children that promise most, where enough was measured to tell; see `Promising`."""
        told = request.measured and request.kind in ("seed", "mutate", "crossover")
        if not told or rng.random() < _UNLEARNED:
            return
        recipes = [self._book.of(p.flow) for p in request.parents]
        parents = [r for r in recipes if r is not None]
        if recipes and not parents:
            return
        names = " x ".join(p.name or p.ir_hash for p in request.parents)
        for recipe, what in self._promising.drafts(rng, request, parents, taste):
            knobs = request.parents[0].flow.knobs if request.parents else Knobs()
            draft = _by_recipe(recipe, knobs, f"{names}: {what}" if names else what)
            if draft is not None:
                yield draft

    def _grown(self, rng: random.Random, request: ProposalRequest, taste: Taste) -> Draft:
        model = request.model
        if rng.random() < self.recipes:
            recipe = recipe_draw.draw(rng, taste)
            found = _sized(rng, request, recipe, random_knobs(rng, _layers(model)), "drawn", drawn=True)
            if found is not None:
                return found
        growth = Growth(rng, mla=model.get("mla") is not None)
        program = to_program(growth.flow())
        return Draft(program, random_knobs(rng, _layers(model)), _line(f"grown: {', '.join(growth.notes)}"))

    def _changed(self, rng: random.Random, request: ProposalRequest, taste: Taste) -> Draft | None:
        """A child of the request's parents."""
        sources = [p.flow for p in request.parents]
        recipes = [self._book.of(s) for s in sources]
        names = " x ".join(s.name or s.ir_hash for s in sources)
        if request.kind in ("tune", "simplify"):
            return _stepped(rng, request, sources[0], recipes[0])
        # What failed under one budget may do well under another; a campaign that fixes its knobs asks for none.
        program = sources[0].program
        free = not (request.knobs or program.params or program.selects_everything)
        if free and rng.random() < _KNOBS_ALONE:
            return Draft(program, random_knobs(rng, _layers(request.model)), _line(f"{names}: other knobs"))
        found = varied(rng, recipes, taste)
        if found is not None:
            knobs = sources[0].knobs if rng.random() < 0.8 else random_knobs(rng, _layers(request.model))
            return _sized(rng, request, found[0], knobs, f"{names}: {found[1]}")
        return _varied(rng, request.model, sources)


def _by_recipe(recipe: Recipe, knobs: Knobs, what: str) -> Draft | None:
    try:
        return Draft(written(recipe), knobs, _line(what), recipe.normal())
    except VortexError as error:
        if error.fault == "candidate":
            return None
        raise


def _sized(
    rng: random.Random,
    request: ProposalRequest,
    recipe: Recipe,
    knobs: Knobs,
    what: str,
    *,
    drawn: bool = False,
) -> Draft | None:
    """The recipe's draft, trimmed to what the campaign allows; None where it cannot be."""

    def fits(recipe: Recipe) -> bool:
        if (
            request.room is not None
        ):  # nothing need be written to know its bytes; the rest is asked of what is drafted
            return fits_room(recipe, request.room)
        draft = _by_recipe(recipe, knobs, what)
        return draft is not None and not _refused(_at(draft, request), request)

    grow = _GROW if drawn else _GROW // 2
    found = recipe_sizes.sized(rng, recipe, fits, grow) if request.fits is not None else recipe
    return None if found is None else _by_recipe(found, knobs, what)


def _stepped(rng: random.Random, request: ProposalRequest, flow: Flow, recipe: Recipe | None) -> Draft | None:
    """A small step from one program; None where it led nowhere."""
    name = flow.name or flow.ir_hash
    if recipe is not None:
        step = (
            tune_recipe(recipe, request.point)
            if request.kind == "tune"
            else recipe_moves.smaller(rng, recipe)
        )
        return None if step is None else _by_recipe(step[0], flow.knobs, f"{name}: {step[1]}")
    terms = from_program(flow.program)
    try:
        found = tune_terms(terms, request.point) if request.kind == "tune" else without_something(rng, terms)
        return (
            None if found is None else Draft(to_program(found[0]), flow.knobs, _line(f"{name}: {found[1]}"))
        )
    except VortexError as error:
        if error.fault == "candidate":
            return None
        raise


def _at(draft: Draft, request: ProposalRequest) -> Draft:
    """The draft at the campaign's settings."""
    return replace(draft, knobs=draft.knobs.with_(**request.knobs)) if request.knobs else draft


def _refused(draft: Draft, request: ProposalRequest) -> bool:
    """Whether the campaign would not look at it."""
    try:
        check_dense_layers(draft.written, draft.knobs)
        check_reuse(draft.written, draft.knobs)
        return not covers(draft.knobs) or not (
            request.fits is None or request.fits(draft.written, draft.knobs)
        )
    except (
        VortexError
    ):  # no dense layer to read, a budget that is undefined, a size that is not whole in the model
        return True


def _varied(rng: random.Random, model: dict[str, Any], sources: list[Flow]) -> Draft | None:
    """A change to the first of the sources that can be varied, or what it becomes with the second."""
    sources = [s for s in sources if variable(s.program)]
    if not sources:
        return None
    first, *others = sources
    mla = model.get("mla") is not None
    subject = Subject(from_program(first.program), first.knobs, rng, _layers(model), mla)
    names = " x ".join(s.name or s.ir_hash for s in sources)
    try:
        if others:
            cross(subject, from_program(others[0].program), others[0].knobs)
        else:
            mutate(subject)
        if not subject.done:
            return None
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
    """Whether it is worth measuring: it depends on the step and chooses some pages, by a score that differs."""
    asks = any(n.op in ("q", "dense_mass") for n in draft.program.index.nodes)
    if draft.program.selects_everything or not asks:
        return False
    try:
        verify(draft.program)
        lint(draft.program, draft.program, draft.knobs)
    except VortexError:  # too many states, a score that cancelled out, a budget below what is kept
        return False
    return True


def flow_name(draft: Draft) -> str:
    """A name that says what a page keeps and how pages are chosen, with a piece of the candidate's key."""
    program = draft.program
    parts = sorted({label.rstrip("0123456789") for label in state_labels(program).values()})[:3]
    if program.result.op != "topk":
        parts.append(program.result.op)
    return "_".join([*(parts or ["pages"]), draft.key[:6]])
