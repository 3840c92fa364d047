"""Hostile programs end in a code, and reach nothing: neither in the jail nor, by the allow-list alone, without it."""

from __future__ import annotations

import ast
import json
import math
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest

from tests.hostile.programs import RUN, refused
from vortex_core import dialects
from vortex_core.errors import VortexError
from vortex_core.flow import facade
from vortex_core.sandbox import allowlist
from vortex_core.sandbox.jail import run
from vortex_core.sandbox.load import trace_source
from vortex_core.text import is_visible

REFUSED = list(refused())


def test_there_are_enough() -> None:
    assert len({source for _, source in REFUSED}) >= 350


def test_the_allow_list_alone_refuses_them() -> None:
    """In this process, without any wall of the kernel, before anything runs."""
    wrong = []
    for what, source in REFUSED:
        dialect = dialects.detect(source)
        try:
            tree = allowlist.parse(source, "flow.py")
            rules = allowlist.FLOW if dialect is None else dialects.load(dialect).RULES
            allowlist.check(tree, source, "flow.py", rules)
            wrong.append(f"{what}: accepted")
        except VortexError as error:
            if error.code != "VF002":
                wrong.append(f"{what}: {error.code}")
    assert not wrong


@pytest.mark.parametrize("part", range(4))
def test_the_jail_refuses_them_too(part: int) -> None:
    for what, source in REFUSED[part * 7 :: 100]:
        with pytest.raises(VortexError) as caught:
            trace_source(source, "flow.py")
        assert caught.value.code == "VF002", what


@pytest.mark.parametrize("what", list(RUN))
@pytest.mark.timeout(60)
def test_programs_that_run_end_within_their_bounds(what: str) -> None:
    source, code = RUN[what]
    began = time.monotonic()
    if not code:
        assert trace_source(source, "flow.py").knobs.page_size == 16
        return
    with pytest.raises(VortexError) as caught:
        trace_source(source, "flow.py", deadline=1.5 if code == "VF006" else 25.0)
    error = caught.value
    assert error.code.startswith(code), error
    assert is_visible(error.message, 1_500)
    assert error.location is None or is_visible(error.location.text)
    assert len(json.dumps(error.to_json())) < 8_000
    str(error).encode()
    assert time.monotonic() - began < 30


# ---- what can be reached at all ---------------------------------------------------------------------------

FORBIDDEN = (types.ModuleType, types.FrameType, types.CodeType, types.TracebackType)


def _reachable(roots: list[Any], dialect: bool) -> Iterator[tuple[str, Any]]:
    """Everything the allowed attributes, items and keys of `roots` lead to, by path."""
    seen: set[int] = set()
    keep: list[Any] = []  # so that no address is used twice
    todo = [("root", root) for root in roots]
    while todo:
        path, found = todo.pop()
        if id(found) in seen or path.count(".") > 8:
            continue
        seen.add(id(found))
        keep.append(found)
        yield path, found
        if isinstance(found, dict):
            todo += [(f"{path}[{k!r:.20}]", v) for k, v in list(found.items())[:300]]
        elif isinstance(found, list | tuple | set | frozenset):
            todo += [(f"{path}[{i}]", v) for i, v in enumerate(list(found)[:300])]
        for name in dir(found):
            private = name.startswith("_") and not (dialect and not name.startswith("__"))
            if private or allowlist._leads_out(name):
                continue
            try:
                todo.append((f"{path}.{name}", getattr(found, name)))
            except Exception:
                continue


@pytest.mark.parametrize("dialect", [False, True])
def test_nothing_a_flow_is_given_leads_out(dialect: bool) -> None:
    """From the language, a traced tensor, a page, a cache and knobs no attribute leads to a module but math, to a
    frame or to code, even if a program could read single-underscore attributes of them all (which it cannot)."""
    roots: list[Any] = [facade.language(), facade.importer("math"), allowlist.safe_builtins(facade.importer)]
    if dialect:
        package = dialects.load("vortex_torch")
        load = package.importer({})
        roots = [load("vortex_torch.flow"), load("vortex_torch.indexer"), load("torch"), load("typing")]
    run(
        "from vortex_core import ops, vFlow\nclass W(vFlow):\n    def create_cache(self, page):\n"
        "        return {'a': page.state(dim=page.head_dim)}\n    def forward_cache(self, page):\n"
        "        return {'a': page.k.mean('token')}\n    def forward_indexer(self, q, cache):\n"
        "        s = (q * cache['a']).sum('dim').max('head')\n        return ops.topk(s)\n",
        "x.py",
    )
    out = [
        path
        for path, found in _reachable(roots, dialect)
        if isinstance(found, FORBIDDEN) and found is not math and not path.endswith("__import__']")
    ]
    assert not out


def test_every_listed_node_is_a_node() -> None:
    assert all(issubclass(kind, ast.AST) for kind in allowlist._NODES)
