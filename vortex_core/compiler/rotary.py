"""The model's rotary frequencies, as one more array of values that a program reads.

Programs name them (`rotary`) and do not hold them, so that one program is the same in every model. Once the model is
known they are read as learned parameters are, and backends know of parameters alone.
"""

from __future__ import annotations

from dataclasses import replace

from vortex_core.geometry import Geometry
from vortex_core.ir import mistakes
from vortex_core.ir.graph import Graph
from vortex_core.ir.params import ParamDecl, Values
from vortex_core.ir.program import Program
from vortex_core.ir.types import Extent

NAME = "model_rotary"
_ATTRS = (("dims", (("dim", "D"),)), ("name", NAME))


def with_rotary(program: Program, geometry: Geometry) -> Program:
    """The program with the frequencies of a model as a parameter; the same program if it does not read them.

    Raises:
        VortexError: `VF066` where they are not known.
    """
    if not program.reads_rotary:
        return program
    if not geometry.rotary:
        nodes = (*program.cache.nodes, *program.index.nodes)
        raise mistakes.NO_ROTARY.error(next(n.location for n in nodes if n.op == "rotary"))
    found = ParamDecl(NAME, (("dim", Extent.parse("D")),), Values.of(NAME, geometry.frequencies))
    return replace(
        program,
        cache=_read(program.cache),
        index=_read(program.index),
        params=(*(p for p in program.params if p.name != NAME), found),
    )


def _read(graph: Graph) -> Graph:
    nodes = (replace(n, op="param", attrs=_ATTRS) if n.op == "rotary" else n for n in graph.nodes)
    return replace(graph, nodes=tuple(nodes))
