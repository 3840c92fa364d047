"""Every code block of the documentation runs, here or in a test that is named here."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from search.cli.app import app
from tests.synthetic_runs import write_run

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Blocks that another test runs, by page.
ELSEWHERE = {
    "docs/language.md": "tests/cpu/flow/test_docs.py",
    "docs/architecture.md": "tests/cpu/test_documents.py",
    **{
        f"docs/extending/{p.name}": "tests/cpu/test_extending.py"
        for p in (ROOT / "docs/extending").glob("*.md")
    },
}
# Written in a file of its own and run where the file is.
NEEDS_A_FILE = "submissions/tag/batch_0_id0.py"


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.null.dialects.programs import BUNDLED

    root = tmp_path_factory.mktemp("documents")
    for name, candidates in (("RUN", 24), ("RUN2", 20)):
        write_run(root / "runs", name, candidates)
    (root / "submissions/tag").mkdir(parents=True)
    (root / NEEDS_A_FILE).write_text(BUNDLED["quest"])
    return root


def test_a_test_that_is_named_reads_the_page() -> None:
    for page, test in ELSEWHERE.items():
        text = (ROOT / test).read_text(encoding="utf-8")
        assert Path(page).name in text or Path(page).parent.name in text, page


@pytest.mark.parametrize("page", [p for p in DOCS if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_block_of_a_page_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = str(page.relative_to(ROOT))
    if name in ELSEWHERE:
        return
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VORTEX_RUNS", str(folder / "runs"))
    for language, text in blocks(page):
        match language:
            case "bash":
                for line in text.splitlines():
                    words = shlex.split(line)
                    assert words[0] == "vortex-search", line
                    again = ["--force"] if words[1] == "export" else []
                    result = CliRunner().invoke(app, [*words[1:], *again])
                    # The made-up runs' numbers are not what their programs give: verify must say so, and does.
                    wanted = (0, 1) if words[1] == "verify" else (0,)
                    assert result.exit_code in wanted, f"{line}\n{result.output}\n{result.exception!r}"
            case "python":
                exec(compile(text, name, "exec"), {"__name__": "block"})
            case "json":
                json.loads(text)
            case "yaml":
                yaml.safe_load(text)
            case _:
                raise AssertionError(f"{name}: nobody runs a block of {language or 'no language'}")


def test_results_say_when_and_on_what_they_were_measured() -> None:
    """A result page names its machine and date; one that cannot is marked, so that a reader is not misled."""
    lacking = []
    for page in sorted((ROOT / "benchmarks/results").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        dated = re.search(r"\b202\d-\d\d-\d\d\b", text)
        if not dated and "not dated" not in text.lower():
            lacking.append(page.name)
    assert lacking == []
