"""The report in a real browser: no error, no request, and everything a reader does with it works.

Needs Chromium (`$VORTEX_CHROMIUM`, or on the path) and `pip install playwright axe-playwright-python`; skipped with the
reason where one is missing. Screenshots go to `$VORTEX_SHOTS` where it is set.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.log.run import campaign_of, open_run, read_state
from search.report.page import render
from tests.synthetic_runs import write_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
CHROMIUM = os.environ.get("VORTEX_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
MARK = "#plot-frontier [data-mark=dot] > *"
# Few candidates are a mark each; of thousands, all of one arm and verdict are one path.
SUBPATHS = "marks => marks.map(m => (m.getAttribute('d') ?? 'M').split(/(?=M)/).length)"
MANY = int(os.environ.get("VORTEX_MANY", "1500"))
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    found = {}
    for name, candidates in (("small", 30), ("many", MANY)):
        write_run(root, name, candidates, hostile=name == "small")
        with open_run(name, readonly=True, root=root) as run:
            state = read_state(run)
            found[name] = root / f"{name}.html"
            found[name].write_text(render(run, state, campaign_of(state)), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Opened:
    """A page, with what went wrong on it."""

    def __init__(self, browser: Any, url: str, width: int = 1400, dark: bool = False) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("dialog", lambda d: (self.errors.append("a dialog opened"), d.dismiss()))
        self.page.goto(url)
        self.page.wait_for_selector("body[data-whole]", timeout=60_000)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def opened(browser: Any, path: Path, **options: Any) -> Opened:
    return Opened(browser, path.as_uri(), **options)


def column(page: Any, n: int) -> list[str]:
    return page.eval_on_selector_all(
        f"#board tbody tr td:nth-child({n})", "cells => cells.map(c => c.textContent)"
    )


@pytest.mark.parametrize("name", ["small", "many"])
@pytest.mark.parametrize("width", [400, 800, 1400, 2000])
def test_it_loads_without_error_or_request_and_fits(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    with opened(browser, pages[name], width=width) as it:
        assert it.errors == []
        assert it.requests == [pages[name].as_uri()]
        assert it.page.evaluate("document.documentElement.scrollWidth") <= width
        drawn = it.page.eval_on_selector_all(MARK, SUBPATHS)
        assert sum(drawn) > (10 if name == "small" else 1000)
        if width >= 1400:  # then no column hides behind another
            assert it.page.evaluate(
                "(b => b.scrollWidth <= b.clientWidth)(document.querySelector('#board').parentNode)"
            )
        if shots := os.environ.get("VORTEX_SHOTS"):
            it.page.screenshot(path=f"{shots}/{name}_{width}.png", full_page=True)
        ready, whole = it.page.evaluate(
            "[document.body.dataset.ready, document.body.dataset.whole].map(Number)"
        )
        size = pages[name].stat().st_size
        print(f"{name} at {width}: table and plot after {ready} ms, all after {whole} ms, {size} bytes")


def test_ten_thousand_would_stay_below_three_megabytes(pages: dict[str, Path]) -> None:
    small, many = (pages[name].stat().st_size for name in ("small", "many"))
    assert small + (many - small) * 10_000 / MANY < 3_000_000 or many < 3_000_000


def test_headers_sort_and_fields_filter(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["many"]) as it:
        page = it.page
        page.click("#board th button:text-is('decode_speedup')")
        speeds = [float(v.split()[0]) for v in column(page, 7) if v != "-"]
        assert speeds == sorted(speeds, reverse=True) and len(speeds) == 50
        assert page.get_attribute("#board th:nth-child(7)", "aria-sort") == "descending"
        page.click("#board th button:text-is('decode_speedup')")
        assert page.get_attribute("#board th:nth-child(7)", "aria-sort") == "ascending"
        before = page.text_content("#count")
        page.fill("#find", "nsa_")
        assert all("nsa_" in v for v in column(page, 4)) and page.text_content("#count") != before
        page.fill("#find", "")
        page.select_option("#by-gate", "2")
        assert set(column(page, 5)) == {"broken"}
        page.select_option("#by-gate", "")
        page.click("#next")
        assert "page 2 of" in page.text_content("#where")
        assert it.errors == []


def test_hovering_tells_and_choosing_opens_the_program(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["small"]) as it:
        page = it.page
        mark = page.locator(MARK).first
        mark.scroll_into_view_if_needed()
        box = mark.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        # (Not wait_for_function: it evaluates a string, which the page's own policy refuses.)
        expect(page.locator("#plot-frontier")).to_contain_text("rank", timeout=5000)
        page.click("#board tbody tr:nth-child(3) td.name button")
        wanted = column(page, 3)[2]
        expect(page.locator("#one h3").first).to_contain_text(f"{wanted} ")
        one = page.locator("#one")
        assert one.locator("math").count() > 0 and one.locator("svg.flow").count() == 1
        assert "@triton.jit" in one.locator("details.kernels pre").text_content()
        text = one.inner_text()
        for part in (
            "Formula",
            "By task",
            "Recall by layer and head",
            "Step latency",
            "Launches of a sparse layer",
            "(worst)",
            "Generated kernels (Triton",
            "Where it pays (modelled: H200",
        ):
            assert part in text, part
        assert it.errors == []


def test_what_the_page_does_not_open_with_is_there_when_asked_for(
    browser: Any, pages: dict[str, Path]
) -> None:
    with opened(browser, pages["many"]) as it:
        page = it.page
        assert page.text_content("#pages") != "", "unpacked before anybody asked"
        first = page.locator("#one h3").first.text_content()
        page.click("#board tbody tr:nth-child(7) td.name button")
        wanted = column(page, 3)[6]
        expect(page.locator("#one h3").first).to_contain_text(f"{wanted} ")
        assert page.locator("#one h3").first.text_content() != first
        assert page.locator("#one math").count() > 0 and page.locator("#one svg.flow").count() == 1
        assert page.text_content("#pages") == ""
        page.locator("#plot-frontier").scroll_into_view_if_needed()
        box = page.locator("#plot-frontier svg").last.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(page.locator("#plot-frontier")).to_contain_text("rank", timeout=5000)
        assert it.errors == []


def test_lineage_opens_and_shows_a_difference(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["small"]) as it:
        page = it.page
        page.locator("#tree details:not([open]) > summary").first.click()
        assert page.locator("#tree details[open] ul li").count() > 0
        child = page.locator("#tree details[open] ul li > button").first
        name = child.text_content()
        child.click()
        expect(page.locator("#one h3").first).to_have_text(name)
        assert page.locator("#one details.diff").count() >= 1
        page.locator("#one details.diff").first.evaluate("d => d.open = true")
        assert page.locator("#one .diff .add").count() + page.locator("#one .diff .cut").count() > 0


def test_dark_follows_the_system_and_the_button(browser: Any, pages: dict[str, Path]) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, pages["small"], dark=True) as it:
        dark = it.page.evaluate(paper)
        it.page.click("#theme")
        assert it.page.text_content("#theme") == "Theme: light"
        assert it.page.evaluate(paper) == "rgb(255, 255, 255)" != dark
    with opened(browser, pages["small"]) as it:
        it.page.click("#theme")
        it.page.click("#theme")
        assert it.page.evaluate(paper) == dark


def test_a_keyboard_is_enough(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["small"]) as it:
        page = it.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.focus("#board th:nth-child(4) button")
        page.keyboard.press("Enter")
        assert page.get_attribute("#board th:nth-child(4)", "aria-sort") == "ascending"
        page.focus("#board tbody tr:nth-child(2) td.name button")
        page.keyboard.press("Space")
        wanted = column(page, 3)[1]
        expect(page.locator("#one h3").first).to_contain_text(f"{wanted} ")
        page.focus("#tree summary >> nth=0")
        before = page.locator("#tree details[open]").count()
        page.keyboard.press("Enter")
        assert page.locator("#tree details[open]").count() != before


def test_on_paper_nothing_is_cut(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["small"], width=760) as it:  # a sheet of A4
        it.page.emulate_media(media="print")
        assert it.page.evaluate("document.documentElement.scrollWidth") <= 760
        wide = "[...document.querySelectorAll('#board, pre')].filter(n => n.getBoundingClientRect().right > 760).length"
        assert it.page.evaluate(wide) == 0
        assert not it.page.is_visible("#filters") and not it.page.is_visible("nav")


def test_without_its_script_the_page_says_what_won(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["small"].as_uri())
    assert "Winner: " in page.inner_text(".statement") and page.locator("#board tbody tr").count() == 20
    assert "kept, unproven" in column_text(page, 4) and not page.is_visible("#filters")
    context.close()


def column_text(page: Any, n: int) -> list[str]:
    return page.locator(f"#board tbody tr td:nth-child({n})").all_inner_texts()


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(browser: Any, pages: dict[str, Path], dark: bool) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    with opened(browser, pages["small"], dark=dark) as it:
        found = axe.Axe().run(it.page).response["violations"]
        bad = [
            (v["impact"], v["id"], v["nodes"][0]["html"][:120])
            for v in found
            if v["impact"] in ("serious", "critical")
        ]
        assert bad == []


def test_the_live_page_grows_with_its_run(browser: Any, tmp_path: Path) -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed (pip install '.[ui]')")
    from search.live.app import build
    from search.log import events as ev

    write_run(tmp_path, "open", 12, finish=False)
    server = uvicorn.Server(uvicorn.Config(build(tmp_path), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with Opened(browser, f"http://127.0.0.1:{port}/runs/open/") as it:
            assert all(r.startswith(f"http://127.0.0.1:{port}/") for r in it.requests)
            before = it.page.get_attribute("body", "data-live")
            with open_run("open", readonly=False, root=tmp_path) as run:
                run.store.append(ev.CampaignPaused("a pause"))
            it.page.wait_for_function("b => document.body.dataset.live !== b", arg=before, timeout=20_000)
            assert it.errors == []
    finally:
        server.should_exit = True
        thread.join(10)
