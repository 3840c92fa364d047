"""The jailed tracer: the only place where untrusted Python runs.

Started by `process.py` as a fresh interpreter in its own process group, with an empty environment. Before it looks
at the source it gives up, for good, everything but computing and answering on its pipe (`kernel.lock_down`). Then it
says three things, a line of JSON each: what protects it, what kind of source it was given, and the program or the
mistake; learned values follow the last line as bytes. Nothing it says after the first line is believed
(`answer.py`).
"""

from __future__ import annotations

import ast
import json
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vortex_core import dialects
from vortex_core.errors import Location, VortexError
from vortex_core.flow import facade, mending
from vortex_core.flow.mending.source import of_exception
from vortex_core.flow.trace import Traced, trace
from vortex_core.flow.vflow import vFlow
from vortex_core.ir import mistakes
from vortex_core.ir.params import Values
from vortex_core.sandbox import allowlist, answer, kernel
from vortex_core.text import visible

_MODULE = "flow"


def run(
    source: str,
    file: str,
    options: dict[str, Any] | None = None,
    params: Mapping[str, Values] | None = None,
) -> Traced:
    """Check, execute and trace one flow's source in this process (jailed or trusted).

    Args:
        source: a vFlow module, or a program in one of `vortex_core.dialects`.
        file: shown in errors.
        options: settings that go with a dialect's program.
        params: learned values from beside the flow.

    Raises:
        VortexError: every way it can be wrong: the first, with the mended line where there is one, and in
            `further` what is wrong beyond it.
    """
    return _traced(allowlist.parse(source, file), source, file, options, params)


def _traced(
    tree: ast.Module,
    source: str,
    file: str,
    options: dict[str, Any] | None,
    params: Mapping[str, Values] | None,
) -> Traced:
    try:
        return _execute(tree, source, file, options, params)
    except VortexError as error:
        if dialects.of_imports(allowlist.imports(tree)) is None:

            def again(mended: str) -> Traced:
                return _execute(allowlist.parse(mended, file), mended, file, options, params)

            mending.follow(again, error, source, file)
        raise


def _execute(
    tree: ast.Module,
    source: str,
    file: str,
    options: dict[str, Any] | None,
    params: Mapping[str, Values] | None,
) -> Traced:
    name = dialects.of_imports(allowlist.imports(tree))
    dialect = None if name is None else dialects.load(name)
    allowlist.check(tree, source, file, allowlist.FLOW if dialect is None else dialect.RULES)
    registry: dict[str, type] = {}
    importer = facade.importer if dialect is None else dialect.importer(registry)
    namespace: dict[str, Any] = {"__name__": _MODULE, "__builtins__": allowlist.safe_builtins(importer)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is said once, with a code
            code = compile(tree, file, "exec")
        exec(code, namespace)
        if dialect is not None:
            foreign: Traced = dialect.read(namespace, registry, options, _MODULE)
            return foreign
        flows = [
            v
            for v in namespace.values()
            if isinstance(v, type) and issubclass(v, vFlow) and v.__module__ == _MODULE
        ]
        parents = {base for cls in flows for base in cls.__mro__[1:]}
        flows = [cls for cls in dict.fromkeys(flows) if cls not in parents]
        if len(flows) != 1:
            raise mistakes.NO_FLOW.error(count=len(flows))
        return trace(flows[0], source, file, params)
    except VortexError as error:
        if error.location is None or not error.location.text:
            error.location = _locate(error, source, file, error.location)
        raise
    except MemoryError:
        raise _out_of_memory() from None
    except Exception as error:  # noqa: BLE001  whatever foreign code raises is the author's mistake
        where = _locate(error, source, file, None)
        kind, why = type(error).__name__, visible(error)
        found = mistakes.USER_EXCEPTION.error(where, kind=kind, why=why, remedy=of_exception(kind, why))
        raise found.with_traceback(error.__traceback__) from None


def _locate(error: BaseException, source: str, file: str, known: Location | None) -> Location | None:
    """The author's innermost line on the way to `error`."""
    line = known.line if known is not None else 0
    frame = error.__traceback__
    while frame is not None and known is None:
        if frame.tb_frame.f_code.co_filename == file:
            line = frame.tb_lineno
        frame = frame.tb_next
    return allowlist.line_of(source, file, line) if line else known


_WARM_UP = """
from vortex_core import vFlow, ops
class W(vFlow):
    def create_cache(self, page): return {"c": page.state(dim=page.head_dim), "r": page.state(carried=True)}
    def forward_cache(self, page): return {"c": page.k.mean("token")}
    def forward_indexer(self, q, cache):
        s = (q * cache["c"]).sum("dim").max("head")
        cache["r"] = s
        return ops.topk(s.exp() + cache["r"])
"""


def main() -> None:
    """Child process: reads `{source, file, options, parent}` and a length of learned values on one line, then the
    values (`answer.pack`); answers as the module says."""
    request = json.loads(sys.stdin.buffer.readline())
    values = sys.stdin.buffer.read(request["bytes"])
    _warm_up(request["source"])
    held = _displacement(int(os.environ.get("PYTHONHASHSEED", "0")))  # until the program is traced
    sys.unraisablehook = _ignore  # what a finaliser raises is nobody's concern
    locked = kernel.lock_down(request["parent"])
    _say(asdict(locked))
    if kernel.FILTER not in locked.walls and not request["unfiltered"]:
        return
    blob = b""
    try:
        tree = allowlist.parse(request["source"], request["file"])
        dialect = dialects.of_imports(allowlist.imports(tree))
        _say({"dialect": dialect, "settled": allowlist.is_settled(tree)})
        params = answer.unpack(request["params"], values)
        traced = _traced(tree, request["source"], request["file"], request["options"], params)
        found, blob = answer.of_program(traced)
    except VortexError as error:
        found = answer.of_error(error)
    except (RecursionError, MemoryError):
        found = answer.of_error(_out_of_memory())
    del held
    _say(found)
    sys.stdout.buffer.write(blob)
    sys.stdout.buffer.flush()


def _warm_up(source: str) -> None:
    """Import whatever may be needed once no file can be opened: modules that Python loads when it first meets a name
    with an accent, a character by its name or an unusual encoding, and what our own code imports on demand."""
    import unicodedata  # noqa: F401

    run(_WARM_UP, "<warm-up>")
    if "vortex_torch" in source:
        run(dialects.load("vortex_torch").WARM_UP, "<warm-up>")
    json.dumps(answer.of_error(mistakes.TRACER_DIED.error(Location("x", 1), why="\ud800?")))


def _displacement(seed: int) -> list[bytes]:
    """Objects that move what is made after them to other addresses than under another seed.

    Where an object lies in its allocator's pool decides the low bits of its address, and is the same in every child
    that does the same; the kernel draws only the bits above, on machines that do. Under each seed one more object of
    every small size is held, so that a program which reads an address reads another one.
    """
    empty = sys.getsizeof(b"")
    return [bytes(size - empty) for size in range(48, 513, 16) for _ in range(seed)]


def _say(what: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(what).encode() + b"\n")
    sys.stdout.buffer.flush()


def _ignore(_: object) -> None:
    """An exception that nobody can catch."""


def _out_of_memory() -> VortexError:
    return mistakes.OUT_OF_MEMORY.error(megabytes=kernel.MAX_MEMORY >> 20)
