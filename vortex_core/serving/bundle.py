"""A flow as serving processes read it: verified IR and knobs. No source code runs in a server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.flow.trace import Traced, candidate_key
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.serving.errors import bad_bundle


@dataclass(frozen=True)
class FlowBundle:
    """Program and knobs of one candidate.

    Attributes:
        name: for people.
        program: canonical.
        knobs: settings, page size among them.
    """

    name: str
    program: Program
    knobs: Knobs

    @property
    def ir_hash(self) -> str:
        """Identity of the program."""
        return self.program.ir_hash

    @property
    def key(self) -> str:
        """Identity of program and knobs together."""
        return candidate_key(self.program, self.knobs)

    @classmethod
    def of(cls, traced: Traced) -> FlowBundle:
        """From a traced flow."""
        return cls(traced.name, traced.program, traced.knobs)

    def to_json(self) -> dict[str, Any]:
        """Plain data, inverse of `from_json`."""
        return {"name": self.name, "program": self.program.to_json(), "knobs": self.knobs.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FlowBundle:
        """Rebuild and verify; the canonical form is computed here, never taken on trust."""
        program = Program.from_json(data["program"]).canonical()
        return cls(str(data["name"]), program, Knobs.from_json(data["knobs"]))

    def write(self, path: Path) -> Path:
        """Save as one JSON file."""
        path.write_text(json.dumps(self.to_json()), encoding="utf-8")
        return path


def load_bundle(source: str) -> FlowBundle:
    """The flow that `source` names: an exported directory, a bundle file, or a library flow.

    Python source is refused here: trace it once (`vortex-search serve` does), and serve what was verified.

    Raises:
        VortexError: `VE030` if there is none, or what the verifier finds.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        program, knobs = path / "program.json", path / "knobs.json"
        return FlowBundle.from_json(
            {"name": path.resolve().name, "program": _read(program, source), "knobs": _read(knobs, source)}
        )
    if path.suffix == ".json":
        data = _read(path, source)
        if not isinstance(data, dict) or not {"name", "program", "knobs"} <= data.keys():
            raise bad_bundle(source, "not a bundle of name, program and knobs")
        return FlowBundle.from_json(data)
    if path.suffix == ".py":
        raise bad_bundle(
            source, "Python source is not run in a server; `vortex-search serve` traces it first"
        )
    from vortex_core import library

    try:
        return FlowBundle.of(library.resolve(source))
    except VortexError as error:
        raise bad_bundle(source, error.message) from error


def _read(path: Path, source: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise bad_bundle(source, f"{path.name}: {error.strerror or error}") from error
    except ValueError as error:
        raise bad_bundle(source, f"{path.name} is no JSON: {error}") from error
