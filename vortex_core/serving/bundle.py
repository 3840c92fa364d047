"""A flow as serving processes read it: verified IR and knobs. No source code runs in a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.files import MAX_PROGRAM, named_path, read_json
from vortex_core.ir.flow import Flow
from vortex_core.serving.errors import bad_bundle


def write_flow(flow: Flow, path: Path) -> Path:
    """Save a flow as one JSON file, which `load_flow` reads."""
    path.write_text(json.dumps(flow.to_json()), encoding="utf-8")
    return path


def load_flow(source: str) -> Flow:
    """The flow that `source` names: an exported directory, a bundle file, or a library flow.

    Python source is refused here: trace it once (`vortex-search serve` does), and serve what was verified.

    Raises:
        VortexError: `VE030` if there is none, or what the verifier finds.
    """
    path = named_path(source)
    if path.is_dir():
        program, knobs = path / "program.json", path / "knobs.json"
        return Flow.from_json(
            {
                "name": path.resolve().name,
                "program": _read(program, source),
                "knobs": _read(knobs, source),
                "origin": str(path),
            }
        )
    if path.suffix == ".json":
        data = _read(path, source)
        if not isinstance(data, dict) or not {"name", "program", "knobs"} <= data.keys():
            raise bad_bundle(source, "not a bundle of name, program and knobs")
        return Flow.from_json(data)
    if path.suffix == ".py":
        raise bad_bundle(
            source, "Python source is not run in a server; `vortex-search serve` traces it first"
        )
    from vortex_core import library

    try:
        return library.resolve(source).flow
    except VortexError as error:
        raise bad_bundle(source, error.message) from error


def _read(path: Path, source: str) -> Any:
    try:
        return read_json(path, MAX_PROGRAM)
    except OSError as error:
        raise bad_bundle(source, f"{path.name}: {error.strerror or error}") from error
