"""Databases and files of items that strangers wrote, beyond those of `test_files`: none runs, none waits."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from evaluators.tasks import jsonl
from evaluators.tasks.jsonl import JsonlParameters
from search.campaign.live import LiveView, read_live
from search.campaign.replay import _recorded_error
from search.cli import main
from search.cli.console import emit
from search.log import events
from search.log.compact import compact
from search.log.files import digest
from search.log.fsck import check_run
from search.log.run import open_run, sealed_secret
from search.log.state import CampaignState
from tests.null.search.harness import config as config_of
from tests.synthetic_runs import write_run
from vortex_core.errors import VortexError

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n)"
PACKED = "CREATE TABLE events (seq, time, kind, version, body, chain); PRAGMA user_version = 2; "


@pytest.mark.parametrize(
    "lines", ["[]", "[[null, null, null, null]]", '[[1e300, "x", 1, "{}"]]', '[[1, "x", 1]]', "{}"]
)
@pytest.mark.parametrize("last", ["1", "'x'"])
def test_forged_segments_end_in_a_code(tmp_path: Path, lines: str, last: str) -> None:
    (tmp_path / "r").mkdir()
    db = sqlite3.connect(tmp_path / "r" / "events.sqlite")
    db.executescript(f"{PACKED} CREATE TABLE packed (first INTEGER PRIMARY KEY, last, chain, body)")
    db.execute(f"INSERT INTO packed VALUES (1, {last}, '', ?)", (zlib.compress(lines.encode()),))
    db.commit()
    db.close()
    with pytest.raises(VortexError, match="VS005"), open_run("r", readonly=True, root=tmp_path) as run:
        list(run.store.read())


@pytest.mark.parametrize("name", ["events.sqlite", "events.sqlite-wal", "events.sqlite-journal"])
@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.timeout(20)
def test_a_pipe_is_no_log(tmp_path: Path, name: str, readonly: bool) -> None:
    with open_run("r", readonly=False, root=tmp_path):
        pass
    (tmp_path / "r" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "r" / name)
    with (
        pytest.raises(VortexError, match=r"VS005.*is no file"),
        open_run("r", readonly=readonly, root=tmp_path),
    ):
        pass


def test_a_lock_that_leads_elsewhere_empties_nothing(tmp_path: Path) -> None:
    """Whoever resumes or packs a stranger's run takes its lock, which is written to."""
    (tmp_path / "r").mkdir()
    mine, lock = tmp_path / "mine.txt", tmp_path / "r" / "events.lock"
    mine.write_text("mine")
    lock.symlink_to(mine)
    with (
        pytest.raises(VortexError, match=r"VS017.*events\.lock is a link"),
        open_run("r", readonly=False, root=tmp_path),
    ):
        pass
    assert mine.read_text() == "mine"
    lock.unlink()
    os.mkfifo(lock)
    with (
        pytest.raises(VortexError, match=r"VS017.*events\.lock is no file"),
        open_run("r", readonly=False, root=tmp_path),
    ):
        pass


@pytest.mark.timeout(20)
def test_a_sealed_number_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sealed")
    with pytest.raises(VortexError, match=r"VS005.*it is no regular file"):
        sealed_secret(tmp_path, 1000)


@pytest.mark.parametrize(
    "also",
    [
        "CREATE TRIGGER t BEFORE INSERT ON events BEGIN SELECT 1; END",
        f"DROP TABLE texts; CREATE VIEW texts AS {ENDLESS} SELECT i id, i name, x'' body FROM n",
        f"DROP TABLE packed; CREATE VIEW packed AS {ENDLESS} SELECT i first, i last, '' chain, x'' body FROM n",
    ],
)
@pytest.mark.timeout(20)
def test_a_foreign_log_is_not_written(tmp_path: Path, also: str) -> None:
    """Resuming or compacting would run its schema with every event."""
    with open_run("r", readonly=False, root=tmp_path):
        pass
    with sqlite3.connect(tmp_path / "r" / "events.sqlite") as db:
        db.executescript(also)
    db.close()
    with pytest.raises(VortexError, match="VS005"), open_run("r", readonly=False, root=tmp_path):
        pass


@pytest.mark.parametrize(
    "rows",
    [
        "CREATE TABLE stands AS SELECT 1 AS seq, 1 AS time, '{}' AS body",
        "CREATE TABLE stands AS SELECT 1 AS seq, -9e999 AS time, '{\"phase\": 5}' AS body",
        "CREATE TABLE stands AS SELECT 1 AS seq, 1 AS time, '{\"phase\": 5}' AS body",
        f"CREATE VIEW stands AS {ENDLESS} SELECT i AS seq, i AS time, max(i) AS body FROM n",
    ],
)
@pytest.mark.timeout(20)
def test_what_a_forged_driver_says_is_not_shown(tmp_path: Path, rows: str) -> None:
    db = sqlite3.connect(tmp_path / "live.sqlite")
    db.executescript(rows)
    db.close()
    assert read_live(tmp_path) is None


@pytest.mark.parametrize(
    "made",
    [
        None,
        f"CREATE VIEW stands AS {ENDLESS} SELECT i AS seq, i AS time, '' AS body FROM n",
        "CREATE TABLE board (number)",
    ],
)
@pytest.mark.timeout(20)
def test_a_view_that_is_not_ours_is_made_anew(tmp_path: Path, made: str | None) -> None:
    path = tmp_path / "live.sqlite"
    if made is None:
        os.mkfifo(path)
    else:
        db = sqlite3.connect(path)
        db.executescript(made)
        db.close()
    config, state = config_of(), CampaignState()
    for _ in range(2):  # the second finds its own, and keeps it
        view = LiveView(tmp_path, config, dict, lambda: None)
        view.begin(state)
        view.close(state)
        assert path.is_file() and read_live(tmp_path) is not None


def test_a_log_that_lost_its_end_or_all_of_it_is_not_whole(tmp_path: Path) -> None:
    write_run(tmp_path, "r", 2)
    path = tmp_path / "r" / "events.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("DROP TRIGGER events_never_go")
        db.execute("DELETE FROM events WHERE seq > 20")
    db.close()
    for said in ("events 21 to", "the log is empty"):
        with open_run("r", readonly=True, root=tmp_path) as run:
            assert [f.what for f in check_run(run).findings if said in f.what]
        for left in tmp_path.glob("r/events.sqlite*"):
            left.unlink()
        (tmp_path / "r" / "sealed").write_text("7")
        with open_run("r", readonly=False, root=tmp_path):
            pass


def test_files_of_items_are_read_with_a_bound(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "words").write_text('{"q": "a\u2028b\x85c"}\n', encoding="utf-8-sig")
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "latin").write_bytes(b'{"q": "\xe9"}')
    given = {"context": 100, "prompt": "{q}", "answer": "{q}", "metric": "exact", "max_new_tokens": 1}
    with pytest.raises(ValueError, match="no regular file"):
        JsonlParameters.model_validate(given | {"path": str(tmp_path / "pipe")})
    for name in ("deep", "latin"):
        path = str(tmp_path / name)
        with pytest.raises(VortexError, match="VV002"):
            jsonl._rows(path, JsonlParameters.model_validate(given | {"path": path}).sha256)
    path = str(tmp_path / "words")
    rows = jsonl._rows(path, JsonlParameters.model_validate(given | {"path": path}).sha256)
    assert rows == ({"q": "a\u2028b\x85c"},)


def test_json_has_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": [1.5, float("inf")], "b": {"c": float("nan")}})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": [1.5, None],
        "b": {"c": None},
    }


@pytest.mark.parametrize(
    "made", [None, "CREATE VIEW files AS SELECT 1 AS name, 2 AS body", "CREATE TABLE files (a)"]
)
@pytest.mark.timeout(20)
def test_a_foreign_pack_is_no_pack(tmp_path: Path, made: str | None) -> None:
    files = tmp_path / "r" / "files"
    files.mkdir(parents=True)
    (files / f"{digest('text')}.py").write_text("text")
    if made is None:
        os.mkfifo(files / "packed.sqlite")
    else:
        with closing(sqlite3.connect(files / "packed.sqlite")) as db:
            db.executescript(made)
    with open_run("r", readonly=False, root=tmp_path) as run, pytest.raises(VortexError, match="VS005"):
        compact(run)
    assert [p.suffix for p in files.glob("*.py")] == [".py"], "nothing was taken away"


@pytest.mark.timeout(20)
def test_a_foreign_pack_is_none_whenever_it_is_asked(tmp_path: Path) -> None:
    """`fsck` asks for one text after another, whatever the first was answered."""
    write_run(tmp_path, "r", 2)
    files = tmp_path / "r" / "files"
    files.mkdir()
    with closing(sqlite3.connect(files / "packed.sqlite")) as db:
        db.executescript("CREATE VIEW files AS SELECT 1 AS name, 2 AS body")  # might as well never end
    with open_run("r", readonly=True, root=tmp_path) as run:
        for _ in range(2):
            with pytest.raises(VortexError, match=r"VS005.*packed\.sqlite: its files are no table"):
                run.files.get("0" * 16, ".py")


NUMBERS: list[Any] = [-1, -0.5, float("nan"), float("inf"), -1e300, 10**400, "5", [1], {}, True]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_a_forged_log_gives_no_budget_of_its_own(value: object) -> None:
    """What was spent is a number that was counted: less than nothing would be room for more."""
    looked = 0
    for kind, event in events.kinds().items():
        for field in dataclasses.fields(event):  # type: ignore[arg-type]  # all are dataclasses
            if str(field.type).partition(" | ")[0] in ("int", "float"):
                looked += 1
                with pytest.raises(VortexError, match=f"VS005.*{field.name}"):
                    events.from_json(kind, event.version, {field.name: value})
    assert looked > 20


@pytest.mark.parametrize(
    "settings", [{}, {"seed": "x"}, {"seed": -1}, {"seed": 1, "campaign": 5}, {"seed": True}]
)
@pytest.mark.parametrize("what", ["--replay", "--run"])
def test_a_recording_without_campaign_or_seed_is_refused(
    tmp_path: Path, settings: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("VORTEX_RUNS", str(tmp_path))
    write_run(tmp_path, "good", 2)
    with open_run("good", readonly=True, root=tmp_path) as run:
        recorded = [record.event for record in run.store.read()]
    assert isinstance(recorded[0], events.CampaignStarted)
    recorded[0] = dataclasses.replace(recorded[0], settings=settings)
    with open_run("r", readonly=False, root=tmp_path) as run:
        run.store.append(*recorded)
    with pytest.raises(SystemExit):
        main([what, "r", "--max-candidates", "1", "--model", "retrieval-mla", "--json"])
    assert json.loads(capsys.readouterr().out)["error"]["code"] in ("VS005", "VS060")


def test_a_failure_that_is_none_is_not_replayed() -> None:
    for data in (
        {},
        {"code": 5},
        {"code": "VA001", "message": [], "location": 5},
        [],
        "x",
        {"code": "VA001"},
    ):
        with pytest.raises(VortexError, match="VS005"):
            _recorded_error(data, "r")
