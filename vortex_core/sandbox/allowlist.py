"""The first wall around untrusted source: only constructs a flow can need parse at all.

There is one list for every language read here. A dialect may add modules; it takes nothing away.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vortex_core.errors import Location
from vortex_core.flow.source_text import source_lines
from vortex_core.ir import mistakes

MAX_CHARACTERS = 100_000
_LANGUAGE = frozenset({"vFlow", "vTensor", "ops", "register", "Knobs", "Page", "Selection"})
_MATH = frozenset(name for name in dir(math) if not name.startswith("_"))
MODULES: Mapping[str, frozenset[str]] = {
    "vortex_core": _LANGUAGE,
    "vortex_core.flow": _LANGUAGE | {"Cache"},
    "math": _MATH,
    "__future__": frozenset({"annotations"}),
}


@dataclass(frozen=True)
class Rules:
    """What a source may import and name.

    Attributes:
        modules: `from module import name`: the names allowed, None for all that do not begin with an underscore.
        package: a package of which every submodule may be imported, also relatively, or empty.
        imports: plain `import module`.
        private: whether a method may use `self._name`.
        hidden: names that begin with an underscore and may be imported all the same.
    """

    modules: Mapping[str, frozenset[str] | None]
    package: str = ""
    imports: frozenset[str] = frozenset({"math"})
    private: bool = False
    hidden: frozenset[str] = field(default=frozenset())

    def names(self, module: str, level: int = 0) -> frozenset[str] | None:
        """Names importable from `module`, None for all. `level`: dots before its name."""
        if self.package and (level or self.holds(module)):
            return None
        return frozenset() if level else self.modules.get(module, frozenset())

    def holds(self, module: str) -> bool:
        """Whether `module` is of the package."""
        return bool(self.package) and f"{module}.".startswith(f"{self.package}.")


FLOW = Rules(MODULES, private=True)
# Every kind of node a flow may hold; what a later Python adds is refused until it is listed.
_NODES: frozenset[type[ast.AST]] = frozenset({
    ast.Module, ast.Import, ast.ImportFrom, ast.alias, ast.FunctionDef, ast.ClassDef, ast.Return, ast.Assign,
    ast.AugAssign, ast.AnnAssign, ast.For, ast.While, ast.If, ast.Raise, ast.Assert, ast.Expr, ast.Pass, ast.Break,
    ast.Continue, ast.BoolOp, ast.And, ast.Or, ast.BinOp, ast.UnaryOp, ast.Lambda, ast.IfExp, ast.Dict, ast.Set,
    ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.Compare, ast.Call, ast.keyword,
    ast.JoinedStr, ast.FormattedValue, ast.Constant, ast.Attribute, ast.Subscript, ast.Slice, ast.Starred, ast.Name,
    ast.List, ast.Tuple, ast.arguments, ast.arg, ast.Load, ast.Store,
    *ast.operator.__subclasses__(), *ast.unaryop.__subclasses__(), *ast.cmpop.__subclasses__(),
})  # fmt: skip
_SPELLED = {
    "Try": "try", "TryStar": "try", "With": "with", "AsyncWith": "async with", "AsyncFor": "async for",
    "AsyncFunctionDef": "async def", "Await": "await", "Yield": "yield", "YieldFrom": "yield from",
    "Global": "global", "Nonlocal": "nonlocal", "Delete": "del", "NamedExpr": ":=", "Match": "match",
    "TypeAlias": "type", "TemplateStr": "t-string",
}  # fmt: skip
_NAMES = frozenset({
    "exec", "eval", "compile", "open", "input", "globals", "locals", "vars", "dir", "getattr", "setattr",
    "delattr", "type", "object", "memoryview", "breakpoint", "help", "exit", "quit", "id", "hash", "callable",
})  # fmt: skip
# From a generator, coroutine or error to a frame, and from a frame or its code to everything else.
_INNARDS = re.compile(r"(gi|cr|ag|f|tb|co)_")
# A class's ancestors; ways to run code inside a generator; formatting that reads attributes by name.
_ATTRIBUTES = frozenset({"mro", "with_traceback", "add_note", "throw", "format", "format_map"})
# What `self._name` and `super().__init__()` stand on: nothing but Python itself gives these a meaning.
_RESERVED = frozenset({"self", "super"})
_BUILTINS = (
    "abs", "all", "any", "bool", "dict", "divmod", "enumerate", "filter", "float", "frozenset", "int",
    "isinstance", "issubclass", "iter", "len", "list", "map", "max", "min", "next", "pow", "property",
    "range", "repr", "reversed", "round", "set", "slice", "sorted", "staticmethod", "classmethod", "str", "sum",
    "super", "tuple", "zip", "ArithmeticError", "AssertionError", "Exception", "IndexError", "KeyError",
    "NotImplementedError", "RuntimeError", "TypeError", "ValueError", "ZeroDivisionError", "__build_class__",
)  # fmt: skip


def parse(source: str, file: str) -> ast.Module:
    """Parse a source; `check` says whether it may run.

    Raises:
        VortexError: `VF001` if it does not parse, `VF008` if it is too long.
    """
    if len(source) > MAX_CHARACTERS:
        raise mistakes.TOO_LARGE.error(count=len(source), what="characters", limit=MAX_CHARACTERS)
    try:
        return ast.parse(source, file)
    except SyntaxError as error:
        raise mistakes.SYNTAX.error(line_of(source, file, error.lineno or 1), why=error.msg) from None
    except (ValueError, RecursionError, MemoryError) as error:
        why = str(error) or type(error).__name__
        raise mistakes.SYNTAX.error(line_of(source, file, 1), why=why) from None


def check(tree: ast.Module, source: str, file: str, rules: Rules = FLOW) -> None:
    """Refuse a source that holds anything a flow cannot need.

    Raises:
        VortexError: `VF002` for the first construct, in the order written, that is not allowed.
    """
    for node, what in _refusals(tree, rules):
        at = line_of(source, file, getattr(node, "lineno", 1))
        raise mistakes.FORBIDDEN.error(at, what=what, modules=rules.modules)


def imports(tree: ast.Module) -> frozenset[str]:
    """Names of the top-level packages a source imports; `.` for relative imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else (node.module or "").partition(".")[0])
    return frozenset(found)


def is_settled(tree: ast.Module) -> bool:
    """Whether nothing in a source can differ between two processes: it builds no sets, whose order follows hashes,
    and writes no values into text, where an object shows its address."""
    for node in ast.walk(tree):
        match node:
            case ast.Set() | ast.SetComp() | ast.FormattedValue():
                return False
            case ast.Name(id="set" | "frozenset" | "str" | "repr"):
                return False
            case ast.Attribute(attr="keys" | "items"):  # `a.keys() - b` is a set
                return False
            case ast.AugAssign(op=ast.Mod()):  # it may format text
                return False
            case ast.BinOp(op=ast.Mod(), left=left) if not _is_numeric(left):
                return False
    return True


def _is_numeric(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def line_of(source: str, file: str, line: int) -> Location:
    """A place in a source, with its text."""
    lines = source_lines(source)
    return Location(file, line, lines[line - 1].strip()[:200] if 1 <= line <= len(lines) else "")


def _refusals(tree: ast.Module, rules: Rules) -> Iterator[tuple[ast.AST, str]]:
    """Walk without recursion, in the order written; each node knows whether `self` is the instance there."""
    inits: set[int] = set()  # `super().__init__` where it is called
    stack: list[tuple[ast.AST, bool, bool]] = [(tree, False, False)]
    while stack:
        node, in_class, own = stack.pop()
        if isinstance(node, ast.Call) and _is_super_init(node.func):
            inits.add(id(node.func))
        if (what := _refused(node, rules, own, id(node) in inits)) is not None:
            yield node, what
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.ClassDef):
            body = set(map(id, node.body))
            inside = [(c, id(c) in body, False) for c in children]
        elif isinstance(node, ast.FunctionDef):
            body = set(map(id, node.body))
            inside = [
                (c, False, _has_self(node.args, in_class, own) if id(c) in body else own) for c in children
            ]
        elif isinstance(node, ast.Lambda):
            inside = [(c, False, _has_self(node.args, False, own)) for c in children]
        else:  # a method under an `if` in a class body is one too
            inside = [(c, in_class and isinstance(node, ast.If), own) for c in children]
        stack.extend(reversed(inside))


def _is_super_init(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(attr="__init__", value=ast.Call(func=ast.Name(id="super"), args=[], keywords=[])):
            return True
    return False


def _has_self(args: ast.arguments, in_class: bool, outer: bool) -> bool:
    """Whether `self` is the instance in a function's body: it is a method's first argument, or an outer one's."""
    listed = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
    places = [i for i, a in enumerate(listed) if a is not None and a.arg == "self"]
    if not places:
        return outer
    return in_class and places == [0] and bool(args.posonlyargs or args.args)


def _refused(node: ast.AST, rules: Rules, own: bool, called_init: bool) -> str | None:
    if type(node) not in _NODES:
        kind = type(node).__name__
        return f"'{_SPELLED.get(kind, kind)}'"
    match node:
        case ast.Import(names=names):
            for alias in names:
                if alias.name not in rules.imports and not rules.holds(alias.name):
                    return f"import of {alias.name!r}"
        case ast.ImportFrom(module=module, names=names, level=level):
            allowed = rules.names(module or "", level)
            for alias in names:
                hidden = alias.name.startswith("_") and alias.name not in rules.hidden
                if alias.name == "*" or hidden or (allowed is not None and alias.name not in allowed):
                    return f"import of {module}.{alias.name}"
        case ast.alias(asname=str() as name):
            return _refused_name(name) or _refused_binding(name)
        case ast.Attribute(attr="__init__") if called_init:
            return None
        case ast.Attribute(attr=attr, value=value):
            mine = rules.private and own and isinstance(value, ast.Name) and value.id == "self"
            if attr.startswith("__") or (attr.startswith("_") and not mine) or _leads_out(attr):
                return f"attribute {attr!r}"
        case ast.Name(id="__name__", ctx=ast.Load()):
            return None
        case ast.Name(id=name, ctx=context):
            bound = None if isinstance(context, ast.Load) else _refused_binding(name)
            return _refused_name(name) or bound
        case ast.arg(arg="self"):
            return None  # where it is the instance is decided above
        case ast.arg(arg=name):
            return _refused_name(name) or _refused_binding(name)
        case ast.keyword(arg=str() as name):
            return f"keyword {name!r}" if name.startswith("__") or name == "metaclass" else None
        case ast.FunctionDef(name=name):
            if getattr(node, "type_params", None):
                return "a type parameter"
            if name.startswith("__") and name != "__init__":
                return f"method {name!r}"
            return _refused_binding(name)
        case ast.ClassDef(name=name, bases=bases, keywords=keywords):
            if getattr(node, "type_params", None):
                return "a type parameter"
            if keywords:
                return f"a class with {keywords[0].arg or '**'}="
            if not all(isinstance(base, ast.Name | ast.Attribute) for base in bases):
                return "a computed base class"
            return (f"class {name!r}" if name.startswith("__") else None) or _refused_binding(name)
        case ast.comprehension(is_async=1):
            return "'async for'"
    return None


def _refused_name(name: str) -> str | None:
    return f"name {name!r}" if name in _NAMES or name.startswith("__") else None


def _refused_binding(name: str) -> str | None:
    return f"another meaning of {name!r}" if name in _RESERVED else None


def _leads_out(attr: str) -> bool:
    return attr in _ATTRIBUTES or _INNARDS.match(attr) is not None


def safe_builtins(importer: Any) -> dict[str, Any]:
    """The builtins a flow sees; `importer` stands in for `__import__`."""
    import builtins

    found = {name: getattr(builtins, name) for name in _BUILTINS}
    found["print"] = _say_nothing
    found["__import__"] = importer
    return found


def _say_nothing(*args: object, **kwargs: object) -> None:
    """What `print` does here."""
