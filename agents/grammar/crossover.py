"""One program out of two. What moves takes its states with it."""

from __future__ import annotations

from collections.abc import Callable

from agents.grammar.mutation import Grown, Subject
from agents.grammar.settings import mixed_knobs, pick
from agents.grammar.term import Flow, Term, make, reduce, retagged
from agents.grammar.variations import role
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.opset import OPS


def cross(s: Subject, other: Flow, knobs: Knobs) -> None:
    """Change `s` by something of `other`; at times its knobs too."""
    other = retagged(other, {tag for tag, _ in s.flow.updates})
    for _ in range(12):
        if pick(s.rng, MOVES)(s, other):
            break
    if s.rng.random() < 0.5:
        mixed = mixed_knobs(s.rng, s.knobs, knobs)
        if mixed != s.knobs:
            s.knobs = mixed
            s.done.append("knobs of both")


def graft(s: Subject, other: Flow) -> bool:
    """A subexpression of the second replaces one of the first that has the same dimensions."""
    donors = [t for t in other.terms() if t.type.kind == "float" and t.type.domain != "const" and t.op != "q"]
    sites = [
        (site, fits)
        for site in s.flow.terms()
        if site.type.kind == "float"
        and site.type.domain != "const"
        and (fits := [d for d in donors if d.type.dims == site.type.dims and d != site])
    ]
    if not sites:
        return False
    site, fits = s.rng.choice(sites)
    donor = s.rng.choice(fits)
    return s.put(site, Grown(donor, dict(other.updates), ""), f"a {role(site)} from the other")


def combine(s: Subject, other: Flow) -> bool:
    """The scores of both as one."""
    site, donor = _score(s, s.flow), _score(s, other)
    if site is None or donor is None:
        return False
    donor = _to_heads_of(site, donor)
    grown = s.grow(lambda g: g.combine(site, donor))
    return s.put(site, Grown(grown.term, dict(other.updates), grown.what), "the other's score {}")


def unite(s: Subject, other: Flow) -> bool:
    """Part of the pages by either score."""
    one, two = s.flow.result, other.result
    if one.op != "topk" or two.op != "topk":
        return False
    donor = _to_heads_of(one.args[0], two.args[0])
    if donor.has("head") != one.args[0].has("head"):
        return False
    share = s.rng.choice((0.25, 0.5, 0.75))
    first = make("topk", *one.args, **{**one.attr, "fraction": share})
    second = make("topk", donor, fraction=1.0 - share)
    united = Grown(make("union", first, second), dict(other.updates), "")
    return s.put(one, united, "pages of both scores")


def take_selection(s: Subject, other: Flow) -> bool:
    """The kind of selection of the second for the score of the first."""
    one, two = s.flow.result, other.result
    if len(one.args) != 1 or len(two.args) != 1:
        return False
    attrs = {k: v for k, v in two.attr.items() if k != "share" or not one.args[0].has("head")}
    return s.put(one, Grown(make(two.op, *one.args, **attrs), {}, ""), "the other's selection")


MOVES: dict[Callable[[Subject, Flow], bool], float] = {
    graft: 4.0,
    combine: 3.0,
    unite: 0.7,
    take_selection: 0.5,
}


def _score(s: Subject, flow: Flow) -> Term | None:
    scores = [t.args[0] for t in flow.terms() if OPS[t.op].group == "select" and len(t.args) == 1]
    return s.rng.choice(scores) if scores else None


def _to_heads_of(site: Term, donor: Term) -> Term:
    """`donor` without a head dimension, if `site` has none."""
    return donor if site.has("head") else reduce("amax", donor, "head")
