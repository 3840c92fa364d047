"""What a page can be summarised by: random typed expressions of forward_cache, and the frame they live in."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from agents.grammar.settings import pick
from agents.grammar.term import State, Term, load, make, reduce, walk

Rng = random.Random

VECTORS = {
    "mean": 6.0,
    "max": 2.0,
    "min": 2.0,
    "mid": 1.0,
    "half_range": 1.5,
    "std": 1.5,
    "var": 1.0,
    "value_weighted_mean": 1.2,
    "direction": 0.8,
    "tail_mean": 0.6,
    "signed_square_mean": 0.4,
}
SCALARS = {
    "value_norm": 3.0,
    "value_norm_max": 1.0,
    "key_norm": 1.0,
    "key_norm_max": 1.0,
    "radius": 2.0,
    "spread": 1.5,
    "agreement": 0.7,
}
_VECTOR_DTYPES = {
    "bf16": 6.0,
    "fp8_e4m3": 3.0,
    "int8": 2.0,
    "int4": 2.0,
    "int3": 0.7,
    "int2": 0.7,
    "bits": 0.4,
}
_SCALAR_DTYPES = {"bf16": 4.0, "fp16": 1.0, "fp32": 1.0, "fp8_e4m3": 1.0}
_RANGES = (("0", "D/2"), ("D/2", "D"), ("0", "D/4"), ("D/4", "D/2"), ("D/4", "D"), ("3*D/4", "D"))


@dataclass(frozen=True)
class Frame:
    """Which channels, and how many sub-pages, a signal works on.

    Attributes:
        channels: a range of extents, a group of channels, or None for all.
        rows: sub-pages per page.
        row: the name of their dimension.
    """

    channels: tuple[str, str] | str | None = None
    rows: int = 1
    row: str = "row"

    def narrow(self, x: Term) -> Term:
        """The frame's channels of a tensor with all channels."""
        if self.channels is None:
            return x
        if isinstance(self.channels, str):
            return make("channels", x, group=self.channels)
        start, stop = self.channels
        return make("slice", x, dim="dim", start=0 if start == "0" else start, stop=stop)

    def query(self) -> Term:
        """q[head, dim] within the frame."""
        return self.narrow(make("q"))

    def tokens(self, source: str) -> Term:
        """k or v within the frame, `(row), token, dim`."""
        x = self.narrow(make(source))
        return make("split", x, dim="token", into=self.row, parts=self.rows) if self.rows > 1 else x

    def __str__(self) -> str:
        said = []
        if self.channels is not None:
            start, stop = self.channels if isinstance(self.channels, tuple) else (self.channels, "")
            said.append(f"channels {start}:{stop}" if stop else f"{start} channels")
        if self.rows > 1:
            said.append(f"{self.rows} sub-pages")
        return " and ".join(said)


def random_frame(rng: Rng, mla: bool) -> Frame:
    """Mostly the whole of the page."""
    channels: tuple[str, str] | str | None = None
    if rng.random() < 0.2:
        channels = rng.choice(("rope", "nope")) if mla and rng.random() < 0.6 else rng.choice(_RANGES)
    return Frame(channels, pick(rng, {1: 7, 2: 2, 4: 1}))


def frame_of(value: Term) -> Frame:
    """The frame in which a state's expression was written."""
    channels: tuple[str, str] | str | None = None
    rows, row = 1, "row"
    for t in walk(value):
        a = t.attr
        if t.op == "slice" and a["dim"] == "dim":
            channels = (str(a["start"]), str(a["stop"]))
        elif t.op == "channels":
            channels = str(a["group"])
        elif t.op == "split" and a["dim"] == "token":
            rows, row = int(a["parts"]), str(a["into"])
    return Frame(channels, rows, row)


def vector(name: str, frame: Frame) -> Term:
    """A summary `(row), dim` of the keys."""
    k = frame.tokens("k")
    mean = reduce("mean", k, "token")
    off = k - mean
    match name:
        case "mean":
            return mean
        case "max":
            return reduce("amax", k, "token")
        case "min":
            return reduce("amin", k, "token")
        case "mid":
            return 0.5 * (reduce("amax", k, "token") + reduce("amin", k, "token"))
        case "half_range":
            return 0.5 * (reduce("amax", k, "token") - reduce("amin", k, "token"))
        case "var":
            return reduce("mean", off * off, "token")
        case "std":
            return make("sqrt", reduce("mean", off * off, "token"))
        case "value_weighted_mean":
            weight = norm(_all_values(frame))
            return reduce("sum", k * weight, "token") / (reduce("sum", weight, "token") + 1e-6)
        case "direction":
            return reduce("mean", k / (norm(k) + 1e-6), "token")
        case "tail_mean":
            tail = make("slice", k, dim="token", start=_half_token(k), stop=str(k.type.extent("token")))
            return reduce("mean", tail, "token")
        case "signed_square_mean":
            return reduce("mean", k * make("abs", k), "token")
    raise AssertionError(name)


def scalar(name: str, frame: Frame) -> Term:
    """A summary `(row)`: one number a page or sub-page."""
    k, v = frame.tokens("k"), _all_values(frame)
    off = k - reduce("mean", k, "token")
    match name:
        case "value_norm":
            return reduce("mean", norm(v), "token")
        case "value_norm_max":
            return reduce("amax", norm(v), "token")
        case "key_norm":
            return reduce("mean", norm(k), "token")
        case "key_norm_max":
            return reduce("amax", norm(k), "token")
        case "radius":
            return reduce("amax", norm(off), "token")
        case "spread":
            return make("sqrt", reduce("mean", reduce("sum", off * off, "dim"), "token"))
        case "agreement":
            return reduce("mean", reduce("sum", k * frame.tokens("v"), "dim"), "token")
    raise AssertionError(name)


def _all_values(frame: Frame) -> Term:
    """Values are weighed by all their channels, whichever channels of the keys are looked at."""
    return Frame(None, frame.rows, frame.row).tokens("v")


def _half_token(k: Term) -> str:
    return str(k.type.extent("token") // 2)


def norm(x: Term, dim: str = "dim") -> Term:
    """Euclidean norm along a dimension."""
    return make("sqrt", reduce("sum", x * x, dim))


def random_dtype(rng: Rng, value: Term) -> str:
    """Storage for a state; numbers without a row to share a scale stay in floating point."""
    weights: dict[Any, float] = _VECTOR_DTYPES if value.has("dim") else _SCALAR_DTYPES
    return str(pick(rng, weights))


def stored(value: Term, dtype: str) -> Term:
    """The state that holds `value`, as forward_indexer reads it."""
    return load(State(value.type.dims, dtype, value))


def random_vector(rng: Rng, frame: Frame) -> Term:
    """A random summary of vectors."""
    return vector(pick(rng, VECTORS), frame)


def random_scalar(rng: Rng, frame: Frame) -> Term:
    """A random summary of one number."""
    return scalar(pick(rng, SCALARS), frame)


def summary_like(rng: Rng, old: Term) -> Term | None:
    """A fresh summary with the dimensions of `old`, or None where the grammar has none."""
    frame = frame_of(old)
    new = random_vector(rng, frame) if old.has("dim") else random_scalar(rng, frame)
    return new if new.type.dims == old.type.dims else None
