"""Every mistake of the catalogue: one wrong program each, its code, its line, its remedy, its JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from vortex_core.errors import VortexError
from vortex_core.ir import mistakes
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.sandbox import load
from vortex_core.sandbox.jail import run
from vortex_core.sandbox.load import trace_file, trace_source

HEAD = "from vortex_core import Knobs, ops, register, vFlow\nimport math\nclass W(vFlow):\n"
INDEX = HEAD + "    def forward_indexer(self, q, cache):\n        "
STATES = """    def create_cache(self, page):
        return {%s}
    def forward_cache(self, page):
        return {%s}
    def forward_indexer(self, q, cache):
        %s
"""
C = '"c": page.state(dim=page.head_dim)'
MEAN = '"c": page.k.mean("token")'
R = '"r": page.state(carried=True)'
DOT = '(q * cache["c"]).sum("dim").max("head")'


def states(declared: str = C, written: str = MEAN, body: str = f"return ops.topk({DOT})") -> str:
    return HEAD + STATES % (declared, written, body)


def knobs(value: str) -> str:
    static = INDEX + "return ops.topk(ops.position())"
    return static.replace("    def", f"    knobs = {value}\n    def")


# code -> (wrong source, the line that is at fault; 0 where no line is)
WRONG: dict[str, tuple[str, int]] = {
    "VF001": ("x = (", 1),
    "VF002": ("import os", 1),
    "VF003": ("x = 1", 0),
    "VF004": (HEAD + "    pass", 0),
    "VF005": (INDEX + "return [][0]", 5),
    "VF008": (INDEX + "x = q\n        for i in range(500): x = x + i\n        return ops.topk(x)", 6),
    "VF010": (INDEX + 'return ops.topk(q.sum("rows"))', 5),
    "VF011": (INDEX + 'return ops.topk(q + ops.arange(dim=7) + ops.position())', 5),
    "VF012": (INDEX + "return ops.topk(ops.where(ops.position(), 1, 0))", 5),
    "VF014": (states('"c": page.state(dim="D-1")'), 5),
    "VF015": (states('"C": page.state(dim=page.head_dim)', '"C": page.k.mean("token")'), 5),
    "VF016": (INDEX + "return ops.topp(ops.position(), 1.5)", 5),
    "VF017": (states(written='"c": page.k.rename(token="dim").mean("dim")'), 7),
    "VF018": (states(written='"c": page.k.mean("token") + ops.position()'), 7),
    "VF019": (INDEX + 'return ops.topk(q + "1")', 5),
    "VF020": (INDEX + "return ops.topk(ops.position()) if q > 0 else ops.everything()", 5),
    "VF021": (INDEX + "return ops.topk(ops.position() * math.inf)", 5),
    "VF022": (
        states(body="return ops.topk((q * self.k).max('dim', 'head'))").replace(
            "        return {" + MEAN, "        self.k = page.k\n        return {" + MEAN
        ),
        10,
    ),
    "VF023": (INDEX + 'return ops.topk(q.summ("dim"))', 5),
    "VF024": (INDEX + "return ops.topkk(q)", 5),
    "VF025": (HEAD.replace("class", '@register("../x")\nclass') + "    pass", 3),
    "VF026": (INDEX + "return ops.topk((ops.position() * ops.arange(x=10**8)).max('x'))", 5),
    "VF030": (states(body='return ops.topk(cache["d"])'), 9),
    "VF031": (states(written=""), 5),
    "VF032": (states(written='"c": page.k.mean("token", "dim")'), 7),
    "VF033": (states(body=f'cache["c"] = 1.0\n        return ops.topk({DOT})'), 9),
    "VF034": (states('"c": page.state(dim=page.head_dim, dtype="int5")'), 5),
    "VF036": (
        states(R, "", 'cache["r"] = 1.0\n        cache["r"] = 2.0\n        return ops.topk(cache["r"])'),
        10,
    ),
    "VF040": (INDEX + "return q", 4),
    "VF041": (INDEX + 'return ops.topk(q.sum("dim"))', 5),
    "VF042": (INDEX + "return ops.topk(0 * ops.position())", 5),
    "VF043": (
        states(body='s = (q * cache["c"]).sum("dim")\n        return ops.topk(s) | ops.topk(s.max("head"))'),
        10,
    ),
    "VF047": (
        states(body=f'm = (q * cache["c"]).sum("dim")\n        return ops.topk({DOT}).residual(m, -cache["c"])'),
        10,
    ),
    "VF060": (knobs('Knobs(budget="tokens / 2")'), 4),
    "VF061": (knobs('Knobs(page_size=17)'), 4),
    "VF062": (knobs('3'), 0),
    "VF063": (knobs('Knobs(budget=16)'), 6),
    "VF067": (INDEX + 'return ops.topk(ops.dense_mass().sum("head"))', 5),
    "VF065": (INDEX + 'return ops.topk(ops.position() * ops.param("w"))', 5),
}  # fmt: skip
WARNED: dict[str, tuple[str, int]] = {
    "VF035": (states(C + ', "d": page.state()', MEAN + ', "d": page.k.mean("token", "dim")'), 5),
    "VF044": (INDEX + "return ops.topk(ops.position())", 5),
    "VF045": (states(body=f"return ops.topk(2 * {DOT}.exp() + 1)"), 9),
}
NOTED: dict[str, tuple[str, int]] = {
    "VF046": (states(R, "", 'cache["r"] = cache["r"] + 1\n        return ops.topk(cache["r"] + ops.position())'), 9),
}  # fmt: skip
# Tested where what they need is at hand.
ELSEWHERE = {
    "VF000": "below", "VF006": "below", "VF007": "tests/null/flow/test_jail.py", "VF009": "below",
    "VF013": "tests/cpu/compiler/test_shapes.py", "VF027": "tests/cpu/flow/test_eager.py",
    "VF064": "tests/cpu/compiler/test_shapes.py", "VF066": "tests/cpu/compiler/test_rotary.py",
    "VF068": "tests/cpu/compiler/test_residual.py",
    "VF069": "tests/cpu/compiler/test_residual.py", "VF071": "tests/cpu/compiler/test_refinement.py", "VF090": "below",
    "VF095": "below", "VF096": "tests/hostile/test_machine.py", "VF097": "tests/hostile/test_machine.py",
    **{f"VF08{i}": "tests/null/dialects" for i in range(10)},
}  # fmt: skip


def test_every_code_has_an_example() -> None:
    assert {*WRONG, *WARNED, *NOTED, *ELSEWHERE} == set(mistakes.CATALOGUE)
    for code, where in ELSEWHERE.items():
        if where != "below":
            path = Path(where)
            files = [path] if path.suffix else list(path.rglob("*.py"))
            assert any(code in f.read_text() for f in files), f"{code} is not in {where}"


@pytest.mark.parametrize("code", list(WRONG))
def test_a_wrong_program_is_told_its_mistake(code: str) -> None:
    source, line = WRONG[code]
    with pytest.raises(VortexError) as caught:
        run(source, "flow.py")
    error = caught.value
    assert error.code == code, error
    teaches(error, source, line)


def teaches(error: VortexError, source: str, line: int) -> None:
    """The line, a rule, one remedy, no unfilled template; and the same facts as JSON."""
    assert "(rule: " in error.message
    assert error.remedy
    assert not {"{", "}"} & set(error.remedy.replace("{...}", "").replace('{"w": [[...], ...]}', ""))
    if line:
        assert error.location is not None, "no line"
        assert error.location.line == line
        assert error.location.text == source.splitlines()[line - 1].strip()
    found = json.loads(json.dumps(error.to_json()))
    assert VortexError.from_json(found).to_json() == error.to_json()
    assert str(error).startswith(error.code)


@pytest.mark.parametrize("code", [*WARNED, *NOTED])
def test_a_doubtful_program_is_warned_but_traced(code: str) -> None:
    source, line = {**WARNED, **NOTED}[code]
    traced = run(source, "flow.py")
    found = traced.warnings if code in WARNED else traced.notes
    (mine,) = [w for w in found if w["code"] == code]
    teaches(VortexError.from_json(mine), source, line)


def test_levels_are_told_apart() -> None:
    levels = {m.code: m.level for m in mistakes.CATALOGUE.values()}
    assert {c for c, level in levels.items() if level == "warning"} == set(WARNED)
    assert {c for c, level in levels.items() if level == "info"} == set(NOTED)


def test_jailed_errors_arrive_whole() -> None:
    source, line = WRONG["VF011"]
    with pytest.raises(VortexError) as caught:
        trace_source(source, "flow.py")
    assert caught.value.code == "VF011"
    teaches(caught.value, source, line)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "none.py", tmp_path / "flow.py", tmp_path):
        with pytest.raises(VortexError, match="VF000"):
            trace_file(path)


def test_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(VortexError, match="VF006"):
        trace_source(INDEX + "while True: pass", deadline=0.5)


READY = """import json
print(json.dumps({"walls": ["system calls"], "memory": 1 << 29, "seconds": 10}), flush=True)
print(json.dumps({"dialect": None, "settled": True}), flush=True)
"""


def _child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(load, "_CHILD", [sys.executable, "-c", code])


def test_a_dead_tracer_says_how_it_died(monkeypatch: pytest.MonkeyPatch) -> None:
    _child(monkeypatch, READY + "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    with pytest.raises(VortexError, match=r"VF009.*SIGTERM"):
        trace_source(INDEX + "return ops.everything()")
    _child(monkeypatch, READY + "raise SystemExit(3)")
    with pytest.raises(VortexError, match=r"VF009.*exit status 3"):
        trace_source(INDEX + "return ops.everything()")


def test_a_tracer_that_never_starts_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    _child(monkeypatch, "raise SystemExit('no room')")
    with pytest.raises(VortexError, match=r"VF095.*no room"):
        trace_source(INDEX + "return ops.everything()")
    _child(monkeypatch, 'print(\'{"walls": [], "memory": 1, "seconds": 1}\')')
    with pytest.raises(VortexError, match=r"VF095.*no system-call filter"):
        trace_source(INDEX + "return ops.everything()")


GOOD = run(states(), "flow.py").original.to_json()


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 99}, {"states": 3}, {"states": [{}]}, {"cache": None}, {"index": {}}, {"params": [{}]},
        {"index": {"nodes": [{"op": "nothing", "in": []}], "writes": [], "result": 0}},
        {"index": {"nodes": [{"op": "q", "in": [0]}], "writes": [], "result": 0}},
        {"index": {"nodes": [{"op": "exp", "in": [5]}], "writes": [], "result": 0}},
        {"index": {"nodes": [{"op": "q", "in": []}], "writes": [], "result": "x"}},
        {"index": {"nodes": [{"op": "const", "in": [], "attrs": {"value": "x"}}], "writes": [], "result": 0}},
        {"index": {"nodes": [{"op": "iota", "in": [], "attrs": {"dim": 3}}], "writes": [], "result": 0}},
    ],
)  # fmt: skip
def test_malformed_ir_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(VortexError) as caught:
        Program.from_json({**GOOD, **damage})
    assert caught.value.code.startswith("VF")
    if "format" in damage:
        assert caught.value.code == "VF090"


@pytest.mark.parametrize(
    "name", ["page_size", "keep_first", "keep_last", "dense_layers", "reuse_steps", "kv_dtype"]
)
def test_knobs_out_of_range(name: str) -> None:
    with pytest.raises(VortexError, match="VF061"):
        Knobs(**{name: -1})  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    "budget",
    ["", "max(1)", "sqrt(1, 2)", "length.real", "1 / 0", "1e999", "length " * 100, "(" * 90],
)
def test_budgets_that_are_none(budget: str) -> None:
    with pytest.raises(VortexError, match="VF060"):
        Knobs(budget=budget)


def test_a_budget_undefined_at_some_length() -> None:
    source = knobs('Knobs(budget="512 + 1 / (length - 65536)")')
    with pytest.raises(VortexError, match="VF060"):
        run(source, "flow.py")
