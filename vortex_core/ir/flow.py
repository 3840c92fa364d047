"""A flow as one value: a verified canonical program with its knobs, under a name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from vortex_core.ir import mistakes
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.text import visible, visible_lines


@dataclass(frozen=True)
class Flow:
    """What every layer means by a flow: compilers compile it, engines load it, campaigns rank it.

    Attributes:
        name: for people; never part of an identity.
        program: the canonical program.
        knobs: the settings that travel with it, page size and budget among them.
        doc: what its author says of it.
        origin: where it came from, e.g. `library:quest`, a file's name, or `RUN/c012`; for people.
    """

    name: str
    program: Program
    knobs: Knobs
    doc: str = field(default="", compare=False)
    origin: str = field(default="", compare=False)

    @property
    def ir_hash(self) -> str:
        """16 hex digits: identity of the program."""
        return self.program.ir_hash

    @cached_property
    def key(self) -> str:
        """16 hex digits: identity of program and knobs together, by which results are kept."""
        return flow_key(self.program, self.knobs)

    def with_knobs(self, **changes: Any) -> Self:
        """The same program with other knobs.

        Raises:
            VortexError: `VF061` or `VF062` for a value outside its range or an unknown knob.
        """
        return replace(self, knobs=self.knobs.with_(**changes))

    def to_json(self) -> dict[str, Any]:
        """Plain data, inverse of `from_json`."""
        return {
            "name": self.name,
            "program": self.program.to_json(),
            "knobs": self.knobs.to_json(),
            "doc": self.doc,
            "origin": self.origin,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Rebuild and verify; the canonical form is computed here, never taken on trust.

        Raises:
            VortexError: what the verifier finds wrong with the program or the knobs.
        """
        if not isinstance(data, dict) or not {"name", "program", "knobs"} <= data.keys():
            raise mistakes.BAD_IR.error(why="a flow is an object of name, program and knobs")
        return cls(
            name=visible(data["name"], 100),
            program=Program.from_json(data["program"]).canonical(),
            knobs=Knobs.from_json(data["knobs"]),
            doc=visible_lines(data.get("doc", "")),
            origin=visible(data.get("origin", "")),
        )


def flow_key(program: Program, knobs: Knobs) -> str:
    """16 hex digits that identify program and knobs together."""
    return hashlib.sha256(f"{program.ir_hash}:{knobs.digest}".encode()).hexdigest()[:16]
