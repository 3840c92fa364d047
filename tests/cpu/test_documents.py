"""Documents: links lead somewhere, named files exist, commands are commands, the pictures are the tests' own arrows."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.null.test_layout import ARROWS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    file.relative_to(ROOT)
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "examples/*.md",
        ".github/**/*.md",
        "evaluators/*.md",
        "runs/*.md",
    )
    for file in ROOT.glob(pattern)
)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
# A path in backticks: of this repository if its first part is a folder of the root.
PATH = re.compile(r"`([A-Za-z_.][\w.-]*(?:/[\w.*-]+)+/?)`")
NAMED = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "examples/README.md")
# Folders that exist only after something ran.
MADE = (".venv", "runs/bench", "runs/NAME", "runs/example")


@cache
def text(page: Path) -> str:
    """A page's text."""
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """The anchors that the headings of a page's text make, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(file: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    page = file.read_text(encoding="utf-8")
    for link in LINK.findall(re.sub(r"```.*?```", "", page, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = file.parent / name if name else file
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(ROOT / page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A word, and `more`\n[a](other.md) [b](#a-word-and-more) [c](#b) [d](https://x.org) ```[e](f)```"
    )
    assert broken_links(page) == ["other.md", "#b"]


@pytest.mark.parametrize("page", [Path(name) for name in NAMED], ids=str)
def test_files_that_are_named_exist(page: Path) -> None:
    tops = {path.name for path in ROOT.iterdir()}
    rooms = {path.name for path in (ROOT / "vortex_core").iterdir()}
    missing = []
    for name in PATH.findall(text(page)):
        first = name.split("/")[0]
        if name.startswith(MADE) or (first not in tops and first not in rooms):
            continue
        bases = [ROOT] if first in tops else [ROOT / "vortex_core"]
        if not any(list(base.glob(name.rstrip("/"))) for base in bases):
            missing.append(name)
    assert missing == []


def test_every_folder_has_a_row_and_every_row_starts_somewhere() -> None:
    rows = re.findall(
        r"^\| `([\w/]+)/` \| .+? \| (.+?) \|$", text(Path("docs/architecture.md")), re.MULTILINE
    )
    folders = {folder for folder, _ in rows}
    hidden = {"__pycache__", "docs", "examples"}
    tops = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")} - hidden
    rooms = {f"vortex_core/{p.name}" for p in (ROOT / "vortex_core").iterdir() if p.is_dir()}
    tracked = {name for name in (tops - {"vortex_core"}) | rooms if any((ROOT / name).rglob("*.*"))}
    assert {
        name for name in tracked if not name.endswith(("__pycache__", ".egg-info", "build", "dist"))
    } == folders
    for folder, starts in rows:
        for name in re.findall(r"`([\w./]+)`", starts):
            assert (ROOT / folder / name).is_file(), f"{folder}/{name}"


def test_the_packages_picture_is_the_arrows_that_are_enforced() -> None:
    picture = re.findall(r"```mermaid\n(.*?)```", text(Path("docs/architecture.md")), re.DOTALL)[0]
    drawn = set(re.findall(r"^\s+(\w+) --> (\w+)$", picture, re.MULTILINE))
    allowed = {(a, prefix.split(".")[0]) for a, prefixes in ARROWS.items() for prefix in prefixes}
    assert drawn == {(a, b) for a, b in allowed if a != b}


def commands(page: Path) -> list[list[str]]:
    """Every `vortex-search ...` of a page, as words."""
    found = re.findall(r"^(?:\.venv/bin/)?vortex-search .*$", text(page), re.MULTILINE)
    found += re.findall(r"`(vortex-search [^`]*)`", text(page))
    return [shlex.split(re.sub(r"[\[\]|]|\s+#.*$", " ", line).replace("...", ""))[1:] for line in found]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=str)
def test_commands_and_options_are_those_there_are(page: Path) -> None:
    from search.cli.app import app

    top: Any = typer.main.get_command(app)
    for words in commands(page):
        command = top
        known = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word in getattr(command, "commands", {}):
                command = command.commands[word]
                known |= {option for parameter in command.params for option in parameter.opts}
            elif word.startswith("--"):
                assert word.split("=")[0] in known, f"vortex-search {' '.join(words)}"
        if words and not words[0].startswith("-"):
            assert words[0] in top.commands, f"vortex-search {' '.join(words)}"


def test_codes_are_those_there_are() -> None:
    known = set(re.findall(r"\bV[A-Z]\d{3}\b", text(Path("docs/errors.md"))))
    assert len(known) > 100
    for page in PAGES:
        assert set(re.findall(r"\bV[A-Z]\d{3}\b", text(page))) <= known, page


def test_the_program_of_the_first_page_is_one() -> None:
    from vortex_core import library
    from vortex_core.sandbox.load import trace_source

    (program,) = re.findall(r"```python\n(.*?)```", text(Path("docs/index.md")), re.DOTALL)
    traced = trace_source(program, "index.md")
    assert traced.warnings == ()
    assert traced.ir_hash == library.load("quest").ir_hash


def test_make_targets_are_those_there_are() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for page in PAGES for word in re.findall(r"(?:^|`)make ([a-z]+)", text(page), re.MULTILINE)}
    assert len(named) > 3
    assert named <= targets


def test_the_glossary_has_the_words_that_commands_print() -> None:
    from search.campaign.archive import Verdict
    from search.tables import VERDICTS

    glossary = text(Path("CONTRIBUTING.md")).split("## Glossary")[1].lower()
    words = {re.sub(r"\[[^\]]*\]", "", shown) for shown in VERDICTS.values()} | {
        v.name.lower() for v in Verdict
    }
    for word in words:
        for part in word.split(","):
            assert part.strip() in glossary, word
