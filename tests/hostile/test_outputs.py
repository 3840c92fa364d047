"""Names, ideas and errors made to do harm stay text wherever a run is shown: page, terminal, tables, exports."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import shlex
import unicodedata
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from search.campaign.archive import Archive
from search.cli.app import app
from search.commands.export import export
from search.log.run import campaign_of, open_run, read_state
from search.report.page import render
from tests import synthetic_runs

TEXTS = {
    "script": "</script><script>alert(1)</script><img src=x onerror=alert(1)>",
    "attribute": '" onmouseover="alert(1)" x=\'',
    "terminal": "\x1b]0;title\x07\x1b[2J\x9b31m\rover",
    "formula": '=HYPERLINK("http://x.example","y")',
    "minus": "-1+cmd|' /C calc'!A0",
    "shell": "'; touch pwned; #`id`$(id)",
    "python": '"""\nimport os\nos.system("x")\n"""',
    "bidi": "abc\u202egnp.exe\u2066",
    "markup": "[red]x[/red][link=file:///etc/passwd]y[/link]",
    "table": "| a | b |\n|---|---|\n[x](javascript:alert(1))",
    "template": "{{ 7*191 }}{% raw %}${7*191}",
    "newlines": "one\ntwo\r\nthree\u2028four\x85five",
}
SHOWN = (
    "leaderboard run", "leaderboard run --wide", "leaderboard run --markdown", "show run c006", "compare run run",
    "watch run --once",
)  # fmt: skip
CLI = CliRunner()


class Tags(HTMLParser):
    """Counts elements and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See the base."""
        self.found.update([tag, *(f"{tag} {name}" for name, _ in attrs)])


def _run(root: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_runs, "HOSTILE", text)
    synthetic_runs.write_run(root, "run", 12, hostile=True)
    monkeypatch.setenv("VORTEX_RUNS", str(root))


def _page(root: Path) -> str:
    with open_run("run", readonly=True, root=root) as run:
        state = read_state(run)
        return render(run, state, campaign_of(state))


def _said(*words: str) -> str:
    result = CLI.invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    """The elements of the same run's page with harmless texts."""
    root = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        _run(root, "harmless", patch)
        return Tags(_page(root)).found


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_it_stays_text(
    text: str, tmp_path: Path, plain: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(tmp_path, text, monkeypatch)
    assert Tags(_page(tmp_path)).found == plain, "an element or attribute came from a text"
    for line in SHOWN:
        _is_plain(_said(*line.split()))
    table = _said("leaderboard", "run", "--markdown")
    assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1
    assert "<" not in table and "](" not in table
    rows = list(csv.reader(io.StringIO(_said("leaderboard", "run", "--csv"))))
    assert len({len(row) for row in rows}) == 1
    for cell in (cell for row in rows for cell in row):
        assert not re.match(r"\s*[=+@\t]|\s*-(?!\d+(\.\d+)?(e-?\d+)?$)", cell), cell
    document = json.loads(_said("leaderboard", "run", "--json"))
    assert document["rows"]


def _is_plain(shown: str) -> None:
    for sign in shown:
        assert sign == "\n" or unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Zl", "Zp"), repr(sign)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_an_export_of_it_is_harmless(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(tmp_path, text, monkeypatch)
    with open_run("run", readonly=True, root=tmp_path) as run:
        state = read_state(run)
        config = campaign_of(state)
        entry = next(e for e in Archive(state, config.objective).entries if e.candidate.name == text)
        out = export(run, state, config, entry, tmp_path / "out")
    module = ast.parse((out / "flow.py").read_text())
    assert {type(node) for node in module.body} <= {ast.ImportFrom, ast.ClassDef, ast.Expr}
    assert [n.module for n in module.body if isinstance(n, ast.ImportFrom)] == ["vortex_core"]
    for name in ("README.md", "card.md"):
        shown = (out / name).read_text()
        assert "<" not in shown and "](" not in shown, name
        _is_plain(shown)
    commands = [
        line.strip() for line in (out / "README.md").read_text().splitlines() if line.startswith("    ")
    ]
    assert {shlex.split(line)[0] for line in commands} == {"vortex-search", "python"}
    assert re.fullmatch(r"[\w.+-]+\.whl", next(out.glob("*.whl")).name)
    card: dict[str, Any] = json.loads((out / "card.json").read_text())
    assert card["name"] == text, "for programs it is what it was"
