"""The first wall around untrusted source: only constructs a flow can need parse at all."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vortex_core.errors import Location
from vortex_core.flow.source_text import source_lines
from vortex_core.ir import mistakes

MAX_CHARACTERS = 100_000
MODULES = {
    "vortex_core": {"vFlow", "vTensor", "ops", "register", "Knobs", "Page", "Selection"},
    "vortex_core.flow": {"vFlow", "vTensor", "ops", "register", "Knobs", "Page", "Selection", "Cache"},
    "math": None,
    "__future__": {"annotations"},
}


@dataclass(frozen=True)
class Rules:
    """What a source may import and name.

    Attributes:
        modules: `from module import name`: the names allowed, None for all.
        package: a package of which every submodule may be imported from, or empty.
        imports: plain `import module`.
        private: whether `self._name`, `super().__init__()` and the import of `_REGISTRY` are allowed.
    """

    modules: Mapping[str, set[str] | None]
    package: str = ""
    imports: frozenset[str] = frozenset({"math"})
    private: bool = False

    def names(self, module: str) -> set[str] | None:
        """Names importable from `module`, None for all."""
        if self.package and (module == self.package or module.startswith(self.package + ".")):
            return None
        return self.modules.get(module, set())


FLOW = Rules(MODULES)
_REFUSED: dict[type[ast.AST], str] = {
    ast.Try: "try",
    ast.TryStar: "try",
    ast.With: "with",
    ast.AsyncWith: "async with",
    ast.AsyncFor: "async for",
    ast.AsyncFunctionDef: "async def",
    ast.Await: "await",
    ast.Yield: "yield",
    ast.YieldFrom: "yield from",
    ast.Global: "global",
    ast.Nonlocal: "nonlocal",
    ast.Delete: "del",
    ast.NamedExpr: ":=",
    ast.Match: "match",
}
_NAMES = frozenset({
    "exec", "eval", "compile", "open", "input", "globals", "locals", "vars", "dir", "getattr", "setattr",
    "delattr", "type", "object", "memoryview", "breakpoint", "help", "exit", "quit", "id", "hash", "callable",
})  # fmt: skip
# Ways from a generator or an error to a frame, and from a frame to everything; str.format reads attributes.
_ATTRIBUTES = frozenset({
    "gi_frame", "gi_code", "gi_yieldfrom", "cr_frame", "cr_code", "ag_frame", "ag_code", "f_back", "f_builtins",
    "f_code", "f_globals", "f_locals", "tb_frame", "tb_next", "with_traceback", "mro", "format", "format_map",
})  # fmt: skip
_BUILTINS = (
    "abs", "all", "any", "bool", "dict", "divmod", "enumerate", "filter", "float", "frozenset", "int",
    "isinstance", "issubclass", "iter", "len", "list", "map", "max", "min", "next", "pow", "print", "property",
    "range", "repr", "reversed", "round", "set", "slice", "sorted", "staticmethod", "classmethod", "str", "sum",
    "super", "tuple", "zip", "ArithmeticError", "AssertionError", "Exception", "IndexError", "KeyError",
    "NotImplementedError", "RuntimeError", "TypeError", "ValueError", "ZeroDivisionError", "__build_class__",
)  # fmt: skip


def parse(source: str, file: str, rules: Rules = FLOW) -> ast.Module:
    """Parse and check a flow's source.

    Raises:
        VortexError: `VF001` if it does not parse, `VF002` for the first construct that is not allowed,
        `VF008`.
    """
    if len(source) > MAX_CHARACTERS:
        raise mistakes.TOO_LARGE.error(count=len(source), what="characters", limit=MAX_CHARACTERS)

    def at(line: int) -> Location:
        return line_of(source, file, line)

    try:
        tree = ast.parse(source, file)
    except SyntaxError as error:
        raise mistakes.SYNTAX.error(at(error.lineno or 1), why=error.msg) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise mistakes.SYNTAX.error(at(1), why=str(error) or type(error).__name__) from None
    for node in ast.walk(tree):
        if (what := _refused(node, rules)) is not None:
            raise mistakes.FORBIDDEN.error(at(getattr(node, "lineno", 1)), what=what)
    return tree


def line_of(source: str, file: str, line: int) -> Location:
    """A place in a source, with its text."""
    lines = source_lines(source)
    return Location(file, line, lines[line - 1].strip()[:200] if 1 <= line <= len(lines) else "")


def _refused(node: ast.AST, rules: Rules) -> str | None:
    if type(node) in _REFUSED:
        return f"'{_REFUSED[type(node)]}'"
    match node:
        case ast.Import(names=names):
            for alias in names:
                if alias.name not in rules.imports:
                    return f"import of {alias.name!r}"
        case ast.ImportFrom(module=module, names=names, level=level):
            allowed = rules.names(module or "") if level == 0 else set()
            for alias in names:
                if allowed is not None and alias.name not in allowed:
                    return f"import of {module}.{alias.name}"
                hidden = alias.name.startswith("_") and not (rules.private and alias.name == "_REGISTRY")
                if alias.name == "*" or hidden:
                    return f"import of {module}.{alias.name}"
        case ast.Attribute(attr="__init__", value=ast.Call(func=ast.Name(id="super"), args=[], keywords=[])):
            return None
        case ast.Attribute(attr=attr, value=ast.Name(id="self")) if rules.private and not attr.startswith(
            "__"
        ):
            return None
        case ast.Attribute(attr=attr) if attr.startswith("_") or attr in _ATTRIBUTES:
            return f"attribute {attr!r}"
        case ast.Name(id=name) if name in _NAMES or (name.startswith("__") and name != "__name__"):
            return f"name {name!r}"
        case ast.FunctionDef(name=name) if name.startswith("__") and name != "__init__":
            return f"method {name!r}"
    return None


def safe_builtins(importer: Any) -> dict[str, Any]:
    """The builtins a flow sees; `importer` stands in for `__import__`."""
    import builtins

    found = {name: getattr(builtins, name) for name in _BUILTINS}
    found["print"] = lambda *args, **kwargs: None
    found["__import__"] = importer
    return found
