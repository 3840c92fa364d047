"""What surrounds the jail: lower limits of the machine, no filter, a parent that dies, two tracings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vortex_core.errors import VortexError
from vortex_core.sandbox import kernel, load
from vortex_core.sandbox.load import trace_source
from vortex_core.sandbox.process import ask, command

HEAD = "from vortex_core import Knobs, ops, vFlow\n\n\nclass W(vFlow):\n"
BODY = HEAD + "    def forward_indexer(self, q, cache):\n        "
END = '\n        return ops.topk(ops.position() + q.norm("head", "dim"))\n'
ROOT = Path(__file__).resolve().parents[2]
CHECK = (
    "import sys; from vortex_core.sandbox.load import trace_source\n"
    "from vortex_core.errors import VortexError\n"
    "try: print(trace_source(sys.stdin.read()).key)\n"
    "except VortexError as e: print(e.code, e.message)"
)


def _limited(limits: str, source: str) -> str:
    done = subprocess.run(
        ["bash", "-c", f'{limits}; exec "$0" -c "$1"', sys.executable, CHECK],
        input=source, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    return (done.stdout + done.stderr).strip()


@pytest.mark.parametrize(
    "limits", ["ulimit -v 400000", "ulimit -t 12", "ulimit -n 16", "ulimit -c 0 -s 4096"]
)
def test_a_flow_is_traced_under_lower_limits(limits: str) -> None:
    assert _limited(limits, BODY + "pass" + END) == trace_source(BODY + "pass" + END).key


def test_a_lower_limit_of_the_machine_is_called_that() -> None:
    found = _limited("ulimit -v 400000", BODY + "x = 'a' * 10 ** 9" + END)
    assert found.startswith("VF096 this machine gives a process 390 MiB of memory"), found


def test_without_a_filter_nothing_runs_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """`setarch i686` no longer fools the jail; a build for another instruction set is refused."""
    code = "from vortex_core.sandbox import kernel, jail; kernel._CALLS.clear(); jail.main()"
    monkeypatch.setattr(load, "_CHILD", _replaced(code))
    with pytest.raises(VortexError, match=r"VF095.*no system-call filter"):
        trace_source(BODY + "pass" + END)
    monkeypatch.setenv(load.UNFILTERED, "1")
    assert trace_source(BODY + "pass" + END).key


def _replaced(code: str) -> list[str]:
    *flags, start = command("vortex_core.sandbox.jail")
    return [*flags, start.partition("from ")[0] + code]


def test_a_32_bit_personality_changes_nothing() -> None:
    code = "from vortex_core.sandbox.proof import prove; p = prove(); print(p.walls, p.opened)"
    done = subprocess.run(
        ["setarch", "i686", sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert kernel.FILTER in done.stdout
    assert done.stdout.strip().endswith("()")


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    source = BODY + "while True: pass" + END
    parent = subprocess.Popen([sys.executable, "-c", CHECK], stdin=subprocess.PIPE, cwd=ROOT, text=True)
    assert parent.stdin is not None
    parent.stdin.write(source)
    parent.stdin.close()
    for _ in range(200):
        time.sleep(0.05)
        if children := _children(parent.pid):
            break
    time.sleep(0.5)  # it has locked itself in
    parent.kill()
    parent.wait()
    for _ in range(40):
        time.sleep(0.05)
        if not any(_alive(pid) for pid in children):
            return
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    pytest.fail("the child outlived its parent")


def _children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("print('x' * (2 << 20))", "too much"),
        ("print('a')\nimport sys\nwhile True: sys.stderr.write('e' * 1000)", "too much"),
        ("print('a', flush=True)\nimport time\ntime.sleep(60)", "late"),
        ("import sys\nsys.stdout.write('[' * 5_000_000)", "too much"),
    ],
)
def test_what_a_child_may_say_is_bounded(code: str, ended: str) -> None:
    began = time.monotonic()
    said = ask([sys.executable, "-c", code], b"", deadline=1.0, lines=3)
    assert said.ended == ended
    assert len(said.errors) <= 64 << 10
    assert time.monotonic() - began < 10


ORDER = {
    "the order of a set": "x = [n for n in {'a', 'b', 'c', 'd', 'e'}].index('a')",
    "an address": "x = int(repr(lambda: 0).split(' at ')[1][2:-1], 16) // 16 % 65536",
    "an address in an f-string": "x = int(''.join(c for c in f'{W.forward_indexer}' if c in '0123456789')) % 65537",
    "a difference of key sets": "x = [n for n in dict(a=1, b=2, c=3, d=4).keys() - ['e']].index('a')",
}
NEAR = '\n        return ops.topk((ops.position() - x).abs() * q.norm("head", "dim"))\n'


@pytest.mark.parametrize("what", list(ORDER))
def test_what_differs_from_run_to_run_is_refused(what: str) -> None:
    with pytest.raises(VortexError, match="VF097"):
        trace_source(BODY + ORDER[what] + NEAR)


def test_sets_that_do_not_matter_are_allowed() -> None:
    body = "y = sorted({'b', 'a', 'c'})\n        z = f'{len(y)}'\n        x = y.index('b') + int(z)"
    assert len({trace_source(BODY + body + NEAR).key for _ in range(3)}) == 1


def test_names_in_any_script_are_python() -> None:
    """One program each way: a name that ended the tracer would end it here, too."""
    names = ["α", "größe", "ﬁne", "変数", "x\u0301"]
    plain = [f"x{n}" for n in range(len(names))]

    def source(used: list[str]) -> str:
        lines = [f"{name} = 0.{n + 1}" for n, name in enumerate(used)]
        total = " + ".join(used)
        lines.append(f"return ops.topk(ops.position() * ({total}) + q.norm('head', 'dim'))")
        return BODY + "\n        ".join(lines)

    assert trace_source(source(names)).key == trace_source(source(plain)).key


def test_characters_by_their_name() -> None:
    source = (
        HEAD + '    "A dot: \\N{MIDDLE DOT}."\n    def forward_indexer(self, q, cache):\n        pass' + END
    )
    assert trace_source(source).doc == "A dot: \N{MIDDLE DOT}."
