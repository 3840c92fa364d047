"""The ranking in a terminal: 80 columns, whole rows elsewhere, text that stays text; two runs side by side."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from search.cli.app import app
from tests.synthetic_runs import CONFIG, write_run
from vortex_core.text import cell

RUN = CliRunner()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_run(root, "one", 30, hostile=True)
    write_run(root, "two", 20)
    write_run(root, "open", 12, finish=False)
    return root


@pytest.fixture(autouse=True)
def _there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_RUNS", str(root))


def said(*words: str) -> str:
    result = RUN.invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_fits_eighty_columns() -> None:
    lines = said("leaderboard", "one").splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("accuracy:"))]
    assert len(table) > 20
    assert max(map(len, table)) <= 80
    assert all(line.endswith("]") for line in table[1:] if "stopped" not in line), "an interval was cut off"
    assert all(line.count("[") == line.count("]") == 2 for line in table[1:] if "stopped" not in line)
    assert "\x1b" not in "".join(lines)


def test_wide_has_every_column_in_one_line_each() -> None:
    lines = said("leaderboard", "one", "--wide", "--limit", "3").splitlines()
    assert "perplexity_ratio" in lines[0] or "perplexity_ratio" in lines[1]
    assert max(map(len, lines)) > 150


def test_csv_reads_back_and_holds_no_formula() -> None:
    rows = list(csv.DictReader(io.StringIO(said("leaderboard", "one", "--csv"))))
    document = json.loads(said("leaderboard", "one", "--json"))
    assert document["schema"] == "vortex-search/leaderboard/1"
    assert [r["id"] for r in rows] == [r["id"] for r in document["rows"]]
    first = document["rows"][0]
    assert float(rows[0]["decode_speedup_low"]) == first["speed"]["low"]
    assert {int(r["tier"]) for r in rows if r["tier"]} == {r["tier"] for r in document["rows"]}
    assert all(not v.startswith(("=", "+", "@")) for r in rows for v in r.values())
    for text in ("=cmd()", "+1", "@x", " =1", "-1+1"):
        assert cell(text).startswith("'")
    assert cell("quest") == "quest"


def test_markdown_is_a_table_of_whole_rows() -> None:
    lines = said("leaderboard", "one", "--markdown").splitlines()
    bars = [line.replace("\\|", "").count("|") for line in lines]
    assert len(set(bars)) == 1 and len(lines) > 20
    assert "<img" not in "\n".join(lines)


def test_one_form_at_a_time() -> None:
    result = RUN.invoke(app, ["leaderboard", "one", "--csv", "--markdown"])
    assert result.exit_code != 0


def test_compare_pairs_what_both_were_asked() -> None:
    found = json.loads(said("compare", "one", "two", "--json"))
    pair = found["pair"]
    assert pair["items"] == 50 and pair["test"] == "McNemar" and 0 <= pair["p_value"] <= 1
    assert pair["accuracy"]["low"] <= pair["accuracy"]["value"] <= pair["accuracy"]["high"]
    assert found["first"]["candidates"] > found["second"]["candidates"]
    same = json.loads(said("compare", "one", "one", "--json"))["pair"]
    assert same["accuracy"]["value"] == 0 and same["p_value"] == 1
    lines = said("compare", "one", "two").splitlines()
    assert max(map(len, lines[:10])) <= 80


def test_runs_that_asked_other_things_are_not_paired(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.synthetic_runs.CONFIG", CONFIG.model_copy(update={"model": "qwen3-8b"}))
    write_run(root, "other", 12)
    found = json.loads(said("compare", "one", "other", "--json"))
    assert found["pair"] is None
    assert "answers are of smollm2-135m and of qwen3-8b" in found["words"][0]


def test_show_is_a_program_page() -> None:
    text = said("show", "two", "c002")
    for part in (
        "in words",
        "For every completed page",
        "formula",
        "S = top-k_p",
        "launches of a sparse layer",
        "where it pays",
    ):
        assert part in text
    page = json.loads(said("show", "two", "c002", "--json"))["page"]
    assert page["formula"][-1][1].startswith("S = ")
    pays = page["pays"]
    assert len(pays["speedups"]) == len(pays["batches"]) and pays["contexts"][-1] <= 8192
    assert pays["speedups"][-1][-1] > 1 > pays["speedups"][0][0], (
        "it pays at large batches and contexts first"
    )


def test_watch_shows_a_run_once_and_follows_to_its_end() -> None:
    assert "searching" in said("watch", "open", "--once")
    rows = [line for line in said("watch", "one", "--once").splitlines() if " [" in line]
    assert len(rows) > 10 and max(map(len, rows)) <= 80
    assert all(row.endswith("]") and row.count("[") == 2 for row in rows), "an interval was cut off"
    assert "finished (candidates)" in said("watch", "two").splitlines()[0]
