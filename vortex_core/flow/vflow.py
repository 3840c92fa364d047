"""vFlow: the class a sparse-attention algorithm is written as."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from vortex_core.errors import Location, VortexError
from vortex_core.flow.caller import caller
from vortex_core.flow.ops import Selection
from vortex_core.flow.sizes import Size
from vortex_core.flow.vtensor import emit, number, vTensor
from vortex_core.ir import mistakes
from vortex_core.ir.graph import GraphBuilder
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import STATE_DTYPES, StateDecl
from vortex_core.ir.types import SCOPES, Extent, Scope, make_dims
from vortex_core.ir.verify import check_write


@dataclass(frozen=True)
class StateSpec:
    """What `page.state(...)` returns: dimensions (in canonical order, and as declared) and storage, not yet named."""

    dims: tuple[tuple[str, Extent], ...]
    dtype: str
    carried: bool
    init: float
    at: Location | None = None
    declared: tuple[str, ...] = ()
    scope: Scope = "page"

    def named(self, name: str) -> StateDecl:
        """The declaration under `name`."""
        return StateDecl.of(name, self.dims, self.dtype, self.carried, self.init, self.declared, self.scope)


class Page:
    """The completed page a flow summarises, and the shapes of the model.

    Attributes:
        head_dim: channels of a key (extent `D`).
        size: tokens per page (extent `S`).
        rope_dim: rotary channels (extent `R`).
        nope_dim: channels without rotation (extent `N`).
        k: keys `(token, dim)`; MLA: the latent. forward_cache only.
        v: values `(token, dim)`; MLA: the latent with its rotary channels zero. forward_cache only.
    """

    head_dim = Size.of(Extent.parse("D"))
    size = Size.of(Extent.parse("S"))
    rope_dim = Size.of(Extent.parse("R"))
    nope_dim = Size.of(Extent.parse("N"))

    def __init__(self, builder: GraphBuilder | None = None) -> None:
        self._builder = builder

    @property
    def k(self) -> vTensor:
        """Keys of the page, `(token, dim)`."""
        return self._source("k")

    @property
    def v(self) -> vTensor:
        """Values of the page, `(token, dim)`."""
        return self._source("v")

    def _source(self, name: str) -> vTensor:
        if self._builder is None:
            raise mistakes.WRONG_STAGE.error(
                caller(), op=f"page.{name}", stage="create_cache", legal="forward_cache"
            )
        return emit(name, builder=self._builder)

    def state(
        self,
        /,
        *,
        dtype: str = "bf16",
        carried: bool = False,
        init: float = 0.0,
        scope: Scope = "page",
        **dims: int | str | Extent,
    ) -> StateSpec:
        """Declare a value kept for every page: `page.state(dim=page.head_dim, dtype="fp8_e4m3")`.

        Args:
            dtype: fp32, bf16, fp16, fp8_e4m3, fp8_e5m2, int8, int4, int3, int2 (one scale for the values
                along the last dimension declared) or bits (signs).
            carried: it changes at every decode step (`cache[name] = ...` in forward_indexer).
            init: value of a carried state when its page completes, or at the first step of the request.
            scope: whose value it is: "page", or "request" for one that a request carries from step to step.
            dims: named extents; none for one number per page. Of a request's also `head="G"`, as the query's.
        """
        at = caller()
        if dtype not in STATE_DTYPES:
            raise mistakes.BAD_STATE.error(
                at, name="?", why=f"dtype {dtype!r}", dtypes=", ".join(STATE_DTYPES)
            )
        if scope not in SCOPES:
            raise mistakes.BAD_STATE.error(
                at, name="?", why=f"scope {scope!r}"[:80], dtypes=", ".join(STATE_DTYPES)
            )
        if not isinstance(init, int | float) or isinstance(init, bool) or abs(init) > 1e30 or init != init:
            raise mistakes.BAD_CONST.error(at, found=repr(init))
        try:
            pairs = make_dims([(name, Extent.parse(extent)) for name, extent in dims.items()])
        except VortexError as error:
            error.location = error.location or at
            raise
        return StateSpec(pairs, dtype, bool(carried), float(init) + 0.0, at, tuple(dims), scope)


class Cache:
    """The states in forward_indexer: read `cache[name]`, write `cache[name] = ...` if carried."""

    def __init__(self, builder: GraphBuilder, states: dict[str, StateDecl]) -> None:
        self._builder = builder
        self._states = states
        self._loads: dict[str, vTensor] = {}
        self.writes: dict[str, vTensor] = {}

    def _state(self, name: object) -> StateDecl:
        if not isinstance(name, str) or name not in self._states:
            raise mistakes.UNKNOWN_STATE.error(caller(), name=name, known=", ".join(self._states) or "none")
        return self._states[name]

    def __getitem__(self, name: str) -> vTensor:
        state = self._state(name)
        if name in self.writes:  # as in Python: after an assignment, the new value
            return self.writes[name]
        if name not in self._loads:
            dims = tuple((n, str(e)) for n, e in state.dims)
            scope = {"scope": state.scope} if state.of_request else {}
            self._loads[name] = emit("load", builder=self._builder, name=name, dims=dims, **scope)
        return self._loads[name]

    def __setitem__(self, name: str, value: object) -> None:
        state = self._state(name)
        if not state.carried:
            raise mistakes.CARRIED_ONLY.error(caller(), name=name)
        if name in self.writes:
            raise mistakes.DOUBLE_WRITE.error(caller(), name=name)
        tensor = as_tensor(value, self._builder, "cache[...]")
        try:
            check_write(state, tensor.type)
        except VortexError as error:
            error.location = caller()
            raise
        self.writes[name] = tensor

    def __contains__(self, name: object) -> bool:
        return name in self._states

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)


def as_tensor(value: object, builder: GraphBuilder, op: str) -> vTensor:
    """A vTensor of this stage, or a number as one."""
    if isinstance(value, vTensor):
        if value._builder is not builder:
            raise mistakes.CROSS_STAGE.error(caller(), op=op, other="another method")
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return emit("const", builder=builder, value=number(value))
    raise mistakes.NOT_A_TENSOR.error(caller(), op=op, found=type(value).__name__)


class vFlow:
    """Base class of every flow. Subclass it and write up to three methods, each traced once.

    Attributes:
        knobs: settings that travel with the flow; override with `knobs = Knobs(...)`.
        params: learned values by name, as nested lists; read with `ops.param(name, ...)`.
    """

    knobs: Knobs = Knobs()
    params: Mapping[str, object] = {}

    def create_cache(self, page: Page) -> dict[str, StateSpec]:
        """Declare page states. None by default."""
        return {}

    def forward_cache(self, page: Page) -> dict[str, vTensor]:
        """Compute the states of one completed page."""
        return {}

    def forward_indexer(self, q: vTensor, cache: Cache) -> Selection:
        """Choose pages for one decode step. `q`: `(head, dim)`, one kv head of one sequence."""
        raise mistakes.MISSING_METHOD.error(
            cls=type(self).__name__, method="forward_indexer", signature="forward_indexer(self, q, cache)"
        )


F = TypeVar("F", bound=type[vFlow])
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


def check_name(name: object) -> str:
    """A flow's name names files, rows and commands: `VF025` unless it is short and plain."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise mistakes.BAD_FLOW_NAME.error(found=repr(name)[:80])
    return name


def plain_name(name: str) -> str:
    """The nearest name that a flow may have: letters, digits, dashes and underscores, a letter first."""
    found = re.sub(r"[^A-Za-z0-9_-]+", "_", name[:200]).strip("_-")[:59].strip("_-") or "flow"
    return found if found[0].isalpha() else f"flow_{found}"


def register(name: str) -> Callable[[F], F]:
    """Class decorator: gives a flow its name."""

    try:
        check_name(name)
    except VortexError as error:
        error.location = caller()
        raise

    def wrap(cls: F) -> F:
        if not isinstance(cls, type) or not issubclass(cls, vFlow):
            raise mistakes.NO_FLOW.error(caller(), count=0)
        cls.flow_name = name  # type: ignore[attr-defined]  # read back by the tracer
        return cls

    return wrap
