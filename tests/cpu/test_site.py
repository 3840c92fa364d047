"""What the documentation site shows beside the documents: pictures of diagrams, and how old each figure is."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import freshness

ROOT = Path(__file__).resolve().parents[2]
PAGES = dict(freshness.pages())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_result_page_says_when_and_on_what_it_was_measured(page: Path) -> None:
    found = PAGES[page]
    assert found is not None, (
        f"{page.name}: under the title goes the line that benchmarks/freshness.py describes"
    )
    missing = [path for path in found.paths if not (ROOT / path).exists()]
    assert not missing, f"{page.name} speaks of what is not there: {missing}"


def test_age_counts_what_changed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def commit(name: str) -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(
            git("log", "--oneline") if (tmp_path / ".git/refs/heads/main").exists() else ""
        )
        git("add", ".")
        git("commit", "-qm", name)
        return git("rev-parse", "--short=8", "HEAD")

    git("init", "-qb", "main")
    first = commit("kernels/a.py")
    commit("docs/b.md")
    monkeypatch.setattr(freshness, "ROOT", tmp_path)
    text = f"# T\n\n*Measured 2026-11-23, by commit {first}, on a 2.5 GHz CPU. Speaks of `kernels`, `engine/x.py`.*\n"
    found = freshness.stamp(text)
    assert found == freshness.Stamp("2026-11-23", first, "a 2.5 GHz CPU", ("kernels", "engine/x.py"))
    unchanged = freshness.age(found)
    assert unchanged is not None and unchanged.commits == 0 and "not changed" in unchanged.words
    commit("kernels/c.py")
    older = freshness.age(found)
    assert older is not None and older.commits == 1 and older.words.startswith("Older than the code")
    assert freshness.age(freshness.Stamp("2026-11-23", "0" * 8, "", ("kernels",))) is None
    assert freshness.stamp("# T\n\nMeasured some day.\n") is None


def test_every_diagram_has_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    site_pages = importlib.import_module("site_pages")
    blocks = {path: site_pages.mermaid_blocks(path) for path in (ROOT / "docs").rglob("*.md")}
    assert sum(map(len, blocks.values())) >= 3
    pictures = {path.stem for path in (ROOT / "docs/diagrams").glob("*.svg")}
    wanted = {site_pages.digest(block) for found in blocks.values() for block in found}
    assert wanted == pictures, "python docs/diagrams/render.py draws them"


def test_the_site_builds_without_a_warning_and_holds_programs_and_results(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (pip install '.[docs]')")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    quest = (tmp_path / "programs/quest.html").read_text(encoding="utf-8")
    assert "<math" in quest and '<svg class="flow"' in quest and "score_kernel" in quest
    assert "<svg" in (tmp_path / "architecture.html").read_text(encoding="utf-8")
    flows = PAGES[freshness.RESULTS / "flows.md"]
    if flows is not None and (old := freshness.age(flows)) is not None:  # else the history is not here
        assert old.words in (tmp_path / "results/flows.html").read_text(encoding="utf-8")
