"""The documentation site in a real browser, light and dark: no error, no request elsewhere, nothing serious for axe.

Needs what the report's tests need, and `pip install '.[docs]'`; skipped with the reason where one is missing.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)
pytest.importorskip("mkdocs", reason="mkdocs is not installed (pip install '.[docs]')")
CHROMIUM = os.environ.get("VORTEX_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PAGES = ("index", "architecture", "programs/quest", "results/flows", "results/index")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.timeout(300),
]


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        """See the base."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    out = tmp_path_factory.mktemp("site")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(out)]
    subprocess.run(command, cwd=root, check=True, timeout=120)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(out)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_whole_quiet_and_accessible(site: str, browser: Any, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    errors: list[str] = []
    asked: list[str] = []
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("request", lambda r: asked.append(r.url))
    for name in PAGES:
        page.goto(f"{site}/{name}.html", wait_until="load")
        page.wait_for_timeout(150)  # site.js marks what scrolls after the theme has wrapped it
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280, name
        found = axe.Axe().run(page).response["violations"]
        bad = [
            (v["id"], v["nodes"][0]["html"][:120]) for v in found if v["impact"] in ("serious", "critical")
        ]
        assert bad == [], name
    assert errors == []
    assert [url for url in asked if not url.startswith((site, "blob:", "data:"))] == []
    page.goto(f"{site}/architecture.html")
    assert page.locator(".diagram svg").count() == 3
    context.close()
