"""Tile axes and tiles: what a value of generated code is, before and after it is bound to a name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from vortex_core.errors import VortexError
from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.types import dim_order

# Channels of a matrix product where their number is no power of two. Many take fewer products, which wait less often; few
# take less room, so that more programs run at a time. On an H100 many save up to a quarter of a short launch and cost 5-10%
# of one with seven programs a multiprocessor.
FEW_CHANNELS, MANY_CHANNELS = 64, 256
MAX_TILE = 8192
MAX_PAGES_PER_PROGRAM = 64
MAX_PADDING = 1.34  # more padding than this, and a reduction runs over power-of-two chunks instead


def unsupported(node: Node, why: str) -> VortexError:
    """`VE050`: legal, but not lowered by this backend. There is no silent fallback."""
    return VortexError(
        "VE050",
        f"the triton backend cannot lower {node.op}: {why}",
        "rewrite that step, or use the torch backend",
        node.location,
    )


def pow2(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()


def powers_of_two(real: int, most: int) -> list[tuple[int, int]]:
    """`(start, size)` of the fewest pieces of an extent whose sizes are powers of two, `most` at most."""
    pieces = []
    start = 0
    while start < real:
        size = min(most, 1 << (real - start).bit_length() - 1)
        pieces.append((start, size))
        start += size
    return pieces


LANE = "LANE"
"""Name of the axis along which a matrix product sums another dimension than `dim`: no dimension has it, so that sums over
`dim` inside its operands are not taken for sums over it."""


@dataclass(frozen=True)
class Axis:
    """A tile axis: `size` lanes of dimension `name`, `real` of them meaningful, at least `least` in all."""

    name: str
    real: int
    least: int = 1

    @property
    def size(self) -> int:
        """Lanes of the axis, a power of two."""
        return max(self.least, pow2(self.real))

    @property
    def index(self) -> str:
        """The variable that counts its lanes."""
        return f"i_{self.name}{self.real}" + (f"_{self.size}" if self.wide else "")

    @property
    def wide(self) -> bool:
        """Whether there are more lanes than the next power of two; heads always have the same number."""
        return self.name != "head" and self.size > pow2(self.real)

    @property
    def mask(self) -> str | None:
        """Condition on its lanes, None if all are real."""
        return None if self.size == self.real else f"{self.index} < {self.real}"


def order(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axes without repetition, in canonical order."""
    return tuple(sorted(set(axes), key=lambda a: (a.name == LANE, dim_order(a.name), a.real)))


@dataclass(frozen=True)
class Tile:
    """A variable (or literal) with its axes."""

    text: str
    axes: tuple[Axis, ...] = ()

    def to(self, target: Sequence[Axis]) -> str:
        """Text broadcast-aligned to `target` axes."""
        if not self.axes or tuple(target) == self.axes:
            return self.text
        index = ", ".join(":" if a in self.axes else "None" for a in target)
        return f"{atom(self.text)}[{index}]"


def atom(text: str) -> str:
    """The text, in parentheses where it is more than a name or a number."""
    return text if text.replace("_", "").isalnum() else f"({text})"


Env = Mapping[str, Tile]


def tile_lanes(node: Node, sizes: Mapping[str, int]) -> int:
    """Elements a tile holds for one page; odd numbers of channels are taken in pieces of at most 128."""
    total = 1
    for name, extent in node.type.dims:
        real = 1 if name == "page" else extent.resolve(sizes)
        odd = name == "dim" and pow2(real) > MAX_PADDING * real
        total *= min(128, real & -real) if odd else pow2(real)
    return total


def pages_per_program(
    graph: Graph, sizes: Mapping[str, int], absorbed: Collection[int] = (), summed: Collection[Node] = ()
) -> int:
    """Pages a scoring program handles, so that its largest tile stays in registers.

    Args:
        absorbed: nodes that are computed inside matrix products and have no tile.
        summed: products that are summed where they are made: threads never hold all of them, so they count half.
    """

    tiles = [n for i, n in enumerate(graph.nodes) if "page" in n.type.names and i not in absorbed]
    largest = max((tile_lanes(n, sizes) // (2 if n in summed else 1) for n in tiles), default=1)
    pages = max(1, min(MAX_PAGES_PER_PROGRAM, MAX_TILE // max(1, largest)))
    return 1 << (pages.bit_length() - 1)
