"""How old each result page is beside the code it speaks of.

    python -m benchmarks.freshness

Under its title every page of `benchmarks/results` says when, by which commit and on what it was measured, and which
folders its figures are about:

    *Measured 2026-11-23, by commit 9195b99, on an NVIDIA H200. Speaks of `vortex_core/kernels`, `vortex_core/engine`.*

`by` is the commit that brought the figures, or an earlier one that the page names. What changed in those folders since
then is read from git, so the site marks a page as soon as its code moves on.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_LINE = re.compile(
    r"^\*Measured (?P<date>\d{4}-\d\d-\d\d), by commit (?P<commit>[0-9a-f]{7,40}), on (?P<machine>[^*\n]+?)\. "
    r"Speaks of (?P<paths>(?:`[\w./-]+`(?:, )?)+)\.\*$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Stamp:
    """What a result page says about itself."""

    date: str
    commit: str
    machine: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Age:
    """What became of the code since: commits that changed it, and the day of the last; None where git cannot tell."""

    commits: int
    last: str

    @property
    def words(self) -> str:
        """In a sentence."""
        if not self.commits:
            return "The code it speaks of has not changed since."
        times = "commit" if self.commits == 1 else "commits"
        return f"Older than the code it speaks of: {self.commits} {times} changed it since, the last on {self.last}."


def stamp(text: str) -> Stamp | None:
    """The line of a page, or None where it has none."""
    found = _LINE.search(text)
    if found is None:
        return None
    paths = tuple(re.findall(r"`([^`]+)`", found["paths"]))
    return Stamp(found["date"], found["commit"], found["machine"], paths)


def age(of: Stamp) -> Age | None:
    """How far the code has moved on since a page was measured; None without this repository's history."""
    try:
        said = subprocess.run(
            ["git", "log", "--format=%cs", f"{of.commit}..HEAD", "--", *of.paths],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    days = said.stdout.split()
    return Age(len(days), days[0] if days else of.date)


def pages() -> Iterator[tuple[Path, Stamp | None]]:
    """Every result page with what it says of itself."""
    for path in sorted(RESULTS.glob("*.md")):
        yield path, stamp(path.read_text(encoding="utf-8"))


def main() -> int:
    """Print the table; returns 1 where a page does not say when and on what it was measured."""
    missing = 0
    for path, found in pages():
        old = age(found) if found else None
        words = (
            old.words
            if old
            else "no history here"
            if found
            else "does not say when and on what it was measured"
        )
        missing += found is None
        print(f"{path.stem:28} {found.date if found else '-':10} {words}")
    return min(missing, 1)


if __name__ == "__main__":
    sys.exit(main())
