"""How a page can be scored and chosen: random typed expressions of forward_indexer."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from agents.grammar.settings import pick
from agents.grammar.summaries import (
    Frame,
    norm,
    random_dtype,
    random_frame,
    random_scalar,
    scalar,
    stored,
    vector,
)
from agents.grammar.term import Flow, State, Term, const, fresh_tag, load, make, reduce, rewrite, walk

Rng = random.Random

SIGNALS = {
    "dot": 6.0,
    "quest": 2.5,
    "box": 2.0,
    "gauss": 1.5,
    "ball": 1.5,
    "signs": 0.8,
    "large_channels": 1.5,
    "slow_channels": 0.8,
    "distance": 0.6,
    "value_gated": 1.5,
    "principal": 1.0,
}
_CENTRES = {"mean": 5.0, "mid": 1.0, "value_weighted_mean": 1.5, "direction": 1.0, "tail_mean": 0.5}
_SMOOTHING = ((0.25, 0.5, 0.25), (0.1, 0.8, 0.1), (-0.25, 1.5, -0.25), (0.1, 0.2, 0.4, 0.2, 0.1))
SCALE = const(1.0) / make("sqrt", make("extent", extent="D"))  # of attention logits
_WAVELENGTHS = (16, 64, 256, 1024, 4096)
_WEIGHTS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)


@dataclass
class Growth:
    """Grows random terms.

    Attributes:
        rng: source of all choices.
        mla: whether the model has channels without rotation.
        notes: what was grown, in words.
        updates: updates of the carried states grown so far.
    """

    rng: Rng
    mla: bool = False
    notes: list[str] = field(default_factory=list)
    updates: dict[str, Term] = field(default_factory=dict)

    def say(self, *words: str) -> None:
        """Note what was grown."""
        self.notes.append(" ".join(w for w in words if w))

    # ---- queries and states ------------------------------------------------------------------------------

    def query(self, frame: Frame, each: bool) -> Term:
        """q within the frame, `head, dim`, or `dim` where heads are merged first."""
        q = frame.query()
        return q if each else reduce(pick(self.rng, {"mean": 8, "amax": 1}), q, "head")

    def state(self, value: Term) -> Term:
        """A state with this value, in a random dtype."""
        return stored(value, random_dtype(self.rng, value))

    def centre(self, frame: Frame) -> Term:
        """A state that stands for the page's keys."""
        name = pick(self.rng, _CENTRES)
        self.say(name.replace("_", " "), "of keys" if not str(frame) else f"of keys over {frame}")
        return self.state(vector(name, frame))

    # ---- signals -----------------------------------------------------------------------------------------

    def signal(self, each: bool) -> Term:
        """A score `page, head`, or `page` if heads are merged in the query."""
        frame = random_frame(self.rng, self.mla)
        score = self._signal(pick(self.rng, SIGNALS), frame, self.query(frame, each))
        return self._merge_rows(score)

    def _signal(self, name: str, frame: Frame, q: Term) -> Term:
        alpha = const(self.rng.choice((0.25, 0.5, 0.75, 1.0)))
        match name:
            case "quest":
                self.say("bound by extrema", str(frame))
                high, low = (self.state(vector(n, frame)) for n in ("max", "min"))
                return reduce("sum", make("maximum", q * high, q * low), "dim")
            case "box":
                spread = self.state(vector(self.rng.choice(("half_range", "std")), frame))
                self.say("centre and spread per channel")
                centre = self.centre(frame)
                return _dot(q, centre) + alpha * _dot(make("abs", q), spread)
            case "gauss":
                self.say("second-order softmax mass", str(frame))
                mean, var = (self.state(vector(n, frame)) for n in ("mean", "var"))
                return SCALE * _dot(q, mean) + alpha * SCALE * SCALE * _dot(q * q, var)
            case "ball":
                self.say("centre and radius")
                radius = self.state(scalar(self.rng.choice(("radius", "spread")), frame))
                return _dot(q, self.centre(frame)) + alpha * norm(q) * radius
            case "signs":
                self.say("sign bits of mean keys", str(frame))
                bits = stored(vector("mean", frame), "bits")
                return _dot(q if self.rng.random() < 0.6 else make("sign", q), bits)
            case "large_channels":
                k = self.rng.choice((4, 8, 16, 32))
                self.say(f"{k} largest query channels")
                mask = make("largest", make("abs", q), dim="dim", k=k)
                return _dot(make("where", mask, q, const(0.0)), self.centre(frame))
            case "slow_channels":
                tokens = self.rng.choice(_WAVELENGTHS)
                self.say(f"channels that turn once in {tokens} tokens or slower")
                slow = make("lt", frame.narrow(make("rotary")), const(2 * math.pi / tokens))
                return _dot(make("where", slow, q, const(0.0)), self.centre(frame))
            case "distance":
                self.say("negative L1 distance")
                gap = q * alpha - self.centre(frame)
                return const(0.0) - reduce("sum", make("abs", gap), "dim")
            case "principal":
                rank = self.rng.choice((2, 4, 8))
                self.say(f"keys by their coordinates in {rank} principal directions of their page")
                return principal(replace(frame, rows=1), q, rank)
            case "value_gated":
                weight = self.state(random_scalar(self.rng, frame))
                self.say("gated by a page weight")
                score = _dot(q, self.centre(frame))
                if self.rng.random() < 0.5:
                    return score * weight
                return score + alpha * weight
        return _dot(q, self.centre(frame))

    def _merge_rows(self, score: Term) -> Term:
        rows = [n for n in score.names if n not in ("page", "head")]
        if rows and self.rng.random() < 0.2:
            return make("log", reduce("sum", make("exp", SCALE * score), *rows) + 1e-6)
        return reduce("amax", score, *rows)

    # ---- scores ------------------------------------------------------------------------------------------

    def score(self, per_head: bool = False, depth: int = 0) -> Term:
        """A score `page`, or `page, head`."""
        each = per_head or self.rng.random() < 0.6
        score = self.signal(each)
        if each and self.rng.random() < 0.35:
            score = self.shape_pages(score, ("softmax", "standardise"))
        if each and not per_head:
            score = self.merge_heads(score)
        if depth == 0 and self.rng.random() < 0.25:
            score = self.combine(score, self.score(per_head, depth=1))
        if self.rng.random() < 0.25:
            score = self.shape_pages(score, ("smooth", "pool", "above_mean", "recency"))
        if not per_head and depth == 0 and self.rng.random() < 0.07:
            score = self.carry(score)
        if not per_head and depth == 0 and self.rng.random() < 0.04:
            score = self.feedback(score)
        return score

    def merge_heads(self, score: Term) -> Term:
        """Heads of the group reduced."""
        op = pick(self.rng, {"amax": 5, "mean": 4, "amin": 0.3})
        self.say(f"{op.removeprefix('a')} over heads")
        return reduce(op, score, "head")

    def shape_pages(self, score: Term, ways: Sequence[str]) -> Term:
        """The same score looked at across pages."""
        way = self.rng.choice(ways)
        match way:
            case "softmax":
                self.say("softmax over pages")
                return make("softmax", SCALE * score, dim="page")
            case "standardise":
                self.say("standardised over pages")
                return standardised(score)
            case "smooth":
                self.say("neighbouring pages blended")
                return make("conv", score, dim="page", weights=self.rng.choice(_SMOOTHING))
            case "pool":
                self.say("maximum of neighbouring pages")
                return make("maxpool", score, dim="page", size=self.rng.choice((3, 3, 5)))
            case "above_mean":
                self.say("scores below their mean damped")
                mean = reduce("mean", score, "page")
                return make("where", make("lt", score, mean), score * 0.5, score)
        self.say("a little recency")
        weight = self.rng.choice(_WEIGHTS)
        return standardised(score) + weight * (make("position") / make("pages"))

    def combine(self, one: Term, other: Term) -> Term:
        """Two scores as one."""
        weight = self.rng.choice(_WEIGHTS)
        match pick(self.rng, {"sum": 3, "standard_sum": 3, "max": 2, "gate": 1.5}):
            case "standard_sum":
                self.say("added to the first, both standardised")
                return standardised(one) + weight * standardised(other)
            case "max":
                self.say("the larger of both")
                return make("maximum", one, other)
            case "gate":
                self.say("as a gate on the first")
                return one * make("sigmoid", SCALE * other)
        self.say("added to the first")
        return one + weight * other

    def carry(self, score: Term) -> Term:
        """The score smoothed over decode steps by a carried state of pages, or by queries that a request carries."""
        if self.rng.random() < 0.4 and any(t.op == "q" for t in walk(score)):
            return self.remember(score)
        tag = fresh_tag(set(self.updates))
        decay = self.rng.choice((0.5, 0.7, 0.9))
        self.say(f"running average over steps ({decay:g})")
        old = load(State((), "fp32", None, tag))
        new = decay * old + (1.0 - decay) * score
        self.updates[tag] = new
        return new if self.rng.random() < 0.7 else score - 0.5 * old

    def remember(self, score: Term) -> Term:
        """The same score of another query: of earlier steps, from a state of the request."""
        q, tag = make("q"), fresh_tag(set(self.updates))
        old = load(State(q.type.dims, "bf16", None, tag, scope="request"))
        used = new = q
        match pick(self.rng, {"average": 2, "alike": 1, "before": 0.5}):
            case "average":
                decay = self.rng.choice((0.25, 0.5, 0.75))
                self.say(f"by the running average of queries ({decay:g})")
                used = new = decay * old + (1.0 - decay) * q
            case "alike":
                at = self.rng.choice((0.8, 0.9, 0.95))
                self.say(f"by the query before while its cosine is above {at:g}")
                cosine = reduce("sum", q * old, "dim") / (norm(q) * norm(old) + 1e-6)
                used = make("where", make("lt", const(at), reduce("mean", cosine, "head")), old, q)
                new = used if self.rng.random() < 0.5 else q
            case "before":
                self.say("by the query before")
                used = old
        self.updates[tag] = new
        return rewrite(score, lambda t, args: used if t.op == "q" else None)

    def feedback(self, score: Term) -> Term:
        """Attention mass: of earlier steps, added up in a carried state, or of this step in the dense layer before."""
        if self.rng.random() < 0.5:
            return self._by_dense_mass(score)
        tag = fresh_tag(set(self.updates))
        self.say("plus attention mass received so far")
        mass = reduce("sum", make("mass"), "head")
        new = self.rng.choice((0.5, 0.9, 0.98)) * load(State((), "fp32", None, tag)) + mass
        self.updates[tag] = new
        return standardised(score) + self.rng.choice(_WEIGHTS) * new

    def _by_dense_mass(self, score: Term) -> Term:
        mass = reduce(pick(self.rng, {"sum": 3, "amax": 1}), make("dense_mass"), "head")
        if self.rng.random() < 0.1:
            self.say("replaced by the attention mass in the dense layer before")
            return mass
        self.say("plus the attention mass in the dense layer before")
        return standardised(score) + self.rng.choice(_WEIGHTS) * standardised(mass)

    # ---- selections --------------------------------------------------------------------------------------

    def select(self, score: Term) -> Term:
        """A selection by `score`, `page` or `page, head`."""
        attrs: dict[str, object] = {}
        if not score.has("head") and self.rng.random() < 0.12:
            attrs["share"] = self.rng.choice(("max", "mean"))
            self.say("one selection for all kv heads")
        kinds = {"topk": 8, "approximate": 0.5, "topp": 1.5, "threshold": 0.5}
        if not attrs and not score.has("head"):
            kinds["refine"] = 0.8
        match pick(self.rng, kinds):
            case "refine":
                candidates = self.rng.choice((2, 4, 8))
                self.say(f"for {candidates} times as many candidates, chosen among by")
                return make("refine", score, self.merge_heads(self.signal(True)), candidates=candidates)
            case "approximate":
                self.say("approximate top-k")
                return make("topk", score, recall=self.rng.choice((0.9, 0.95)), **attrs)
            case "topp":
                p = self.rng.choice((0.8, 0.9, 0.95, 0.98))
                self.say(f"top-p {p:g}")
                return make("topp", standardised(score) * self.rng.choice((1.0, 2.0, 4.0)), p=p, **attrs)
            case "threshold":
                at = self.rng.choice((-0.5, 0.0, 0.5, 1.0))
                self.say(f"pages {at:g} deviations above the mean")
                return make("threshold", standardised(score), at=at, **attrs)
        return make("topk", score, **attrs)

    def residual(self, chosen: Term) -> Term:
        """The selection with an entry for every page that it leaves out: its tokens at their mean, or that and their
        spread."""
        whole = Frame()
        q = whole.query()
        mass = make("log", make("extent", extent="S")) + SCALE * _dot(q, self.state(vector("mean", whole)))
        if self.rng.random() < 0.5:
            mass = mass + 0.5 * SCALE * SCALE * _dot(q * q, self.state(vector("var", whole)))
        self.say("pages left out count by their mean value")
        return make("residual", chosen, mass, stored(reduce("mean", make("v"), "token"), "bf16"))

    def flow(self) -> Flow:
        """A whole program."""
        per_head = self.rng.random() < 0.06
        if per_head:
            self.say("a selection per query head")
        if self.rng.random() < 0.08:
            share = self.rng.choice((0.25, 0.5, 0.75))
            first = make("topk", self.score(per_head, depth=1), fraction=share)
            self.say("united with")
            second = make("topk", self.score(per_head, depth=1), fraction=1.0 - share)
            result = make("union", first, second)
        else:
            result = self.select(self.score(per_head))
        if not self.mla and self.rng.random() < 0.06:
            result = self.residual(result)
        return Flow(result, tuple(sorted(self.updates.items()))).pruned()


def _dot(q: Term, c: Term) -> Term:
    return reduce("sum", q * c, "dim")


def principal(frame: Frame, q: Term, rank: int) -> Term:
    """The logits of a page's keys, `row`: from the mean key, the principal directions, and each key's coordinates."""
    keys = frame.tokens("k")
    mean = reduce("mean", keys, "token")
    rest = make("rename", keys - mean, dim="token", to="row")
    basis = make("principal", rest, over="row", dim="dim", into="rank", rank=rank)
    at = _dot(rest, basis)
    codes = load(State(at.type.dims, "int8", at, scale_dim="rank"))
    turned = _dot(q, stored(basis, "int4"))
    return reduce("sum", turned * codes, "rank") + _dot(q, stored(mean, "int8"))


def standardised(score: Term) -> Term:
    """Deviations from the mean over pages."""
    off = score - reduce("mean", score, "page")
    return off / (make("sqrt", reduce("mean", off * off, "page")) + 1e-6)
