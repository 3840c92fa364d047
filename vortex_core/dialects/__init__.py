"""Programs written for other systems, read in as flows.

A dialect is a package with `RULES` (what its source may import), `importer(registry)` (stand-ins for those
imports), `read(namespace, registry, options, module) -> Traced` and a `WARM_UP` program. The jail calls them;
nothing else runs foreign source.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from vortex_core.errors import VortexError

if TYPE_CHECKING:
    from pathlib import Path

    from vortex_core.flow.trace import Traced

NAMES = ("vortex_torch",)


def of_imports(packages: Collection[str]) -> str | None:
    """The dialect of a source that imports these top-level packages, None for vFlow. What a comment or a docstring
    says is no import."""
    found = next((name for name in NAMES if name in packages), None)
    # A module of that system's own package imports its neighbours; a flow of ours never imports relatively.
    return NAMES[0] if found is None and "." in packages else found


def detect(source: str) -> str | None:
    """The dialect a source is written in, None for vFlow and for what does not parse."""
    from vortex_core.sandbox import allowlist

    try:
        return of_imports(allowlist.imports(allowlist.parse(source, "")))
    except VortexError:
        return None


def load(name: str) -> Any:
    """A dialect's package."""
    assert name == "vortex_torch", name
    from vortex_core.dialects import vortex_torch

    return vortex_torch


def convert(source: str, knobs: Mapping[str, Any] | None = None, file: str = "<program>") -> Traced:
    """Read a foreign program in the jail.

    Args:
        source: the program.
        knobs: the JSON object that goes with it (`vortex_*` settings).
        file: shown in errors.

    Returns:
        The traced flow; its `source` is the equivalent vFlow source.

    Raises:
        VortexError: `VF080` ... `VF089`, or whatever is wrong with the program itself.
    """
    from vortex_core.ir import mistakes
    from vortex_core.sandbox.load import trace_source

    traced = trace_source(source, file, options=None if knobs is None else dict(knobs))
    if traced.source == source:  # read as what it is already
        raise mistakes.DIALECT_IMPORT.error(
            module=file,
            name="import of vortex_torch",
            known="vortex_torch.flow, vortex_torch.indexer, vortex_torch.cache",
        )
    return traced


def convert_file(path: str | Path, knobs: str | Path | Mapping[str, Any] | None = None) -> Traced:
    """Read a foreign program's file.

    Args:
        path: the `.py` file.
        knobs: its JSON, as a path or an object; by default the `.json` file of the same name beside it.

    Raises:
        VortexError: `VF000` if a file cannot be read, `VF087` for malformed JSON, else as `convert`.
    """
    from pathlib import Path

    from vortex_core.files import parse_json
    from vortex_core.ir import mistakes

    path = Path(path)
    source = _text(path)
    if knobs is None and path.with_suffix(".json").is_file():
        knobs = path.with_suffix(".json")
    if isinstance(knobs, str | Path):
        where, text = Path(knobs), _text(Path(knobs))
        try:
            knobs = parse_json(text)
        except ValueError as error:
            raise mistakes.DIALECT_KNOB.error(name="settings", value=where.name, why=error) from None
        if not isinstance(knobs, dict):
            raise mistakes.DIALECT_KNOB.error(name="settings", value=where.name, why="it is a JSON object")
    return convert(source, knobs, str(path))


def _text(path: Path) -> str:
    from vortex_core.files import read_text
    from vortex_core.ir import mistakes

    try:
        return read_text(path)
    except OSError as error:
        raise mistakes.UNREADABLE.error(path=path, why=error.strerror) from None
