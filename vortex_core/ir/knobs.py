"""Knobs: what travels with a flow besides its program. Flow + knobs = candidate."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.ir import mistakes
from vortex_core.ir.budget import Budget

PAGE_SIZES = (8, 16, 32, 64, 128)
MAX_LAYERS = 1024  # of any model
KV_DTYPES = ("auto", "bf16", "fp8_e4m3", "fp8_e5m2")


def knob_error(name: str, value: object, rule: str) -> VortexError:
    """`VF061`: a knob outside its range."""
    return mistakes.BAD_KNOB.error(name=name, value=_shown(value), rule=rule)


def _shown(value: object) -> str:
    """A value's repr, short; of something long, only what it is."""
    if isinstance(value, str | list | tuple | dict | set | frozenset) and len(value) > 100:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        return repr(value)[:80]
    except Exception:  # noqa: BLE001  a value that cannot be shown, such as a whole number of a million digits
        return f"a {type(value).__name__}"


@dataclass(frozen=True)
class Knobs:
    """Tunable settings of a flow.

    Attributes:
        page_size: tokens per page, the unit of selection; one of 8, 16, 32, 64, 128.
        budget: tokens a row may attend per step, a number or an expression.
        keep_first: pages at the start of the sequence that are always attended (attention sinks).
        keep_last: newest pages that are always attended; at least 1: a partial page has no state
            to be scored by.
        dense_layers: layers that attend to everything.
        reuse_steps: a selection is kept for this many decode steps (LServe); new pages join through
            `keep_last`.
        reuse_layers: layers in groups of this size share the first one's selection (Kascade).
        kv_dtype: storage of K and V; `auto` is the model's own dtype.
    """

    page_size: int = 16
    budget: str = "max(256, length / 16)"
    keep_first: int = 1
    keep_last: int = 2
    dense_layers: tuple[int, ...] = ()
    reuse_steps: int = 1
    reuse_layers: int = 1
    kv_dtype: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.budget, int | float) and not isinstance(self.budget, bool):
            try:
                object.__setattr__(self, "budget", f"{self.budget:g}")
            except OverflowError as error:  # a whole number beyond every float
                raise knob_error("budget", self.budget, "it is a number of tokens") from error
        if not isinstance(self.budget, str):
            raise knob_error("budget", self.budget, "it is a number of tokens or an expression")
        object.__setattr__(self, "budget", Budget(self.budget).text)
        if type(self.page_size) is not int or self.page_size not in PAGE_SIZES:
            raise knob_error("page_size", self.page_size, f"it is one of {PAGE_SIZES}")
        for name, low, high in (
            ("keep_first", 0, 64),
            ("keep_last", 1, 64),
            ("reuse_steps", 1, 64),
            ("reuse_layers", 1, 64),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise knob_error(name, value, f"it is a whole number from {low} to {high}")
        try:  # no more of it is looked at than could be right
            listed = tuple(islice(self.dense_layers, MAX_LAYERS + 1))
        except TypeError as error:
            raise knob_error("dense_layers", self.dense_layers, "it is a tuple of layer numbers") from error
        if len(listed) > MAX_LAYERS or any(type(n) is not int or not 0 <= n < MAX_LAYERS for n in listed):
            rule = f"it is a tuple of layer numbers from 0 to {MAX_LAYERS - 1}"
            raise knob_error("dense_layers", self.dense_layers, rule)
        layers = tuple(sorted(set(listed)))
        object.__setattr__(self, "dense_layers", layers)
        if not isinstance(self.kv_dtype, str) or self.kv_dtype not in KV_DTYPES:
            raise knob_error("kv_dtype", self.kv_dtype, f"it is one of {KV_DTYPES}")

    @property
    def kv_bytes(self) -> float:
        """Bytes of one cached channel of K or V, on a GPU (where `auto` is a 16-bit type)."""
        return 1.0 if self.kv_dtype.startswith("fp8") else 2.0

    def pages(self, length: int, layer: int = 0, layers: int = 1) -> int:
        """Pages a row attends at `length` tokens: the budget, never less than the pages kept by rule,
        never more than there are."""
        wanted = Budget(self.budget).pages(length, self.page_size, layer, layers)
        return min(-(-length // self.page_size), max(wanted, self.keep_first + self.keep_last))

    def with_(self, **changes: Any) -> Knobs:
        """A copy with some knobs changed.

        Raises:
            VortexError: `VF061` for an unknown knob or a value outside its range.
        """
        known = {f.name for f in fields(self)}
        for name in changes:
            if name not in known:
                raise knob_error(name, changes[name], f"knobs are {', '.join(sorted(known))}")
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """A plain dict, in field order."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Knobs:
        """Inverse of `to_json`; missing knobs take their defaults, unknown ones are refused.

        Raises:
            VortexError: `VF061` for data that is no object of knobs, or a value outside its range.
        """
        if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
            raise knob_error("knobs", data, "they are an object of names and values")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls().with_(**values)

    @property
    def digest(self) -> str:
        """12 hex digits that identify the settings."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
