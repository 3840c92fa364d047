"""One tracing of a vortex_torch program: its fields, its stages, and what they wrote."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

from vortex_core.dialects.vortex_torch import axes as ax
from vortex_core.dialects.vortex_torch.settings import Settings
from vortex_core.dialects.vortex_torch.view import View
from vortex_core.flow import ops
from vortex_core.flow.vtensor import emit, vTensor
from vortex_core.ir import mistakes
from vortex_core.ir.graph import GraphBuilder
from vortex_core.ir.program import StateDecl
from vortex_core.ir.types import Extent, Stage, make_dims

current: ContextVar[Session | None] = ContextVar("vortex_torch_session", default=None)
METHODS: dict[Stage, str] = {"cache": "forward_cache", "index": "forward_indexer"}


@dataclass
class Field:
    """One entry of create_cache.

    Attributes:
        shape: declared `(D0, D1)`.
        state: its name in our program.
        value: what forward_cache computed for it.
        fill: the constant forward_cache filled it with.
        axes: named dimensions of D0 and D1.
        load: its value at the start of a decode step.
        save: what forward_indexer saved into it.
    """

    shape: tuple[int, int]
    state: str
    value: View | None = None
    fill: float | None = None
    axes: ax.Axes = ((), ())
    load: View | None = None
    save: vTensor | None = None


class Token:
    """An argument without a value: `o`, `loc`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise mistakes.DIALECT_TORCH.error(what=f"{self.name}.{name}")


class Context:
    """`ctx`: the settings a program may read."""

    def __init__(self, settings: Settings) -> None:
        self.block_size = self.page_size = settings.block_size
        self.topk_val = settings.topk_val
        self.block_reserved_bos = self.page_reserved_bos = settings.bos
        self.block_reserved_eos = self.page_reserved_eos = settings.eos

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise mistakes.DIALECT_NO_EQUIVALENT.error(
            what=f"ctx.{name}",
            why="a flow sees one sequence and its own settings, not the engine's buffers",
            remedy=f"remove ctx.{name}; readable: {', '.join(vars(self))}",
        )


@dataclass
class Session:
    """State of one tracing.

    Attributes:
        settings: the JSON that came with the program.
        fields: by declared name.
        builder: the graph of the current stage.
        result: the selection, once an output operator was called.
        in_place: operators (by order of call) whose result an earlier tracing found unused although their
            input was used afterwards: early programs call Softmax and Normalize for their effect.
        scans: `(order of call, input, reads of the input at the call, result)` of each such operator.
        streams: block counts of `TopK(k)` calls.
    """

    settings: Settings
    fields: dict[str, Field] = field(default_factory=dict)
    builder: GraphBuilder = field(default_factory=lambda: GraphBuilder("cache"))
    result: ops.Selection | None = None
    in_place: frozenset[int] = frozenset()
    scans: list[tuple[int, View, int, View]] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)
    called: set[int] = field(default_factory=set)
    keep: list[Any] = field(default_factory=list)  # operators called, so that their ids stay theirs

    def __post_init__(self) -> None:
        self.context = Context(self.settings)
        self.output = Token("o")
        self.loc = Token("loc")
        self.sources = {"latent": "k"} if self.settings.is_mla else {"k": "k", "v": "v"}

    @property
    def stage(self) -> Stage:
        """`cache` or `index`."""
        return self.builder.stage

    def view(self, t: vTensor, axes: ax.Axes, paged: bool) -> View:
        """A new value."""
        return View(t, axes, self.settings.sizes, paged)

    # ---- declarations --------------------------------------------------------------------------------

    def declare(self, shapes: object) -> None:
        """Take what create_cache returned.

        Raises:
            VortexError: `VF085`.
        """
        if not isinstance(shapes, dict):
            raise mistakes.DIALECT_FIELD.error(
                name="?",
                why=f"create_cache returned {type(shapes).__name__}",
                remedy="return {name: (D0, D1)}",
            )
        for name, shape in shapes.items():
            if name in ("k", "v", "latent"):
                raise mistakes.DIALECT_FIELD.error(
                    name=name, why="it is provided automatically", remedy="declare only your own fields"
                )
            fits = isinstance(shape, tuple | list) and len(shape) == 2
            if not isinstance(name, str) or not fits or not all(isinstance(n, int) and n >= 1 for n in shape):
                raise mistakes.DIALECT_FIELD.error(
                    name=name,
                    why=f"declared as {shape!r}",
                    remedy="a field is (D0, D1), two whole numbers from 1",
                )
            self.fields[name] = Field((shape[0], shape[1]), self._state_name(name))

    def _state_name(self, name: str) -> str:
        base = re.sub(r"[^a-z0-9_]", "_", name.lower())[:20] or "field"
        base = base if base[0].isalpha() else f"f{base}"[:20]
        used, found, n = {f.state for f in self.fields.values()}, base, 2
        while found in used:
            found, n = f"{base}_{n}", n + 1
        return found

    def find(self, name: object) -> Field:
        """A declared field, or `VF085`."""
        if not isinstance(name, str) or name not in self.fields:
            known = ", ".join([*self.sources, *self.fields])
            raise mistakes.DIALECT_FIELD.error(
                name=name, why="it is not declared", remedy=f"fields are: {known}"
            )
        return self.fields[name]

    # ---- fields as arguments -------------------------------------------------------------------------

    def read(self, name: str) -> View:
        """`cache[name]` as an input."""
        if name in self.sources:
            if self.stage == "index":
                raise mistakes.DIALECT_NO_EQUIVALENT.error(
                    what=f"cache[{name!r}] in forward_indexer",
                    why="a decode step reads page states only, or it would read the whole KV cache",
                    remedy="store what it needs in a field",
                )
            t = emit(self.sources[name], builder=self.builder)
            return self.view(t, ((("token", Extent.parse("S")),), (("dim", Extent.parse("D")),)), False)
        found = self.find(name)
        if self.stage == "cache":
            if found.value is None:
                raise mistakes.DIALECT_FIELD.error(
                    name=name, why="it is read before it is written", remedy="write it first"
                )
            return found.value
        if found.load is None:
            if found.save is not None:
                raise mistakes.DIALECT_FIELD.error(
                    name=name, why="it is loaded after it was saved", remedy="load it first, then save"
                )
            if found.value is None and found.fill is None:
                raise mistakes.DIALECT_FIELD.error(
                    name=name,
                    why="forward_cache never writes it",
                    remedy="write it in forward_cache, or Fill it if forward_indexer saves it",
                )
            dims = tuple((n, str(e)) for n, e in self.dims(found))
            t = emit("load", builder=self.builder, name=found.state, dims=dims)
            found.load = self.view(t, found.axes, True)
        return found.load

    def write(self, name: str, value: View) -> None:
        """The output argument of a cache operator."""
        found = self.find(name)
        self._check_shape(name, found, value)
        if found.fill is not None:
            raise mistakes.DIALECT_FIELD.error(
                name=name, why="it is filled and written", remedy="do one of the two"
            )
        found.value = value

    def fill(self, name: str, value: float) -> None:
        """`Fill(alpha)(cache[name])`."""
        found = self.find(name)
        if found.value is not None:
            raise mistakes.DIALECT_FIELD.error(
                name=name, why="it is filled and written", remedy="do one of the two"
            )
        found.fill = float(value)

    def save(self, name: str, value: View) -> None:
        """`Save()(x, cache[name])`."""
        found = self.find(name)
        if found.fill is None:
            raise mistakes.DIALECT_FIELD.error(
                name=name,
                why="it is saved but starts at no constant",
                remedy="Fill it in forward_cache; a field that forward_indexer saves starts at one number",
            )
        if found.save is not None:
            raise mistakes.DIALECT_FIELD.error(
                name=name, why="it is saved twice", remedy="combine the two values first"
            )
        self._check_shape(name, found, value)
        t = value.tensor
        for have, want in zip(value.axes, found.axes, strict=True):
            if [e for _, e in have] != [e for _, e in want]:
                raise mistakes.DIALECT_FIELD.error(
                    name=name,
                    why=f"{value} is laid out unlike {found.shape}",
                    remedy="save values of one number per page, or of head_dim channels",
                )
            t = ax.rename(t, {a: b for (a, _), (b, _) in zip(have, want, strict=True)})
        found.save = ax.materialise(t, *found.axes)

    def _check_shape(self, name: str, found: Field, value: View) -> None:
        if value.shape[1:] != found.shape:
            raise mistakes.DIALECT_SHAPE.error(
                op=f"cache[{name!r}]",
                found=str(value),
                why=f"the field is declared as {found.shape}",
                remedy="declare the shape that is written",
            )

    # ---- results -------------------------------------------------------------------------------------

    def dims(self, found: Field) -> tuple[ax.Dim, ...]:
        """Dimensions of a field's state."""
        return make_dims([d for axis in found.axes for d in axis])

    def end_cache(self) -> dict[str, int]:
        """Close forward_cache: give every field its dimensions; what is written, by state name."""
        writes = {}
        for name, found in self.fields.items():
            if found.value is not None:
                mapping = {"token": ax.fresh(ax.names(*found.value.axes))}
                found.axes = (
                    ax.renamed(found.value.axes[0], mapping),
                    ax.renamed(found.value.axes[1], mapping),
                )
                t = ax.materialise(ax.rename(found.value.tensor, mapping), *found.axes)
                writes[found.state] = t._id
            elif found.fill is not None:
                found.axes = (self._plain_axis(0, found.shape[0]), self._plain_axis(1, found.shape[1]))
            else:
                raise mistakes.DIALECT_FIELD.error(
                    name=name, why="forward_cache never writes it", remedy="write it or drop it"
                )
        return writes

    def _plain_axis(self, axis: int, size: int) -> ax.Axis:
        if size == 1:
            return ()
        if axis == 1 and size == self.settings.sizes["D"]:
            return (("dim", Extent.parse("D")),)
        return (("row" if axis == 0 else "col", Extent.parse(size)),)

    def constants(self) -> dict[str, int]:
        """Fields that were filled and never saved: their value, in the cache graph (which is current)."""
        return {
            f.state: ax.materialise(ops.constant(f.fill), *f.axes)._id
            for f in self.fields.values()
            if f.fill is not None and f.save is None
        }

    def states(self) -> tuple[StateDecl, ...]:
        """Declarations of our program; fields nobody reads are left out."""
        return tuple(
            StateDecl(
                f.state,
                self.dims(f),
                self.settings.state_dtype,
                carried=f.save is not None,
                init=(f.fill or 0.0) if f.save is not None else 0.0,
            )
            for f in self.fields.values()
        )


class Cache:
    """The `cache` argument: fields by name."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getitem__(self, name: str) -> FieldRef:
        if name not in self._session.sources:
            self._session.find(name)
        return FieldRef(self._session, name)

    def __contains__(self, name: object) -> bool:
        return name in self._session.sources or name in self._session.fields


class FieldRef:
    """`cache[name]`: an input where it is read, a target where it is an output argument."""

    def __init__(self, session: Session, name: str) -> None:
        self.session = session
        self.name = name

    def read(self) -> View:
        """Its value."""
        return self.session.read(self.name)

    def mean(self, dim: int, keepdim: bool = False) -> View:
        """As `View.mean`."""
        return self.read().mean(dim, keepdim)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise mistakes.DIALECT_TORCH.error(what=f"cache[{self.name!r}].{name}")
