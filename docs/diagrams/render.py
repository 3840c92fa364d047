"""Draws the documents' diagrams: every mermaid block becomes docs/diagrams/HASH.svg, which the site shows in its place.

    python docs/diagrams/render.py path/to/mermaid.min.js

Only whoever changes a diagram runs this. It needs `npm install mermaid`, Chromium (`$VORTEX_CHROMIUM`, or on the path)
and `pip install playwright`. A document read elsewhere shows the block itself, so nothing else depends on the pictures.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from site_pages import digest, mermaid_blocks  # noqa: E402

# mermaid wants numbers; the site wants its own colours, light and dark. Each number stands for one of them.
COLOURS = {
    "#f1f2f3": "var(--md-code-bg-color, #f5f5f5)",
    "#515253": "var(--md-default-fg-color--light, #555)",
    "#212223": "var(--md-default-fg-color, #222)",
    "#fafbfc": "var(--md-default-bg-color, #fff)",
}
THEME = {
    "primaryColor": "#f1f2f3", "primaryBorderColor": "#515253", "primaryTextColor": "#212223", "lineColor": "#515253",
    "textColor": "#212223", "edgeLabelBackground": "#fafbfc", "tertiaryColor": "#fafbfc", "fontSize": "14px",
    "fontFamily": "sans-serif",
}  # fmt: skip


def main(library: str) -> None:
    """Draw what has no picture, and remove pictures of diagrams that are gone."""
    from playwright.sync_api import sync_playwright

    wanted = {
        digest(block): block for path in sorted(HERE.parent.rglob("*.md")) for block in mermaid_blocks(path)
    }
    for old in HERE.glob("*.svg"):
        if old.stem not in wanted:
            old.unlink()
    chromium = os.environ.get("VORTEX_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content("<body></body>")
        page.add_script_tag(path=library)
        for name, block in wanted.items():
            (HERE / f"{name}.svg").write_text(_drawn(page, name, block), encoding="utf-8")
            print(f"{name}.svg")
        browser.close()


def _drawn(page: Any, name: str, block: str) -> str:
    settings = {
        "startOnLoad": False, "theme": "base", "themeVariables": THEME, "htmlLabels": False, "securityLevel": "strict",
        "deterministicIds": True, "flowchart": {"htmlLabels": False, "useMaxWidth": True, "wrappingWidth": 260},
    }  # fmt: skip
    svg: str = page.evaluate(
        "async ([s, id, text]) => { mermaid.initialize(s); return (await mermaid.render(id, text)).svg; }",
        [settings, f"d{name}", block],
    )
    for number, colour in COLOURS.items():
        red, green, blue = (int(number[i : i + 2], 16) for i in (1, 3, 5))
        svg = re.sub(rf"{number}|rgba?\({red}, ?{green}, ?{blue}(, ?[\d.]+)?\)", colour, svg)
    return re.sub(r"\n\s*", " ", svg) + "\n"


if __name__ == "__main__":
    main(sys.argv[1])
