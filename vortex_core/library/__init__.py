"""Published algorithms, one small file each. They obey the same rules as anyone's flow.

Four shelves: this folder holds flows for every model, `mla/` those that tell latent from rotary channels,
`needs_weights/` those whose learned weights must be supplied before they mean anything, and `found/` what campaigns
discovered and what held on sealed items and on a model that its search never saw, each with the card of its run.
`docs/library.md` lists all, and the methods that cannot be written as a selection of pages.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.flow.trace import Traced

_HERE = Path(__file__).parent


def names() -> list[str]:
    """Names of the flows for every model, dense first."""
    return sorted(_shelf(""), key=lambda n: (n != "dense", n))


def mla_names() -> list[str]:
    """Names of the flows that need an MLA model."""
    return sorted(_shelf("mla"))


def untrained_names() -> list[str]:
    """Names of the flows that need learned or calibrated weights."""
    return sorted(_shelf("needs_weights"))


def found_names() -> list[str]:
    """Names of the flows that campaigns found."""
    return sorted(_shelf("found"))


def card(name: str) -> dict[str, Any]:
    """The card of a flow that a campaign found: its run, its tries, what it held against.

    Raises:
        VortexError: `VF070` for a name that is on no shelf of finds.
    """
    path = _shelf("found").get(name)
    if path is None:
        raise _unknown(name)
    found: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return found


def source(name: str) -> str:
    """Source text of a library flow.

    Raises:
        VortexError: `VF070` for an unknown name.
    """
    return _path(name).read_text(encoding="utf-8")


@lru_cache
def load(name: str) -> Traced:
    """Trace a library flow. It is trusted, so this runs in-process, in about a millisecond."""
    from vortex_core.sandbox.jail import run

    return replace(run(source(name), f"{name}.py"), origin=f"library:{name}")


def resolve(flow: str) -> Traced:
    """A flow as users name it: a library name, or the path of a `.py` file (which is traced in the jail).

    Raises:
        VortexError: `VF070` for an unknown name, else whatever is wrong with the file.
    """
    if flow in _all():
        return load(flow)
    if flow.endswith(".py") or "/" in flow:
        from vortex_core.sandbox.load import trace_file

        return trace_file(flow)
    raise _unknown(flow)


def _shelf(folder: str) -> dict[str, Path]:
    return {p.stem: p for p in (_HERE / folder).glob("*.py") if not p.stem.startswith("_")}


def _all() -> dict[str, Path]:
    return {**_shelf(""), **_shelf("mla"), **_shelf("needs_weights"), **_shelf("found")}


def _path(name: str) -> Path:
    found = _all()
    if name not in found:
        raise _unknown(name)
    return found[name]


def _unknown(name: str) -> VortexError:
    known = list(_all())
    near = difflib.get_close_matches(name[:100], known, 3)
    hint = f"did you mean {', '.join(near)}?" if near else f"library flows: {', '.join(names())}."
    return VortexError(
        "VF070", f"no flow named {name!r}", f"{hint} A file is given by its path, e.g. ./my_flow.py"
    )
