"""For the site only: what mkdocs shows differently from a reader of the files.

- Result pages (`benchmarks/results`) are part of it, each with what became of its code since; so is a page for every
  program of the library, made from its IR.
- A link to another file outside docs/ (CONTRIBUTING, a result, source) becomes its path as text.
- A mermaid block becomes the picture that `docs/diagrams/render.py` drew of it, with the block as its text.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

    from benchmarks.freshness import Stamp

_HERE = Path(__file__).resolve().parent
_LOG = logging.getLogger("mkdocs.plugins.vortex")
_RESULT = re.compile(r"(?:\.\./)+benchmarks/results/([\w.-]+\.md)(#[\w-]*)?")
_OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)\s]+)\)")
_MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def on_files(files: Files, config: Any, **others: object) -> Files:
    """Called by mkdocs once: adds the pages that are no files of docs/."""
    from mkdocs.structure.files import File

    sys.path[:0] = [str(_HERE), str(_HERE.parent)]
    from site_programs import program_pages

    from benchmarks import freshness

    made = {f"results/{path.name}": _dated(path, found) for path, found in freshness.pages()}
    rows = [_row(path, found) for path, found in freshness.pages()]
    made["results/index.md"] = _INDEX + "\n".join(rows) + "\n"
    for where, text in {**made, **program_pages()}.items():
        files.append(File.generated(config, where, content=text))
    return files


_INDEX = """# What was measured

Every table with its command, day, commit and machine. *Older*: code that the page speaks of was changed since.
`python -m benchmarks.freshness` prints the same.

| page | measured | on | its code since |
|---|---|---|---|
"""


def _row(path: Path, found: Stamp | None) -> str:
    title = path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
    if found is None:
        return f"| [{title}]({path.name}) | not said | not said | |"
    return f"| [{title}]({path.name}) | {found.date}, {found.commit} | {found.machine} | {_since(found)} |"


def _since(found: Stamp) -> str:
    from benchmarks.freshness import age

    old = age(found)
    if old is None:
        return "not known: built without the repository's history"
    return f"**older**: {old.commits} commits, the last {old.last}" if old.commits else "unchanged"


def _dated(path: Path, found: Stamp | None) -> str:
    """A result page with a mark under its title where its code has moved on."""
    from benchmarks.freshness import age

    title, _, rest = path.read_text(encoding="utf-8").partition("\n")
    old = age(found) if found else None
    if found is None:
        said = "This page does not say when and on what it was measured."
    elif old is None or not old.commits:
        return f"{title}\n{rest}"
    else:
        said = old.words
    return f'{title}\n\n<p class="older" role="note"><strong>{escape(said)}</strong></p>\n{rest}'


def on_page_markdown(markdown: str, page: object, **others: object) -> str:
    """Called by mkdocs for every page."""
    where = str(page.file.src_uri)  # type: ignore[attr-defined]
    depth = where.count("/")

    def plain(match: re.Match[str]) -> str:
        if result := _RESULT.fullmatch(match[2]):
            return f"[{match[1]}]({'../' * depth}results/{result[1]}{result[2] or ''})"
        ups = len(re.findall(r"\.\./", match[2]))
        return match[0] if ups <= depth else f"{match[1]} (`{match[2].replace('../', '')}`)"

    return _OUTSIDE.sub(plain, _MERMAID.sub(lambda match: _picture(match, where), markdown))


def on_post_page(output: str, **others: object) -> str:
    """Names that the theme leaves out, for screen readers."""
    named = output.replace(
        'data-md-component="search" role="dialog"',
        'data-md-component="search" role="dialog" aria-label="Search"',
    )
    return named.replace(
        'class="md-search__options" aria-label="Search"',
        'class="md-search__options" aria-label="Search options"',
    )


def mermaid_blocks(path: Path) -> list[str]:
    """The diagrams of a document."""
    return _MERMAID.findall(path.read_text(encoding="utf-8"))


def digest(block: str) -> str:
    """The name of a diagram's picture."""
    return hashlib.sha256(block.encode()).hexdigest()[:12]


def _picture(match: re.Match[str], where: str) -> str:
    name = f"{digest(match[1])}.svg"
    try:
        svg = (_HERE / "diagrams" / name).read_text(encoding="utf-8").strip()
    except OSError:
        _LOG.warning("%s: no diagrams/%s: docs/diagrams/render.py draws it", where, name)
        return match[0]
    about = _HEADING.findall(match.string[: match.start()])[-1:] or ["this page"]
    return (
        f'<div class="diagram" role="img" aria-label="Diagram: {escape(about[0])}">{svg}</div>\n\n'
        f'<details><summary>The diagram as text</summary><pre tabindex="0">{escape(match[1])}</pre></details>'
    )
