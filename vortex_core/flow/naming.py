"""Names and docstrings of emitted flows."""

from __future__ import annotations

import re

from vortex_core.ir.graph import Graph
from vortex_core.ir.program import Program
from vortex_core.text import visible_lines


def class_name(name: str) -> str:
    """A Python class name for a flow's name."""
    parts = [p for p in re.split(r"[^A-Za-z0-9]+", name) if p]
    text = "".join(p[:1].upper() + p[1:] for p in parts) or "Flow"
    return text if text[0].isalpha() else f"Flow{text}"


def state_labels(program: Program) -> dict[str, str]:
    """Names for states that say what they hold, e.g. `k_max`; unique."""
    writers = dict(program.cache.writes)
    used: dict[str, str] = {}
    for s in program.states:
        kept = "remembered" if s.of_request else "carried"
        base = kept if s.carried else _describe(program.cache, writers[s.name])
        label, n = base, 2
        while label in used.values():
            label, n = f"{base}{n}", n + 1
        used[s.name] = label
    return used


def _describe(graph: Graph, root: int) -> str:
    seen: list[str] = []
    queue = [root]
    for i in queue:  # grows: nearest first, each node once however many paths lead to it
        n = graph.nodes[i]
        word = {"amax": "max", "amin": "min", "sum": "sum", "k": "k", "v": "v", "sqrt": "norm"}.get(n.op)
        if word and word not in seen:
            seen.append(word)
        queue += [j for j in dict.fromkeys(n.inputs) if j not in queue]
    source = "kv" if {"k", "v"} <= set(seen) else next((w for w in seen if w in ("k", "v")), "c")
    what = next((w for w in seen if w in ("norm", "max", "min", "sum")), "state")
    if what == "sum" and any(n.op == "extent" for n in graph.nodes):
        what = "mean"
    return f"{source}_{what}"


def docstring(doc: str) -> list[str]:
    """Lines of a class's docstring."""
    text = visible_lines(doc).replace("\\", "\\\\").replace('"""', "'''").strip() or "A found flow."
    lines = text.split("\n")
    if len(lines) == 1:
        return [f'    """{lines[0]}"""' if not lines[0].endswith('"') else f'    """{lines[0]} """']
    return [f'    """{lines[0]}', *(f"    {line}".rstrip() for line in lines[1:]), '    """']
