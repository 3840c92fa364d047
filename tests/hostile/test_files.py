"""Files that strangers wrote or that lie where ours should: read with a bound, never imported, never replaced."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from search.campaign.archive import Entry
from search.cli.failures import as_coded
from search.commands import checksums
from search.commands.export import _make_room
from search.log.files import ContentStore, write_atomic
from search.log.run import open_run, read_state, runs_root
from search.log.texts import MemoryTexts
from vortex_core import dialects
from vortex_core.compiler.triton import cache
from vortex_core.configs import ConfigFolder, Strict
from vortex_core.errors import VortexError
from vortex_core.files import parse_json, read_json, read_text
from vortex_core.sandbox.load import trace_file
from vortex_core.text import MAX_MESSAGE, markdown, markup, shell, visible, visible_lines

SOURCE = """from vortex_core import ops, vFlow
class W(vFlow):
    def forward_indexer(self, q, cache):
        return ops.topk(ops.position())
"""
ROOT = Path(__file__).resolve().parents[2]
assert Entry


def test_a_pipe_a_device_and_a_folder_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    began = time.monotonic()
    for path in (tmp_path / "pipe.py", Path("/dev/zero"), tmp_path):
        for read in (trace_file, dialects.convert_file):
            with pytest.raises(VortexError, match="VF000"):
                read(path)
    assert time.monotonic() - began < 15


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "flow.py").open("wb") as file:
        file.truncate(5 << 30)  # sparse
    with pytest.raises(VortexError, match=r"VF000.*larger than"):
        trace_file(tmp_path / "flow.py")


@pytest.mark.parametrize("read", [trace_file, lambda p: dialects.convert_file(p)])
def test_a_byte_order_mark_is_accepted(tmp_path: Path, read: object) -> None:
    path = tmp_path / "flow.py"
    source = SOURCE if read is trace_file else (ROOT / "tests/null/dialects/programs.py").read_text()
    path.write_text(source, encoding="utf-8-sig")
    if read is trace_file:
        assert trace_file(path).name == "W"
    else:
        assert read_text(path) == source


def test_json_of_any_depth_or_kind(tmp_path: Path) -> None:
    for text in ("[" * 100_000, "[" * 500 + "]" * 500, '{"a":' * 200 + "1" + "}" * 200, "", "{", "\x00"):
        with pytest.raises(ValueError, match="no JSON"):
            parse_json(text)
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1]}')
    assert read_json(path) == {"a": [1]}
    path.write_bytes(b"\xff")
    with pytest.raises(OSError, match="UTF-8"):
        read_json(path)


BOMB = "b0: &b0 [x,x,x]\n" + "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 10))


class _Anything(Strict):
    a: object = None


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: " + "[" * 5_000 + "]" * 5_000, "a: &x [*x]\n", "a: " + "{b: " * 200 + "1" + "}" * 200,
        "a: !!python/object/apply:os.system ['true']\n", "\x00", "a: [" + "1," * 20_000 + "]",
    ],
)  # fmt: skip
def test_yaml_bombs_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(VortexError, match="VS002"):
        ConfigFolder("campaigns", "campaign", "VS001", "VS002").read(str(path), _Anything)
    assert time.monotonic() - began < 15


def test_the_kernel_cache_runs_its_own_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path))
    text = f"x = 1  # {tmp_path}\n"
    first = cache.load_module(text)
    path = Path(str(first.__file__))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    del sys.modules[first.__name__]
    path.write_text("x = 2\n")
    again = cache.load_module(text)
    assert (again.x, path.read_text()) == (1, text)
    del sys.modules[first.__name__]
    outside = tmp_path / "outside.py"
    outside.write_text("x = 3\n")
    path.unlink()
    path.symlink_to(outside)
    assert cache.load_module(text).x == 1
    assert outside.read_text() == "x = 3\n"


def test_a_store_gives_only_what_was_stored(tmp_path: Path) -> None:
    texts = MemoryTexts()
    store = ContentStore(texts, tmp_path / "files")
    name = store.put("text", ".py")
    assert store.get(name, ".py") == "text"
    (tmp_path / "secret.py").write_text("secret")
    for wrong in ("../secret", str(tmp_path / "secret"), "", "x" * 16, "0" * 16, "secret\n"):
        with pytest.raises(VortexError, match=r"VS005.*(names no stored text|holds no text 0{16})"):
            store.get(wrong, ".py")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / f"{name}.py").write_text("changed")
    texts._texts[f"{name}.py"] = "changed, too"
    for kept in (texts, MemoryTexts()):
        with pytest.raises(VortexError, match=r"VS005.*not what its name says"):
            ContentStore(kept, tmp_path / "files").get(name, ".py")


LOGS = {
    "no database": b"not a database at all, but long enough to be one" * 100,
    "empty": b"",
    "a view": "CREATE VIEW events AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) "
    "SELECT i AS seq, 0 AS time, 'x' AS kind, 1 AS version, '{}' AS body FROM n",
    "other columns": "CREATE TABLE events (a)",
    "a computed column": "CREATE TABLE events (seq INTEGER PRIMARY KEY, time REAL, kind TEXT, version INT, "
    "body TEXT AS (printf('%.*c', 300000000, 'x'))); INSERT INTO events (time) VALUES (1)",
    "a virtual table": "CREATE VIRTUAL TABLE events USING fts5(seq, time, kind, version, body)",
    "a version below none": "CREATE TABLE events (seq, time, kind, version, body); PRAGMA user_version = -3",
    **{
        name: f"CREATE TABLE events (seq, time, kind, version, body); INSERT INTO events VALUES ({row})"
        for name, row in {
            "no JSON": "1, 0, 'campaign_started', 1, '{'",
            "deep JSON": "1, 0, 'campaign_started', 1, '" + "[" * 50_000 + "'",
            "an unknown kind": "1, 0, 'x', 1, '{}'",
            "no fields": "1, 0, 'campaign_started', 1, '{}'",
            "a list": "1, 0, 'campaign_started', 1, '[]'",
            "a body of bytes": "1, 0, 'campaign_started', 1, x'00ff'",
            "a kind of number": "1, 0, 5, 1, '{}'",
            "no time a calendar has": "1, 1e300, 'campaign_started', 1, '{}'",
            "no time": "1, NULL, 'campaign_started', 1, '{}'",
            "a result before its candidate": "1, 0, 'candidate_finished', 1, "
            """'{"key":"x","purpose":"search","seed":1,"passed":true}'""",
        }.items()
    },
}


@pytest.mark.parametrize("what", list(LOGS))
@pytest.mark.timeout(90)  # SQLite itself takes seconds to make the largest
def test_foreign_logs_end_in_a_code(tmp_path: Path, what: str) -> None:
    (tmp_path / "r").mkdir()
    path, made = tmp_path / "r" / "events.sqlite", LOGS[what]
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        db = sqlite3.connect(path)
        db.executescript(made)
        db.close()
    with pytest.raises(VortexError, match="VS005"), open_run("r", readonly=True, root=tmp_path) as run:
        read_state(run)


def test_a_run_on_read_only_storage_is_read(tmp_path: Path) -> None:
    with open_run("r", readonly=False, root=tmp_path):
        pass
    for left in ("events.sqlite-wal", "events.sqlite-shm", "events.lock"):
        (tmp_path / "r" / left).unlink(missing_ok=True)
    (tmp_path / "r").chmod(0o555)
    code = (
        "import os, sys, urllib.parse; from pathlib import Path\nfrom search.log.run import open_run, read_state\n"
        "from search.log.fsck import check_run\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "with open_run('r', readonly=True, root=Path(sys.argv[1])) as run:\n"
        "    print(read_state(run).started, check_run(run).problems)"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    (tmp_path / "r").chmod(0o755)
    assert done.stdout.strip() == "None 0", done.stderr


def test_writing_replaces_no_device_pipe_or_link(tmp_path: Path) -> None:
    before = Path("/dev/null").stat()
    write_atomic(Path("/dev/null"), "x")
    assert Path("/dev/null").stat().st_ino == before.st_ino
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((OSError, VortexError)):
        write_atomic(tmp_path / "pipe", "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_force_removes_nothing_but_an_export(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    with pytest.raises(VortexError, match="VS011"):
        _make_room(precious, force=True)
    (precious / "card.json").write_text(json.dumps({"format": 1, "ir_hash": "x"}))
    _make_room(precious, force=True)
    assert (precious / "thesis.txt").read_text() == "years"
    (tmp_path / "link").symlink_to(precious)
    with pytest.raises(VortexError, match="VS011"):
        _make_room(tmp_path / "link", force=True)
    ours = tmp_path / "ours"
    ours.mkdir()
    for name in ("flow.py", "verify.py"):
        (ours / name).write_text("{}")
    (ours / "card.json").write_text(json.dumps({"format": 1, "ir_hash": "x"}))
    checksums.write(ours, ["flow.py", "verify.py", "card.json"])
    with pytest.raises(VortexError, match="VS011"):
        _make_room(ours, force=False)
    _make_room(ours, force=True)
    assert not list(ours.iterdir())
    with pytest.raises(VortexError, match="VS01"):
        _make_room(Path("/proc/self/x/y"), force=True) or write_atomic(Path("/proc/self/x/y"), "")


def test_the_runs_folder_knows_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_RUNS", "~/x")
    assert runs_root() == Path.home() / "x"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_on_any_terminal(encoding: str) -> None:
    code = "from search.cli.console import emit; emit({'a': '\\ud800 \\u03b1'})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert json.loads(done.stdout)["a"] == "\ud800 α"


HOSTILE = [
    "\x1b[2J",
    "a\nb\rc",
    "\u202ex",
    "\ud800",
    "[/bold]x",
    "[red]\\",
    "\\",
    "=cmd()",
    "x" * 10_000,
    "\x00",
    "\u200b",
    "\x85",
    "a\tb",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_is_made_fit(text: str) -> None:
    import shlex

    from rich.markup import render

    shown = visible(text)
    assert len(shown) <= 300
    assert all(c == " " or c.isprintable() for c in shown)
    shown.encode()
    assert visible(shown) == shown
    assert render(markup(text) + "[red]end[/red]").plain == shown + "end"
    assert shlex.split(shell(text)) == [visible(text, MAX_MESSAGE)]
    assert not {"<", "`"} & set(markdown("<b>`|" + text))
    assert "|" not in markdown(text + "|").replace("\\|", "")
    assert "\n" not in visible_lines(text).replace("\n", "") and visible_lines("a\r\nb") == "a\nb"


def test_a_text_that_lies_about_itself() -> None:
    class Liar(str):
        __slots__ = ()

        def __getitem__(self, key: object) -> str:
            return "x" * 1_000_000

        def __str__(self) -> str:
            return "y" * 1_000_000

    class Dumb:
        def __str__(self) -> str:
            raise ValueError

    assert visible(Liar("abc")) == "abc"
    assert visible(Dumb()) == "<Dumb>"


def test_a_file_takes_the_memory_that_it_needs_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "small").write_text("x")
    tracemalloc.start()
    try:
        assert read_text(tmp_path / "small", 128 << 20) == "x"
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1 << 20


def test_a_file_that_holds_more_than_it_says_is_read_whole() -> None:
    with Path("/proc/self/status").open() as file:  # of a size of 0, says the kernel
        assert read_text("/proc/self/status").splitlines()[0] == file.readline().rstrip()
    assert len(read_text("/proc/self/status").splitlines()) > 10


def test_a_full_disk_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"report\.html") as caught:
        write_atomic(tmp_path / "report.html", "x")
    assert "report.html" in as_coded(caught.value).message
    assert not list(tmp_path.iterdir()), "nothing half-written stays"
