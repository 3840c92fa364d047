"""The report's data and its file: complete, small, escaped, and drawn by the libraries that are named."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from search.campaign.archive import Archive
from search.campaign.tiers import tie, tiers
from search.log.run import open_run, read_state
from search.report import data
from search.report.page import render
from tests.synthetic_runs import CONFIG, HOSTILE, write_run

VENDOR = Path(data.__file__).with_name("vendor")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_run(root, "small", 30, hostile=True)
    write_run(root, "open", 12, finish=False)
    return root


@pytest.fixture(scope="module")
def page(runs: Path) -> str:
    with open_run("small", readonly=True, root=runs) as run:
        return render(run, read_state(run), CONFIG)


def packed(html: str, name: str) -> Any:
    (text,) = re.findall(rf'<div id="{name}" hidden>([A-Za-z0-9+/=]+)</div>', html)
    return json.loads(zlib.decompress(base64.b64decode(text)))


def test_hostile_names_are_text(page: str) -> None:
    assert HOSTILE.split("|")[0] not in page
    assert "onerror=alert(1)&gt;" in page
    names = {c["n"] for c in packed(page, "data")["candidates"]}
    assert any(n.startswith("<img") for n in names), "as data it is what it was"
    assert not any(
        "\x1b" in text for c in packed(page, "data")["candidates"] for text in (c["n"], c.get("i", ""))
    )


def test_every_candidate_is_there_once_with_its_numbers(runs: Path, page: str) -> None:
    with open_run("small", readonly=True, root=runs) as run:
        state = read_state(run)
    found = packed(page, "data")["candidates"]
    assert sorted(c["id"] for c in found) == sorted(c.label for c in state.candidates.values())
    by_id = {c["id"]: c for c in found}
    for c in state.candidates.values():
        assert [found[i]["id"] for i in by_id[c.label]["p"]] == [state.candidates[k].label for k in c.parents]
    first = next(c for c in found if c.get("r") == 1)
    assert len(first["s"]) == 3 and first["s"][1] < first["s"][0] < first["s"][2]
    assert first["w"]["accuracy"] <= first["w"]["dense"]


def test_a_program_has_its_page_and_its_source(page: str) -> None:
    more, rows = packed(page, "pages"), packed(page, "data")["candidates"]
    assert set(more["sources"]) == {c["id"] for c in rows}
    winner = more["pages"][packed(page, "data")["winner"]]
    assert winner["formula"] and winner["says"] and winner["picture"].startswith("<svg")
    assert len(winner["heads"]) == 30 and len(winner["over"]) == 2
    assert {t["task"] for t in winner["tasks"]} == {"needle@2048", "multikey@4096"}


def test_the_headline_says_what_won_and_where(page: str) -> None:
    assert "NVIDIA H999" in page and "fresh items" in page and "95% interval" in page
    assert "vortex-search export small --winner" in page


def test_an_open_run_claims_nothing(runs: Path) -> None:
    with open_run("open", readonly=True, root=runs) as run:
        html = render(run, read_state(run), CONFIG)
    assert "no program has been shown to win" in html
    assert packed(html, "data")["winner"] is None


def test_tiers_are_runs_of_the_ranking_that_tie_with_their_first(runs: Path) -> None:
    with open_run("small", readonly=True, root=runs) as run:
        archive = Archive(read_state(run), CONFIG.objective)
    found = tiers(archive.entries)
    order = [found[e.candidate.key] for e in archive.entries]
    assert order == sorted(order) and order[0] == 1 and max(order) > 1
    firsts = {t: e for e in reversed(archive.entries) if (t := found[e.candidate.key])}
    assert all(tie(firsts[found[e.candidate.key]], e) for e in archive.entries)


def test_what_travels_inside_is_what_was_released() -> None:
    listed = dict(
        re.findall(
            r"^\| (\S+\.js) \|.*\| ([0-9a-f]{64}) \|$", (VENDOR / "README.md").read_text(), re.MULTILINE
        )
    )
    assert set(listed) == {p.name for p in VENDOR.glob("*.js")}
    for name, digest in listed.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest
