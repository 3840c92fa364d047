"""Ways around the tracer that were thought of: each ends in a code, in time, and reaches nothing."""

from __future__ import annotations

import pytest

from tests import sample_flows
from vortex_core.errors import VortexError
from vortex_core.sandbox.jail import run
from vortex_core.sandbox.load import trace_source

BODY = sample_flows.HEADER + "    def forward_indexer(self, q, cache):\n        "
END = "\n        return ops.topk(ops.position())"
CREATE = sample_flows.HEADER + "    def create_cache(self, page): return {'c': page.state(%s)}"


def loop(body: str, last: str, times: int) -> str:
    return (
        BODY
        + f"x = q\n        s = ops.position()\n        for i in range({times}): {body}\n        return {last}"
    )


REFUSED = {
    "a module behind ops": (BODY + "x = ops.difflib" + END, "VF024"),
    "the builder behind ops": (BODY + "x = ops.GraphBuilder" + END, "VF024"),
    "mending ops": (BODY + "ops.topk = ops.everything" + END, "VF002"),
    "a generator's frame": (BODY + "x = (1 for _ in [1]).gi_frame.f_back.f_globals" + END, "VF002"),
    "attributes by format": (BODY + "x = '{0.__class__}'.format(q)" + END, "VF002"),
    "an error's frame": (BODY + "x = Exception().with_traceback(None).tb_frame" + END, "VF002"),
    "full-width letters": (BODY + "x = ｅｖａｌ('1')" + END, "VF002"),
    "private attributes": (BODY + "x = q._builder" + END, "VF002"),
    "a dunder method": (sample_flows.HEADER + "    def __reduce__(self): return 1", "VF002"),
    "an import in a string": (BODY + "x = __import__('os')" + END, "VF002"),
    "a relative import": ("from . import load", "VF080"),
    "a star import": ("from math import *", "VF002"),
    "a shadowed builtin": (BODY + "float = 3; x = q + float(2)" + END, "VF005"),
    "recursion": (BODY + "self.forward_indexer(q, cache)", "VF005"),
    "a decorator that loses the class": (
        "from vortex_core import vFlow\ndef f(c): return 1\n@f\nclass W(vFlow): pass",
        "VF003",
    ),
    "two flows": (BODY + "pass\nclass V(vFlow): pass", "VF003"),
    "a base class that is a flow": (BODY + "pass\nclass V(W):\n    knobs = 1", "VF062"),
    "a metaclass": ("from vortex_core import vFlow\nclass W(vFlow, metaclass=lambda *a: 3): pass", "VF002"),
    "a property that raises": (sample_flows.HEADER + "    @property\n    def knobs(self): return 1 / 0", "VF005"),
    "a foreign selection": (sample_flows.HEADER + "    def forward_indexer(self, q, cache): return W", "VF040"),
    "a huge integer": (BODY + "x = q * 10 ** 400" + END, "VF021"),
    "a huge constant": (BODY + "x = q * 1e300" + END, "VF021"),
    "infinity by overflow": (BODY + "x = q * (1e200 * 1e200)" + END, "VF021"),
    "not a number": (BODY + "x = q * (1e200 * 1e200 - 1e200 * 1e200)" + END, "VF021"),
    "an extent divided by zero": (CREATE % "dim=page.head_dim // 0", "VF014"),
    "an extent with a vTensor": (BODY + "x = q.split('dim', a=q)" + END, "VF016"),
    "a state as long as the sequence": (CREATE % "dim='P'", "VF034"),
    "a state of a billion numbers": (CREATE % "dim=10**8", "VF026"),
    "a dimension as long as the sequence": (BODY + "x = ops.arange(x='P')" + END, "VF014"),
    "a keyword as dimension": (BODY + "x = q.rename(dim='lambda')" + END, "VF015"),
    "deep nesting": (BODY + "x = " + "(" * 150 + "q" + ")" * 150 + END, ""),
    "very deep nesting": (BODY + "x = " + "(" * 50_000 + "q" + ")" * 50_000 + END, "VF008"),
    "deep brackets": (BODY + "x = " + "[" * 9_000 + "]" * 9_000 + END, "VF001"),
    "a long chain": (BODY + "x = " + " + ".join(["q"] * 380) + END, ""),
    "a chain too long": (BODY + "x = " + " + ".join(["q"] * 9_000) + END, "VF0"),
    "a NUL": (BODY + "x = 1\0" + END, "VF001"),
    "a lone surrogate": (BODY + "x = '\ud800'" + END, "VF001"),
    "an empty file": ("", "VF003"),
    "sets and dicts of tensors": (BODY + "x = {q: 1}" + END, "VF005"),
    "repeated squaring": (loop("x = x * x", "ops.topk(s * x.sum('head', 'dim'))", 300), ""),
    "repeated doubling": (loop("x = x + x", "ops.topk(s * x.sum('head', 'dim'))", 300), ""),
    "a deep expression": (loop("s = s.sigmoid()", "ops.threshold(s, 0.5)", 390), ""),
    "prefix sums, all used": (
        BODY
        + """x = s = ops.position()
        for i in range(60):
            x = x + (s * i).exp()
            s = ops.maximum(s, x)
        return ops.topk(s)""",
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", list(REFUSED))
@pytest.mark.timeout(30)
def test_it_ends_in_a_code_or_a_program(what: str) -> None:
    source, code = REFUSED[what]
    if not code:
        assert run(source, "flow.py").ir_hash
        return
    with pytest.raises(VortexError) as caught:
        run(source, "flow.py")
    assert caught.value.code.startswith(code), caught.value
    str(caught.value).encode()


@pytest.mark.parametrize(
    "what", ["deep brackets", "a chain too long", "very deep nesting", "recursion", "a lone surrogate"]
)
def test_the_jail_survives_it_too(what: str) -> None:
    source, code = REFUSED[what]
    with pytest.raises(VortexError) as caught:
        trace_source(source, "flow.py")
    assert caught.value.code.startswith(code), caught.value


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("x = 10 ** 10 ** 8", "VF006"),
        ("x = 'a' * 10 ** 10", "VF007"),
        ("raise Exception('\\ud800' * 10)", "VF005"),
    ],
)
def test_exhaustion_ends(body: str, code: str) -> None:
    with pytest.raises(VortexError) as caught:
        trace_source(BODY + body + END, deadline=3.0)
    assert caught.value.code == code, caught.value
    str(caught.value).encode()


def test_a_docstring_may_hold_anything() -> None:
    source = BODY.replace("class W(vFlow):\n", 'class W(vFlow):\n    "\\0 \\x1b[31m \\u202e"\n') + END.strip()
    traced = run(source, "flow.py")
    traced.doc.encode()
    from vortex_core.flow.emit import emit

    assert run(emit(traced.program, traced.knobs, "w", traced.doc), "again.py").ir_hash == traced.ir_hash


def test_lines_are_counted_as_python_counts_them() -> None:
    source = BODY.replace("\n\nclass", "\nX = '\x0c \u2028'\nclass") + "return ops.topk(q.summ())"
    with pytest.raises(VortexError) as caught:
        run(source, "flow.py")
    assert caught.value.location is not None
    assert caught.value.location.text == "return ops.topk(q.summ())"


def test_helpers_and_init_are_allowed() -> None:
    source = (
        sample_flows.HEADER
        + """
    scale = 2.0
    def __init__(self):
        super().__init__()
        self.power = 2
    @staticmethod
    def square(x):
        return x ** 2
    def forward_indexer(self, q, cache):
        parts = [self.square(ops.position()) * self.scale for _ in range(self.power)]
        return ops.topk(sum(parts[1:], parts[0]) + q.norm("head", "dim"))
"""
    )
    assert run(source, "flow.py").program.result.op == "topk"
