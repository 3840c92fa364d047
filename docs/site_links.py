"""For the site only: a link to a file outside docs/ (CONTRIBUTING, a result, source) becomes its path as text.

The repository's own pages link to files beside docs/; the site does not hold those.
"""

from __future__ import annotations

import re

_OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)\s]+)\)")


def on_page_markdown(markdown: str, page: object, **others: object) -> str:
    """Called by mkdocs for every page."""
    depth = str(page.file.src_uri).count("/")  # type: ignore[attr-defined]

    def plain(match: re.Match[str]) -> str:
        ups = len(re.findall(r"\.\./", match[2]))
        return match[0] if ups <= depth else f"{match[1]} (`{match[2].replace('../', '')}`)"

    return _OUTSIDE.sub(plain, markdown)
