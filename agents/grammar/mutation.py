"""Changes to one program. Each is typed by construction: what is replaced keeps its dimensions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from agents.grammar.settings import change_knobs, pick
from agents.grammar.signals import Growth
from agents.grammar.summaries import (
    Frame,
    frame_of,
    random_dtype,
    random_frame,
    stored,
    summary_like,
)
from agents.grammar.term import Flow, State, Term, Visit, load, make, reduce, refines_legally, rewrite
from agents.grammar.variations import SWAPS, moved, role, swapped, variation, word
from vortex_core.errors import VortexError
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.opset import OPS

Rng = random.Random

_SMALLER_DTYPE = {
    "fp32": "bf16",
    "bf16": "fp8_e4m3",
    "fp16": "fp8_e4m3",
    "fp8_e5m2": "int8",
    "int8": "int4",
    "int4": "int3",
    "int3": "int2",
}
_VECTOR_DTYPES = ("bf16", "fp8_e4m3", "int8", "int4", "int3", "int2", "bits")
_SCALAR_DTYPES = ("fp32", "bf16", "fp16", "fp8_e4m3")


@dataclass(frozen=True)
class Grown:
    """A fresh term, the updates of the carried states in it, and what it is in words."""

    term: Term
    updates: Mapping[str, Term]
    what: str


@dataclass
class Subject:
    """A program that is being changed.

    Attributes:
        flow: its terms.
        knobs: its settings.
        rng: source of all choices.
        layers: of the model.
        mla: whether the model has channels without rotation.
        done: what was changed, in words.
    """

    flow: Flow
    knobs: Knobs
    rng: Rng
    layers: int
    mla: bool
    done: list[str] = field(default_factory=list)

    def change(self, flow: Flow | None, what: str) -> bool:
        """Take `flow` as the new program, if it is another one."""
        if flow is None or flow == self.flow or not refines_legally(flow):
            return False
        self.flow = flow
        self.done.append(what)
        return True

    def put(self, site: Term, grown: Grown, what: str = "{}") -> bool:
        """Put a grown term in the place of `site`; `{}` in `what` stands for what was grown."""
        return self.change(self.flow.swap({site.key: grown.term}, grown.updates), what.format(grown.what))

    def grow(self, make_term: Callable[[Growth], Term]) -> Grown:
        """A fresh term; its carried states get tags that the program does not use."""
        taken = dict(self.flow.updates)
        growth = Growth(self.rng, self.mla, [], dict(taken))
        term = make_term(growth)
        new = {tag: t for tag, t in growth.updates.items() if tag not in taken}
        return Grown(term, new, ", ".join(growth.notes))


def mutate(subject: Subject) -> None:
    """Change one to three things. A choice that does not apply leaves the program as it is."""
    for _ in range(pick(subject.rng, {1: 6, 2: 3, 3: 1})):
        for _ in range(8):
            if pick(subject.rng, MOVES)(subject):
                break


# ---- moves: each returns whether it changed something ----------------------------------------------------


def replace_term(s: Subject) -> bool:
    """A subexpression becomes a fresh one with the same dimensions."""
    site = _site(s, lambda t: t.op not in ("const", "q"))
    if site is None:
        return False
    grown = _like(s, site)
    return grown is not None and s.put(site, grown, f"a {role(site)} replaced by {{}}")


def vary_term(s: Subject) -> bool:
    """A subexpression is wrapped."""
    site = _site(s, lambda t: t.op != "const")
    if site is None:
        return False
    new, what = variation(s.rng, site)
    return s.put(site, Grown(new, {}, what))


def swap_operator(s: Subject) -> bool:
    """An operator becomes a similar one."""
    if s.rng.random() < 0.3 and (found := _derived(s)) is not None:
        assert found.value is not None
        value = swapped(s.rng, found.value)
        if value is None or value[0].type.dims != found.dims:
            return False
        state = replace(found, value=value[0])
        return s.change(s.flow.swap_states({found.key: state}), f"{value[1]} in a page state")
    site = _site(s, lambda t: t.op in SWAPS)
    if site is None:
        return False
    op = s.rng.choice(SWAPS[site.op])
    return s.change(
        s.flow.swap({site.key: make(op, *site.args, **site.attr)}), f"{word(site.op)} -> {word(op)}"
    )


def unwrap(s: Subject) -> bool:
    """An operator is replaced by one of its operands."""
    site = _site(s, lambda t: any(a.type.dims == t.type.dims and a.type.kind == "float" for a in t.args))
    if site is None:
        return False
    fits = [a for a in site.args if a.type.dims == site.type.dims and a.type.kind == "float"]
    return s.change(s.flow.swap({site.key: s.rng.choice(fits)}), f"without one {word(site.op)}")


def perturb_number(s: Subject) -> bool:
    """A constant moves."""
    numbered = ("const", "conv", "maxpool", "largest", "topk", "topp", "threshold", "refine")
    sites = [t for t in s.flow.terms() if t.op in numbered]
    if not sites:
        return False
    site = s.rng.choice(sites)
    new = moved(s.rng, site)
    if new is None:
        return False
    return s.change(s.flow.swap({site.key: new}), f"a number of {word(site.op)} moved")


def change_dtype(s: Subject) -> bool:
    """A state is stored otherwise, more often in fewer bits."""
    state = _derived(s)
    if state is None:
        return False
    choices = _VECTOR_DTYPES if state.dims else _SCALAR_DTYPES
    smaller = _SMALLER_DTYPE.get(state.dtype)
    dtype = smaller if smaller in choices and s.rng.random() < 0.5 else s.rng.choice(choices)
    assert dtype is not None
    new = replace(state, dtype=dtype)
    return s.change(s.flow.swap_states({state.key: new}), f"{state.dtype} state stored as {dtype}")


def change_summary(s: Subject) -> bool:
    """A state holds another summary of the page, of the same dimensions."""
    state = _derived(s)
    if state is None or state.value is None:
        return False
    value = summary_like(s.rng, state.value)
    if value is None:
        return False
    return s.change(s.flow.swap_states({state.key: replace(state, value=value)}), "another page summary")


def change_rows(s: Subject) -> bool:
    """Pages are summarised in more or fewer parts."""
    old = max((frame_of(t.value).rows for t in s.flow.states() if t.value is not None), default=1)
    rows = s.rng.choice([r for r in (1, 2, 4) if r != old])

    def visit(t: Term, args: tuple[Term, ...]) -> Term | None:
        if t.op in ("k", "v") and rows > 1:
            return make("split", t, dim="token", into="row", parts=rows)
        return args[0] if t.op == "split" and t.attr["dim"] == "token" else None

    return s.change(_reframed(s.flow, visit), f"{old} -> {rows} parts of a page")


def change_channels(s: Subject) -> bool:
    """The program looks at a range of channels, or at all of them."""
    frame = Frame(random_frame(s.rng, s.mla).channels)

    def visit(t: Term, args: tuple[Term, ...]) -> Term | None:
        if t.op in ("q", "k"):
            return frame.narrow(t)
        cut = t.op == "channels" or (t.op == "slice" and t.attr["dim"] == "dim")
        return args[0] if cut else None

    return s.change(_reframed(s.flow, visit), str(frame) or "all channels")


def change_selection(s: Subject) -> bool:
    """Another kind of selection by the same score, of two stages the one that decides."""
    selects = [t for t in s.flow.terms() if _ranking(t)]
    if not selects:
        return False
    site = s.rng.choice(selects)
    score = site.args[-1]
    if s.flow.result.op != "union" and s.rng.random() < 0.1:
        score = reduce(s.rng.choice(("amax", "mean")), score, "head")
    new = s.grow(lambda g: g.select(score)).term
    if s.flow.result.op == "union" and "fraction" in site.attr:
        new = make(new.op, *new.args, **{**new.attr, "fraction": site.attr["fraction"]})
    return s.change(s.flow.swap({site.key: new}), f"selection {word(site.op)} -> {word(new.op)}")


def add_signal(s: Subject) -> bool:
    """The score is combined with a fresh one."""
    site = _score(s)
    if site is None:
        return False
    grown = s.grow(lambda g: g.combine(site, g.score(site.has("head"), depth=1)))
    return s.put(site, grown, "score combined with {}")


def add_state_across_steps(s: Subject) -> bool:
    """The score is averaged over steps, or joined with the attention mass received."""
    site = _score(s)
    if site is None or site.has("head"):
        return False
    return s.put(site, s.grow(lambda g: g.carry(site) if g.rng.random() < 0.7 else g.feedback(site)))


def change_residual(s: Subject) -> bool:
    """What is left out counts as one entry a page, or no longer."""
    top = s.flow.result
    if top.op == "residual":
        return s.change(Flow(top.args[0], s.flow.updates).pruned(), "nothing for the pages left out")
    if s.mla or top.op == "everything":  # a latent row is key and value at once
        return False
    return s.put(top, s.grow(lambda g: g.residual(top)), "{}")


def unite(s: Subject) -> bool:
    """A second stream of pages, chosen by a fresh score."""
    top = s.flow.result
    if top.op != "topk":
        return False
    share = s.rng.choice((0.25, 0.5, 0.75))
    other = s.grow(lambda g: g.score(top.args[0].has("head"), depth=1))
    first = make("topk", top.args[0], **{**top.attr, "fraction": share})
    second = make("topk", other.term, fraction=1.0 - share)
    united = Grown(make("union", first, second), other.updates, other.what)
    return s.put(top, united, "united with a stream by {}")


def drop_stream(s: Subject) -> bool:
    """One of two united streams is left out."""
    if s.flow.result.op != "union":
        return False
    kept = s.rng.choice(s.flow.result.args)
    attrs = {k: v for k, v in kept.attr.items() if k != "fraction"}
    result = make(kept.op, *kept.args, **attrs)
    return s.change(Flow(result, s.flow.updates).pruned(), "one stream left out")


def change_a_knob(s: Subject) -> bool:
    """One setting changed."""
    found = change_knobs(s.rng, s.knobs, s.layers)
    if found is None:
        return False
    s.knobs, what = found
    s.done.append(what)
    return True


MOVES: dict[Callable[[Subject], bool], float] = {
    replace_term: 3.0,
    vary_term: 1.5,
    swap_operator: 2.0,
    unwrap: 2.0,
    perturb_number: 1.5,
    change_dtype: 1.5,
    change_summary: 2.0,
    change_rows: 1.0,
    change_channels: 0.7,
    change_selection: 0.7,
    add_signal: 1.5,
    add_state_across_steps: 0.4,
    unite: 0.4,
    change_residual: 0.4,
    drop_stream: 1.0,
    change_a_knob: 3.0,
}


# ---- sites -----------------------------------------------------------------------------------------------


def _site(s: Subject, fits: Callable[[Term], bool]) -> Term | None:
    """A float subexpression of forward_indexer that is not the same everywhere."""
    sites = [t for t in s.flow.terms() if t.type.kind == "float" and t.type.domain != "const" and fits(t)]
    return s.rng.choice(sites) if sites else None


def _score(s: Subject) -> Term | None:
    """What a selection chooses by."""
    scores = [a for t in s.flow.terms() for a in _ranking(t)]
    return s.rng.choice(scores) if scores else None


def _ranking(t: Term) -> tuple[Term, ...]:
    """The scores of a selection; of anything else none."""
    return t.args if OPS[t.op].group == "select" and t.op not in ("union", "residual") else ()


def _derived(s: Subject) -> State | None:
    states = [t for t in s.flow.states() if t.value is not None]
    return s.rng.choice(states) if states else None


def _like(s: Subject, site: Term) -> Grown | None:
    """A fresh term with the dimensions of `site`."""
    if site.names in (("page",), ("page", "head")):
        return s.grow(lambda g: g.score(site.has("head"), depth=1))
    if site.state is not None and site.state.value is not None:
        value = summary_like(s.rng, site.state.value)
        return None if value is None else Grown(stored(value, random_dtype(s.rng, value)), {}, "another")
    new, what = variation(s.rng, site)
    return Grown(new, {}, what)


def _reframed(flow: Flow, visit: Visit) -> Flow | None:
    """Every expression of both methods rewritten; None where some part of the program does not go along, as a
    program that was not grown here may use the name or size of a dimension in its own way."""
    try:
        new: dict[str, State] = {}
        for state in flow.states():
            if state.value is not None:
                value = rewrite(state.value, visit)
                if any(n in ("token", "page", "head") for n in value.names):
                    return None
                new[state.key] = replace(state, dims=value.type.dims, value=value)

        def both(t: Term, args: tuple[Term, ...]) -> Term | None:
            return load(new[t.state.key]) if t.state and t.state.key in new else visit(t, args)

        return flow.rewritten(both)
    except VortexError:
        return None
