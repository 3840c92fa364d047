"""Databases and files of items that strangers wrote, beyond those of `test_files`: none runs, none waits."""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from pathlib import Path

import pytest

from evaluators.tasks import jsonl
from evaluators.tasks.jsonl import JsonlParameters
from search.campaign.live import LiveView, read_live
from search.cli.console import emit
from search.log.fsck import check_run
from search.log.run import open_run
from search.log.state import CampaignState
from tests.null.search.test_campaign import config as config_of
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


@pytest.mark.parametrize(
    "also",
    [
        "CREATE TRIGGER t BEFORE INSERT ON events BEGIN SELECT 1; END",
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
        view = LiveView(tmp_path, config, dict)
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
