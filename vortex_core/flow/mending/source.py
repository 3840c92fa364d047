"""Mended lines for what may not be written, and for exceptions of the author's own code."""

from __future__ import annotations

import ast
import inspect
import re

from vortex_core.flow.mending.place import (
    Edit,
    Place,
    changed,
    close,
    text_of,
)
from vortex_core.flow.mending.states import not_carried
from vortex_core.ir.knobs import Knobs

_METHODS = ("create_cache", "forward_cache", "forward_indexer")


def missing_method(place: Place) -> Edit | None:
    """VF004: a method of the class by a name that is nearly the missing one."""
    return _renamed_to(place, str(place.facts["method"]))


def nobody_writes(place: Place) -> Edit | None:
    """VF031: a state that forward_indexer assigns is carried; else a method that is nearly forward_cache."""
    methods = [n.name for n in ast.walk(place.tree) if isinstance(n, ast.FunctionDef)]
    return not_carried(place) or (None if "forward_cache" in methods else _renamed_to(place, "forward_cache"))


def _renamed_to(place: Place, wanted: str) -> Edit | None:
    written = [n for n in ast.walk(place.tree) if isinstance(n, ast.FunctionDef) and n.name not in _METHODS]
    name = close(wanted, [n.name for n in written], 0.5)
    for node in written:
        text = ast.get_source_segment(node.source, node)  # type: ignore[attr-defined]  # set for mending
        if node.name == name and text is not None:
            return Edit(node, text.replace(name, wanted, 1))
    return None


def forbidden(place: Place) -> Edit | None:
    """VF002: an import that does not exist here goes; so do `del`, `global` and `nonlocal`."""
    modules = place.facts.get("modules", {})  # what may be imported from each
    for statement in place.statements():
        match statement:
            case ast.ImportFrom(module=str(module), names=names) if module in modules:
                allowed = modules[module]
                kept = [a for a in names if allowed is None or a.name in allowed]
                if kept:
                    return Edit(statement, f"from {module} import {', '.join(map(text_of, kept))}")
                return Edit(statement, "pass")
            case ast.Import() | ast.ImportFrom() | ast.Delete() | ast.Global() | ast.Nonlocal():
                return Edit(statement, "pass")
    return None


_PAGE = {
    "keys": "k", "key": "k", "values": "v", "value": "v", "page_size": "size", "tokens": "size", "dim": "head_dim",
    "block_size": "size", "num_tokens": "size", "d": "head_dim", "hidden_dim": "head_dim",
}  # fmt: skip
_SIZES = {"size": "S", "head_dim": "D", "rope_dim": "R", "nope_dim": "N"}
_FOREIGN = ("torch", "np", "numpy", "F", "nn", "jnp", "tl")


def raised(place: Place) -> Edit | None:
    """VF005: names of other libraries, wrong keywords, attributes that have another name."""
    why = str(place.facts["why"])
    if missing := re.search(r"name '(\w+)' is not defined", why):
        name = missing.group(1)
        chain = place.node
        while isinstance(getattr(chain, "parent", None), ast.Attribute):
            chain = chain.parent  # type: ignore[union-attr]
        if name in _FOREIGN and isinstance(chain, ast.Attribute):
            return Edit(chain, f"ops.{chain.attr}")
        if name == "page" and isinstance(chain, ast.Attribute) and chain.attr in _SIZES:
            return Edit(chain, f'ops.size("{_SIZES[chain.attr]}")')
        return None
    call = place.call
    if (extra := re.search(r"unexpected keyword argument '(\w+)'", why)) and call is not None:
        name = extra.group(1)

        def change(c: ast.Call) -> None:
            for k in c.keywords:
                if k.arg == name:
                    k.arg = "dim" if name == "axis" else None
            c.keywords = [k for k in c.keywords if k.arg is not None]

        return changed(call, change)
    if (wrong := re.search(r"'(\w+)' object has no attribute '(\w+)'", why)) and isinstance(
        place.node, ast.Attribute
    ):
        owner, name = wrong.groups()
        if owner == "Page" and (known := _PAGE.get(name) or close(name, [*_SIZES, "k", "v", "state"])):
            return Edit(place.node, f"{text_of(place.node.value)}.{known}")
        if owner == "Cache":
            if name == "get" and call is not None and call.args:
                return Edit(call, f"{text_of(place.node.value)}[{text_of(call.args[0])}]")
            return Edit(place.node, f'{text_of(place.node.value)}["{name}"]')
    return None


def of_exception(kind: str, why: str) -> str:
    """What to do about an exception of the author's own code."""
    if missing := re.search(r"name '(\w+)' is not defined", why):
        name = missing.group(1)
        if name in _FOREIGN:
            return f"{name} does not exist here: write ops.NAME(...) or a method of the vTensor"
        if name == "page":
            return 'page belongs to create_cache and forward_cache; elsewhere write ops.size("S") or ops.size("D")'
        return f"define {name} before it is used, or pass it as self.{name}"
    if method := re.search(r"(vTensor|Page)\.(\w+)\(\)", why):
        from vortex_core.flow.vflow import Page
        from vortex_core.flow.vtensor import vTensor

        function = getattr({"vTensor": vTensor, "Page": Page}[method.group(1)], method.group(2), None)
        if callable(function):
            taken = [str(p).split(":")[0] for p in list(inspect.signature(function).parameters.values())[1:]]
            return f"call it as {method.group(2)}({', '.join(taken)})"
    if "Knobs" in why:
        return f"knobs are {', '.join(Knobs.__dataclass_fields__)}"
    if wrong := re.search(r"'(\w+)' object has no attribute '(\w+)'", why):
        owner, name = wrong.groups()
        if owner == "Page":
            return "a page has k, v, size, head_dim, rope_dim, nope_dim and state(...)"
        if owner == "Cache":
            return f'read a state with cache["{name}"]'
        return f"give {owner} a class attribute {name}, or mend the name"
    if "takes" in why and "positional argument" in why:
        return "pass the arguments that the function declares (methods have self first)"
    return {
        "KeyError": "use a key that exists; states are read in forward_indexer as cache[name]",
        "IndexError": "use an index that exists; dimensions have names, not positions",
        "ZeroDivisionError": "divide by what is not 0; a small number added to a vTensor keeps it so, x / (y + 1e-6)",
        "RecursionError": "end the recursion: dimensions are symbols, so nothing of their size can end it",
        "NotImplementedError": "write the method",
    }.get(
        kind,
        "change the line so that it needs no value: the methods see symbols, computing is ops and methods",
    )
