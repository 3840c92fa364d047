"""Every command over a matrix of bad inputs: each failure is a code, in text and as JSON, and never success.

`VORTEX_WHOLE_MATRIX=1 python -m pytest tests/hostile/test_commands.py` tries all of it (some 1,100 command lines).
`VS091` is the code of an exception that nobody typed: here it is a failure of the test, like a traceback.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.cli import main
from vortex_core.engine.models import weights
from vortex_core.errors import VortexError
from vortex_core.text import is_visible

FLOW = """from vortex_core import ops, vFlow
class W(vFlow):
    def forward_indexer(self, q, cache):
        return ops.topk(ops.position() + q.norm("head", "dim"))
"""
LONG = "x" * 5_000
# Every command gets an eighth of its bad inputs, each another one: minutes on a busy machine otherwise.
WHOLE = os.environ.get("VORTEX_WHOLE_MATRIX") == "1"
NAMES = ["", " ", "no-such-thing", "../x", "/", ".", "..", "/dev/null", "/proc/self/mem", "a\nb", "a\0b", "\x1b[2J",
         "\udcff", "[/bold]", LONG, "~nobody-here/x", "-", "é" * 300, "%s", "{0}"]  # fmt: skip
NUMBERS = ["0", "-1", "1e9", "nan", "inf", "", "x", "9" * 400, "1.5", "\x1b[2J"]
# Files and folders that lie in the test's folder, by name.
PATHS = ["folder", "pipe", "empty.py", "text.py", "binary.py", "socket", "loop", "dangling", "unreadable.py", "big.py",
         "bom16.py", "folder.py", "flow.py/x", "list.json", "deep.json", "broken.yaml", "bomb.yaml"]  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
KNOBS = ["", "=", "x", "x=1", "budget", "budget=", "budget=(", "budget=__import__('os')", "page_size=0", "page_size=x",
         "page_size=16.0", "page_size=[", "page_size=" + "9" * 400, "budget=" + "(" * 5_000, "dense_layers=-1",
         "dense_layers=" + "[" * 5_000, "\x1b[2J=1", "budget=nan",
         "budget=1e400", "reuse_steps=0", "kv_dtype=x"]  # fmt: skip
MODELS = [
    *NAMES,
    "folder",
    "empty-model",
    "list-model",
    "flow.py",
    "pipe",
    "loop",
    "not.gguf",
    "a/b",
    "a/b/c",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("VORTEX_RUNS", "VORTEX_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setattr(weights, "download_gguf", _no_download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.py").mkdir()
    os.mkfifo("pipe")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "text.py").write_text("not python at all\x1b[2J")
    (tmp_path / "binary.py").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "bom16.py").write_text(FLOW, encoding="utf-16")
    (tmp_path / "unreadable.py").symlink_to("/proc/self/mem")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    with (tmp_path / "big.py").open("wb") as file:
        file.truncate(1 << 32)
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "broken.yaml").write_text("a: [1,\n  b: {")
    lines = "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 9))
    (tmp_path / "bomb.yaml").write_text("b0: &b0 [x,x]\n" + lines)
    for name, text in (("empty-model", ""), ("list-model", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "not.gguf").write_bytes(b"GGUF" + bytes(100))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        yield


def _no_download(*_: object) -> None:
    raise VortexError("VM009", "nothing is downloaded in tests", "none")


def run(arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def wrong(
    arguments: list[str], forms: list[list[str]], capfd: pytest.CaptureFixture[str], *, fine: bool
) -> str | None:
    """What is wrong with how a command line ended, in words. `fine`: it may also succeed."""
    for extra in forms:
        given = [*arguments, *extra]
        try:
            status = run(given)
        except BaseException as error:
            return f"{given}: {type(error).__name__}: {error}"[:300]
        said = capfd.readouterr()
        if status == 0 and fine:
            continue
        if status not in (1, 2):
            return f"{given}: exit status {status}"[:300]
        if "Traceback" in said.out + said.err or "VS091" in said.out + said.err:
            return f"{given}: {said.out[-300:]} {said.err[-300:]}"
        if extra:
            try:
                error = json.loads(said.out)["error"]
            except (ValueError, KeyError, TypeError):
                return f"{given}: no JSON: {said.out[:200]!r} {said.err[-200:]}"
            if not (error["code"] and error["message"] and is_visible(error["message"], 2_000)):
                return f"{given}: {error}"[:300]
        elif not said.err.strip():
            return f"{given}: no word on stderr"
        if any(c in said.out + said.err for c in "\x1b\0"):
            return f"{given}: control characters"
    return None


def check(
    lines: list[list[str]], capfd: pytest.CaptureFixture[str], *, fine: bool = False, text: bool = False
) -> None:
    """Each as JSON; every third, and what could steer a terminal, as text too. `text`: as text alone."""
    found = []
    if not WHOLE and len(lines) > 8:
        lines = lines[len("".join(lines[0][:2])) % 8 :: 8]
    for number, line in enumerate(lines):
        steers = number % 3 == 0 or not line[-1].isprintable() or "[" in line[-1]
        forms = [[]] if text else [["--json"], []] if steers else [["--json"]]
        words = wrong(line, forms, capfd, fine=fine)
        found += [] if words is None else [words]
    assert not found, "\n".join(found)


ON_FLOWS = (["check"], ["explain"], ["evaluate"], ["tune", "--model", "qwen3-8b"], ["serve", "--dry-run"],
            ["bench", "retrieval-mla"], ["convert"])  # fmt: skip


@pytest.mark.parametrize("command", ON_FLOWS, ids=lambda c: c[0])
def test_flows_that_are_none(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    check(
        [[*command, "--", name] if name.startswith("-") else [*command, name] for name in NAMES + PATHS],
        capfd,
    )


ON_MODELS = (["check", "quest"], ["explain", "quest"], ["evaluate", "quest"], ["tune", "quest"],
             ["serve", "quest", "--dry-run"], [], ["config", "show"])  # fmt: skip


@pytest.mark.parametrize("command", ON_MODELS, ids=lambda c: c[0] if c else "campaign")
def test_models_that_are_none(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    check(
        [[*command, f"--model={name}"] for name in MODELS], capfd, fine=command[:1] in (["config"], ["serve"])
    )


def test_models_that_are_none_as_arguments(capfd: pytest.CaptureFixture[str]) -> None:
    for command, rest in ((["bench"], ["quest"]), (["models", "fetch"], [])):
        check([[*command, name, *rest] for name in MODELS if name != "-"], capfd)


@pytest.mark.parametrize("command", [["explain", "quest"], ["evaluate", "quest"], ["serve", "quest", "--dry-run"]],
                         ids=lambda c: c[0])  # fmt: skip
def test_knobs_that_are_none(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    check([[*command, "--model=retrieval-mla", f"--set={knob}"] for knob in KNOBS], capfd)


RUNS = (["leaderboard"], ["show"], ["report"], ["export"], ["serve", "--winner"], ["status"], ["fsck"], ["compact"],
        ["tables"], ["compare"], ["watch", "--once"], ["--replay"], ["--lessons"])  # fmt: skip


@pytest.mark.parametrize("command", RUNS, ids=lambda c: c[0])
def test_runs_that_are_none(
    command: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = {"show": ["c001"], "compare": ["x"], "--replay": ["--max-candidates=0"],
            "--lessons": ["--max-candidates=0", "--model=retrieval-mla"]}.get(command[0], [])  # fmt: skip
    text = command[0] == "watch"
    names = [name for name in (*NAMES, "folder", "flow.py", "pipe") if name != "-"]
    check([[*command, name, *rest] for name in names], capfd, text=text)
    for root in ("/proc", "/dev/null", "pipe", "loop", "\x1b[2J", LONG):
        monkeypatch.setenv("VORTEX_RUNS", root)
        check([[*command, "x", *rest]], capfd, text=text)


def test_exports_that_are_none(capfd: pytest.CaptureFixture[str]) -> None:
    for command in (["verify"], ["certify", "--items=list.json", "--model=retrieval-mla"]):
        check([[*command, "--", name] for name in NAMES + PATHS + MODELS], capfd)


def test_items_that_are_none(capfd: pytest.CaptureFixture[str]) -> None:
    command = ["certify", "quest", "--model=retrieval-mla", "--device=cpu", "--max-new-tokens=1"]
    check([[*command, f"--items={name}"] for name in NAMES + PATHS], capfd)
    given = Path("one.jsonl")
    given.write_text('{"prompt": "k1 v2 k1", "answer": "v2"}\n')
    bad = {
        "--confidence": [*NUMBERS, "1"], "--metric": ["", "nope", "\x1b[2J", "__class__"],
        "--rank": ["0", "-1", "", "x", "nan"], "--max-new-tokens": ["0", "-1", "", "x", "nan", "9" * 400, "999999999"],
        "--prompt": ["{", "{}", "{0}", "{x}", "{prompt.__class__}", "{prompt:>9999999999999}", "{prompt!x}"],
        "--answer": ["{", "{x}", "{answer[0]}"], "--device": ["", "tpu", "meta", "\x1b[2J"],
    }  # fmt: skip
    check([[*command, f"--items={given}", f"{name}={v}"] for name, of in bad.items() for v in of], capfd)


def test_ports_that_are_none(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [*(n for n in NUMBERS if n != "0"), "65536", "80:80", "0x50", str(taken.getsockname()[1])]
        check([["ui", f"--port={port}"] for port in ports], capfd, text=True)
    check([["ui", "--host", "0.0.0.0"], ["ui", "x"]], capfd, text=True)  # it is on the loopback alone


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (["explain", "quest"], ["--batch", "--length", "--gpu"]),
        (["evaluate", "quest", "--model=retrieval-mla"], ["--seed", "--plan", "--campaign", "--device"]),
        (["tune", "quest", "--model=qwen3-8b"], ["--batch", "--context", "--seconds", "--page-size", "--budget"]),
        (["bench", "retrieval-mla", "quest"],
         ["--rank", "--batch", "--context", "--new-tokens", "--rounds", "--page-size", "--budget", "--serve",
          "--device"]),
        (["leaderboard", "x"], ["--limit"]),
        (["export", "x"], ["--rank"]),
        ([], ["--campaign", "--proposer", "--plan", "--target", "--run", "--max-candidates", "--seed", "--time-budget",
              "--max-dollars", "--device", "--gpus", "--tp", "--engines", "--accuracy-model"]),
        (["mcp"], ["--jobs", "--job-time", "--max-dollars"]),
    ],
    ids=lambda c: (c[0] if c else "campaign") if isinstance(c, list) and (not c or c[0][0] != "-") else "",
)  # fmt: skip
def test_values_that_are_none(
    command: list[str], options: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    heavy = {"--new-tokens", "--rounds", "--rank"}  # a legal number here is minutes of work
    values = [*NUMBERS, *(PATHS[:3] if command else PATHS)]
    lines = [[*command, f"{option}={value}"] for option in options for value in values]
    if command[:1] == ["mcp"]:
        lines = [line for line in lines if "-" in line[-1].partition("=")[2] or "=x" in line[-1]]
    lines = [line for line in lines if not (line[-1].partition("=")[0] in heavy and "9" in line[-1])]
    lines = [line for line in lines if not _is_legal(line)]
    check(lines, capfd, fine=command[:1] == ["explain"])


def _is_legal(line: list[str]) -> bool:
    """Values of the matrix that are none of an option's bad ones."""
    option, _, value = line[-1].partition("=")
    legal = {"--max-candidates": {"0"}, "--seed": {"0"}, "--max-dollars": {"0", "1e9", "1.5", "inf"}, "--serve": {"0"},
             "--time-budget": {"1.5"}, "--budget": {"0", "1e9", "1.5"}, "--seconds": {"1e9", "1.5", "inf"}}  # fmt: skip
    return value in legal.get(option, ())


def test_places_that_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = Path(__file__).resolve().parents[2] / "tests/null/dialects/programs.py"
    assert program.is_file()
    (tmp_path / "theirs.py").write_text(THEIRS)
    places = ("/proc/x", "/dev/full", "flow.py/x", "folder", "loop", LONG, "a\0b", "")
    check([["convert", "theirs.py", f"--out={place}"] for place in places], capfd)


THEIRS = """from vortex_torch.flow import vFlow, register
from vortex_torch.indexer import topK, GeMV
from vortex_torch.cache import Mean as CMean


@register("theirs")
class Theirs(vFlow):
    def __init__(self):
        super().__init__()
        self.score = GeMV()
        self.select = topK()
        self.mean = CMean(dim=1)

    def forward_indexer(self, q, o, cache, ctx):
        self.select(self.score(q.mean(dim=1), cache["centroids"], ctx=ctx), o, ctx=ctx)

    def forward_cache(self, cache, loc, ctx):
        self.mean(cache["k"], cache["centroids"], loc=loc, ctx=ctx)

    def create_cache(self, page_size, head_dim):
        return {"centroids": (1, head_dim)}
"""


@pytest.mark.parametrize("arguments", [
    ["nope"], ["check"], ["check", "a", "b"], ["check", "--nope"], ["models", "nope"],
    ["models", "fetch"], ["config"], ["config", "nope"], ["show", "x"], ["--nope"], ["--run"], ["report"], ["export"],
    ["explain", "quest", "--batch", "x"], ["bench", "x"], ["--device", "tpu"], ["--target", "x"], ["tune", "quest"],
    ["\x1b[2J"], ["check", "\udcff"], ["--max-candidates", "-1"], [LONG],
], ids=lambda a: " ".join(a)[:30])  # fmt: skip
def test_command_lines_that_are_none(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    check([arguments], capfd)


def test_a_removed_folder_and_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "search.cli", "--help"], env=os.environ | {"COLUMNS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "leaderboard" in found.stdout
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    check([["check", "quest"], ["leaderboard", "x"]], capfd)
