"""Published algorithms, one small file each. They obey the same rules as anyone's flow."""

from __future__ import annotations

import difflib
from functools import lru_cache
from pathlib import Path

from vortex_core.errors import VortexError
from vortex_core.flow.trace import Traced

_HERE = Path(__file__).parent


def names() -> list[str]:
    """Names of all library flows, dense first."""
    found = sorted(p.stem for p in _HERE.glob("*.py") if not p.stem.startswith("_"))
    return sorted(found, key=lambda n: (n != "dense", n))


def source(name: str) -> str:
    """Source text of a library flow.

    Raises:
        VortexError: `VF070` for an unknown name.
    """
    if name not in names():
        raise _unknown(name)
    return (_HERE / f"{name}.py").read_text(encoding="utf-8")


@lru_cache
def load(name: str) -> Traced:
    """Trace a library flow. It is trusted, so this runs in-process, in about a millisecond."""
    from vortex_core.flow.jail import run

    return run(source(name), f"{name}.py")


def resolve(flow: str) -> Traced:
    """A flow as users name it: a library name, or the path of a `.py` file (which is traced in the jail).

    Raises:
        VortexError: `VF070` for an unknown name, else whatever is wrong with the file.
    """
    if flow in names():
        return load(flow)
    if flow.endswith(".py") or "/" in flow:
        from vortex_core.flow.load import trace_file

        return trace_file(flow)
    raise _unknown(flow)


def _unknown(name: str) -> VortexError:
    near = difflib.get_close_matches(name, names(), 3)
    hint = f"did you mean {', '.join(near)}?" if near else f"library flows: {', '.join(names())}"
    return VortexError(
        "VF070", f"no flow named {name!r}", f"{hint} A file is given by its path, e.g. ./my_flow.py"
    )
