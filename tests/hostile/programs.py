"""Hostile programs: ways out of the language that were thought of, as families, in both dialects.

Every one tries to reach what no flow may: a frame, a module, a class's ancestors, a dunder method, an open door in
a rule. Each must be refused with a code before a line of it runs, or run without reaching anything.
"""

from __future__ import annotations

from collections.abc import Iterator

VFLOW = "from vortex_core import Knobs, ops, register, vFlow\n"
TORCH = "from vortex_torch.flow import vFlow, register\nfrom vortex_torch.indexer import topK, Mean, GeMM\n"
CLASS = "\n\nclass W(vFlow):\n    def forward_indexer(self, q, cache):\n        "
END = "\n        return ops.topk(ops.position())\n"

# Attributes of Python's own objects that lead from harmless ones to everything.
FRAMES = (
    "gi_frame", "gi_code", "gi_yieldfrom", "gi_running", "gi_suspended", "cr_frame", "cr_code", "cr_origin", "cr_await",
    "ag_frame", "ag_code", "ag_await", "f_back", "f_builtins", "f_code", "f_globals", "f_locals", "f_trace", "f_lineno",
    "f_lasti", "tb_frame", "tb_next", "tb_lasti", "co_code", "co_consts", "co_names", "co_freevars", "co_positions",
    "with_traceback", "throw", "mro", "format", "format_map",
)  # fmt: skip
DUNDERS = (
    "__class__", "__bases__", "__base__", "__subclasses__", "__mro__", "__dict__", "__globals__", "__builtins__",
    "__code__", "__closure__", "__self__", "__func__", "__wrapped__", "__init__", "__getattribute__", "__reduce__",
    "__reduce_ex__", "__loader__", "__spec__", "__module__", "__init_subclass__", "__traceback__", "__context__",
    "__annotations__", "__defaults__", "__kwdefaults__", "__get__", "__set__", "__call__", "__new__",
)  # fmt: skip
METHODS = (
    "__del__", "__getattr__", "__getattribute__", "__setattr__", "__class_getitem__", "__init_subclass__",
    "__set_name__", "__get__", "__call__", "__eq__", "__hash__", "__repr__", "__str__", "__format__", "__iter__",
    "__next__", "__enter__", "__exit__", "__new__", "__prepare__", "__mro_entries__", "__instancecheck__",
    "__subclasscheck__", "__reduce__", "__index__", "__radd__", "__getitem__",
)  # fmt: skip
NAMES = (
    "exec", "eval", "compile", "open", "input", "globals", "locals", "vars", "dir", "getattr", "setattr", "delattr",
    "type", "object", "memoryview", "breakpoint", "help", "exit", "quit", "id", "hash", "callable", "__import__",
    "__builtins__", "__loader__", "__spec__", "__file__", "__doc__", "__build_class__", "__debug__",
)  # fmt: skip
MODULES = (
    "os", "sys", "socket", "subprocess", "ctypes", "builtins", "importlib", "io", "pathlib", "shutil", "signal",
    "threading", "multiprocessing", "types", "inspect", "gc", "pickle", "marshal", "code", "codecs", "operator",
    "functools", "vortex_core.sandbox", "vortex_core.errors", "numpy", "torch.utils", "vortex_core.flow.ops",
)  # fmt: skip


def refused() -> Iterator[tuple[str, str]]:
    """Programs that must be refused by the allow-list, by what they try: `VF002`, before anything runs."""
    for name in FRAMES:
        yield f"vFlow: {name}", VFLOW + CLASS + f"x = (1 for _ in [1]).{name}" + END
        # The one rule that let everything called self pass.
        yield f"self.{name}", TORCH + f"self = (1 for _ in [1])\nx = self.{name}\n"
        yield (
            f"own self.{name}",
            TORCH + f"class W(vFlow):\n    def m(self):\n        return self.{name}\nW.m((1 for _ in [1]))\n",
        )
    for name in DUNDERS:
        yield f"vFlow: {name}", VFLOW + CLASS + f"x = q.{name}" + END
        yield f"own self.{name}", TORCH + f"class W(vFlow):\n    def m(self):\n        return self.{name}\n"
    for name in METHODS:
        yield f"def {name}", VFLOW + f"\nclass W(vFlow):\n    def {name}(self, *a): return 1\n"
        yield f"{name} = ", VFLOW + f"\nclass W(vFlow):\n    {name} = lambda self, *a: 1\n"
    for name in METHODS[:12]:
        yield f"class {name}", VFLOW + f"\nclass W(vFlow):\n    class {name}: pass\n"
        yield (
            f"metaclass {name}",
            VFLOW + f"\nclass W:\n    class {name}(metaclass=lambda n, b, d: 1): pass\n",
        )
        yield f"import as {name}", VFLOW + f"\nclass W:\n    import math as {name}\n"
        yield f"from math import as {name}", VFLOW + f"\nclass W:\n    from math import pi as {name}\n"
        yield f"for {name}", VFLOW + f"\nclass W:\n    for {name} in [1]: pass\n"
        yield f"[... for {name}]", VFLOW + f"\nx = [1 for {name} in [1]]\n"
        yield f"lambda {name}", VFLOW + f"\nx = lambda {name}: 1\n"
        yield f"def f(*, {name})", TORCH + f"\ndef f(*, {name}=1): pass\n"
        yield f"f({name}=)", TORCH + f"\nx = dict({name}=1)\n"
    for name in NAMES:
        yield f"name {name}", VFLOW + CLASS + f"x = {name}" + END
        yield f"{name} in an annotation", TORCH + f"x: {name} = 1\n"
    for name in MODULES:
        yield f"import {name}", VFLOW + f"import {name}\n"
        yield f"from {name}", TORCH + f"from {name} import path\n"
    yield from _single()


def _single() -> Iterator[tuple[str, str]]:
    yield from {
        "a docstring that names the dialect": '"""\nfrom vortex_torch import x\n"""\n'
        + VFLOW
        + "x = vFlow._known\n",
        "a comment that names the dialect": "# from vortex_torch import x\n"
        + VFLOW
        + "self = vFlow\nx = self._known\n",
        "self as a global": TORCH + "self = 1\n",
        "self as a loop": TORCH + "for self in []: pass\n",
        "self as an import": TORCH + "import math as self\n",
        "self as a class": TORCH + "class self: pass\n",
        "self as a function": TORCH + "def self(): pass\n",
        "self in a comprehension": TORCH + "x = [self._y for self in []]\n",
        "self unpacked": TORCH + "class W(vFlow):\n    def m(self):\n        self, x = 1, 2\n",
        "self again": TORCH + "class W(vFlow):\n    def m(self):\n        self += 1\n",
        "self of a lambda": TORCH + "f = lambda self: self._y\n",
        "self of a plain function": TORCH + "def f(self): return self._y\n",
        "self as a later argument": TORCH + "class W(vFlow):\n    def m(a, self): return self._y\n",
        "self as *self": TORCH + "class W(vFlow):\n    def m(*self): return self._y\n",
        "self as **self": TORCH + "class W(vFlow):\n    def m(a, **self): return self._y\n",
        "self as a keyword": TORCH + "class W(vFlow):\n    def m(*, self): return self._y\n",
        "self of an inner function": TORCH
        + "class W(vFlow):\n    def m(self):\n        def f(x, self=1): return self._y\n",
        "super as a name": TORCH + "super = lambda: 1\n",
        "super as an argument": TORCH + "def f(super): return super().__init__\n",
        "super's method without a call": TORCH
        + "class W(vFlow):\n    def m(self): return super().__init__\n",
        "super's method assigned": TORCH + "class W(vFlow):\n    def m(self): super().__init__ = 1\n",
        "super of another": TORCH + "class W(vFlow):\n    def m(self): super(1, 2).__init__()\n",
        "another's __init__": TORCH + "class W(vFlow):\n    def m(self): f().__init__()\n",
        "a metaclass by **": VFLOW + "class W(**{'metaclass': 1}): pass\n",
        "a metaclass keyword in a call": VFLOW + "x = f(metaclass=1)\n",
        "a computed base": VFLOW + "class W(f()): pass\n",
        "a base by index": VFLOW + "class W([vFlow][0]): pass\n",
        "await": VFLOW + "async def f(): await x\n",
        "yield": VFLOW + "def f(): yield 1\n",
        "yield from": VFLOW + "def f(): yield from x\n",
        "an async comprehension": VFLOW + "x = (y async for y in z)\n",
        "a walrus": VFLOW + "x = (y := 1)\n",
        "match": VFLOW + "match 1:\n    case __class__: pass\n",
        "try": VFLOW + "try:\n    pass\nexcept Exception as __x__:\n    pass\n",
        "try star": VFLOW + "try:\n    pass\nexcept* ValueError:\n    pass\n",
        "with": VFLOW + "with x as __y__: pass\n",
        "del": VFLOW + "del vFlow\n",
        "global": VFLOW + "def f():\n    global x\n",
        "nonlocal": VFLOW + "def f():\n    x = 1\n    def g():\n        nonlocal x\n",
        "a module's name changed": VFLOW + "__name__ = 'os'\n",
        "a hidden import": TORCH + "from vortex_torch.flow import _known\n",
        "a star import": TORCH + "from vortex_torch.flow import *\n",
        "a relative import": VFLOW + "from .. import sandbox\n",
        "math's loader": VFLOW + "from math import __loader__\n",
        "a name of math that is none": VFLOW + "from math import sys\n",
        "full-width eval": VFLOW + "x = ｅｖａｌ('1')\n",
        "mathematical dunder": VFLOW + "x = vFlow.__𝒸lass__\n",
        "a decorator": VFLOW + "@vFlow.__class__\ndef f(): pass\n",
        "a default": VFLOW + "def f(x=vFlow.__class__): pass\n",
        "an f-string": VFLOW + "x = f'{vFlow.__class__}'\n",
        "an f-string's format": VFLOW + "x = f'{1:{vFlow.__class__}}'\n",
        "a slice": VFLOW + "x = [1][vFlow.__class__:]\n",
        "a starred call": VFLOW + "f(*vFlow.__class__)\n",
        "attributes by str.format": VFLOW + "x = '{0.__class__}'.format(vFlow)\n",
        "str.format_map unbound": VFLOW + "x = str.format_map\n",
    }.items()


def _knobs(value: str) -> str:
    body = f"    knobs = {value}\n\n    def forward_indexer(self, q, cache):\n        pass"
    return VFLOW + "\n\nclass W(vFlow):\n" + body + END


LARGE = (
    VFLOW
    + """

class W(vFlow):
    def create_cache(self, page):
        return {"a": page.state(x=2 ** 24)}

    def forward_cache(self, page):
        return {"a": page.k.mean("token", "dim") * ops.arange(x=2 ** 24)}

    def forward_indexer(self, q, cache):
        return ops.topk(cache["a"].sum("x"))
"""
)

# Programs that may run: each ends in the code shown, or (empty) in a flow, within its bounds and without harm.
RUN: dict[str, tuple[str, str]] = {
    "a huge message": (VFLOW + CLASS + "q.sum('x' * 30_000_000)" + END, "VF010"),
    "a huge name of a knob": (_knobs("{'x' * 10_000_000: 1}"), "VF06"),
    "a surrogate as a knob": (_knobs("{'\\ud800': 1}"), "VF06"),
    "a huge docstring": (VFLOW + "\nclass W(vFlow):\n    __doc__ = 'x' * 30_000_000\n", "VF002"),
    "millions of dense layers": (_knobs("Knobs(dense_layers=range(4 * 10 ** 6))"), "VF061"),
    "a comment in a budget": (_knobs("Knobs(budget='64 #\"); import os; (\"')"), ""),
    "markup in a budget": (_knobs("Knobs(budget='64 #[/bold][blink]')"), ""),
    "a page size that is no whole number": (_knobs("Knobs(page_size=16.0)"), "VF061"),
    "a raised escape sequence": (VFLOW + CLASS + "raise ValueError('\\x1b[2J\\u202e\\nVF000: forged')" + END, "VF005"),
    "a raised megabyte": (VFLOW + CLASS + "raise ValueError('x' * 5_000_000)" + END, "VF005"),
    "a long loop": (VFLOW + CLASS + "while True: pass" + END, "VF006"),
    "all memory": (VFLOW + CLASS + "x = 'a' * 10 ** 10" + END, "VF007"),
    "all memory by doubling": (VFLOW + CLASS + "x = [0]\n        while True: x = x + x" + END, "VF007"),
    "a huge power": (VFLOW + CLASS + "x = 10 ** 10 ** 8" + END, "VF006"),
    "endless recursion": (VFLOW + CLASS + "return self.forward_indexer(q, cache)\n", "VF005"),
    "deep brackets": (VFLOW + "x = " + "[" * 9_000 + "]" * 9_000, "VF001"),
    "deep minus signs": (VFLOW + "x = " + "-" * 50_000 + "1", "VF001"),
    "deep attributes": (VFLOW + "x = a" + ".b" * 45_000, "VF0"),
    "a long sum": (VFLOW + "x = " + "+".join(["1"] * 45_000), "VF0"),
    "many functions": (VFLOW + "def f(): pass\n" * 6_000, "VF003"),
    "a changed math": (VFLOW + "import math\nmath.sqrt = math.log2 = lambda x: 1e9\n" + CLASS + "pass" + END, "VF002"),
    "a changed Knobs": (VFLOW + "Knobs.page_size = 10 ** 9\n" + CLASS + "pass" + END, ""),
    "a state of 2^24 numbers": (LARGE, "VF026"),
}  # fmt: skip
