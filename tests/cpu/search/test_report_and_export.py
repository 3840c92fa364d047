"""Report, export and verification of a simulated run: complete, self-contained, escaped, honest."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from evaluators.certify import Certificate, rate_bound
from search.campaign.archive import Archive
from search.campaign.campaign import Campaign
from search.commands import certificate, checksums
from search.commands.export import choose, export, remove_export
from search.commands.verify import Check, verify
from search.config import CampaignConfig
from search.log import events as ev
from search.log.run import find_candidate, open_run, read_state
from search.log.state import CampaignState
from search.report.page import render
from search.simulation import SimulatedExecutor, SimulatedProposer, simulated_library
from vortex_core.errors import VortexError

CONFIG = CampaignConfig.model_validate(
    {
        "description": "<script>alert(1)</script>",
        "references": ["dense", "quest", "block_topk"],
        "objective": {"gates": [{"metric": "accuracy_delta", "at_least": -0.25}], "margin": 0.1},
        "arms": [
            {"name": "evolve", "strategy": {"kind": "evolve"}, "share": 2},
            {"name": "random", "strategy": {"kind": "random"}, "control": True},
        ],
        "limits": {"candidates": 8},
    }
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one finished simulation."""
    root = tmp_path_factory.mktemp("runs")
    settings = {"campaign": CONFIG.model_dump(mode="json"), "model": "sim", "seed": 0, "proposers": {}}
    started = ev.CampaignStarted("sim", settings, {"digest": "d"}, {"python": "3"}, {"processor": "p"})
    session = ev.SessionStarted(1, {"limits": CONFIG.limits.model_dump()})
    with open_run("sim", readonly=False, root=root) as run:
        campaign = Campaign(
            run,
            CONFIG,
            SimulatedExecutor(),
            {"evolve": SimulatedProposer("<b>llm</b>"), "random": SimulatedProposer("grammar")},
            seed=0,
            model={},
            library=simulated_library,
        )
        asyncio.run(campaign.run_to_end(started, session))
    return root


def test_the_report_is_one_file_that_needs_nothing_else(finished: Path):
    with open_run("sim", readonly=True, root=finished) as run:
        html = render(run, read_state(run), CONFIG)
    markup = re.sub(r"<script>.*?</script>|<style>.*?</style>", "", html, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", markup), "it loads something"
    for part in ("frontier", "leaderboard", "program", "progress", "lineage", "failures", "environment"):
        assert f'id="{part}"' in html


def test_text_from_outside_is_escaped_in_the_report(finished: Path):
    with open_run("sim", readonly=True, root=finished) as run:
        html = render(run, read_state(run), CONFIG)
    assert "<script>alert(1)" not in html
    assert "&lt;b&gt;llm&lt;/b&gt;" in html


def test_the_report_states_the_comparisons(finished: Path):
    with open_run("sim", readonly=True, root=finished) as run:
        state = read_state(run)
        html = render(run, state, CONFIG)
    assert state.finished is not None
    assert state.finished.summary["control"]["words"].split(" by ")[0] in html
    assert "sealed items" in html


def test_an_unfinished_run_claims_nothing(finished: Path, tmp_path: Path):
    with open_run("sim", readonly=True, root=finished) as run:
        records = list(run.store.read())[:40]
        html = render(run, CampaignState.fold(records), CONFIG)
    assert "no program has been shown to win" in html


def _export(finished: Path, out: Path, *, force: bool = False) -> dict[str, Any]:
    with open_run("sim", readonly=True, root=finished) as run:
        state = read_state(run)
        export(run, state, CONFIG, Archive(state, CONFIG.objective).entries[0], out, force=force)
    card: dict[str, Any] = json.loads((out / "card.json").read_text())
    return card


def _files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_an_export_holds_what_its_readme_lists(finished: Path, tmp_path: Path):
    card = _export(finished, tmp_path / "out")
    listed = set(
        re.findall(r"^\| `([\w/.]+)` \|", (tmp_path / "out" / "README.md").read_text(), re.MULTILINE)
    )
    wheels = {name for name in _files(tmp_path / "out") if name.endswith(".whl")}
    assert len(wheels) == 1
    assert listed | {"README.md"} | wheels == _files(tmp_path / "out")
    assert {"search", "fresh"} <= set(card["metrics"])
    delta = card["metrics"]["fresh"]["accuracy_delta"]
    assert delta["low"] < delta["value"] < delta["high"]
    assert card["seeds"]["search"] != card["seeds"]["fresh"]
    assert len(card["items"]["fresh"]["needle"]) == 40
    text = (tmp_path / "out" / "card.md").read_text()
    assert "| modelled_speedup_h200 |" in text
    assert "| modelled |" in text
    assert "## Limits" in text and "Modelled, never measured: modelled_speedup_h200" in text


def test_checksums_notice_any_change_and_kernels_have_a_hash(finished: Path, tmp_path: Path):
    out = tmp_path / "out"
    _export(finished, out)
    assert checksums.disagreements(out) == []
    assert set(checksums.read(out)) | {checksums.NAME} == _files(out)
    kernels = json.loads((out / "kernels/kernels.json").read_text())
    text = (out / "kernels/kernels.py").read_text()
    assert kernels["sha256"] == hashlib.sha256(text.encode()).hexdigest() and "@triton.jit" in text
    (out / "card.md").write_text("better")
    (out / "kernels/kernels.py").unlink()
    assert sorted(checksums.disagreements(out)) == ["card.md was changed", "kernels/kernels.py is missing"]


def test_the_wheel_installs_and_gives_the_flow(finished: Path, tmp_path: Path):
    card = _export(finished, tmp_path / "out")
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
        record = file.read(next(n for n in file.namelist() if n.endswith("/RECORD"))).decode()
        assert {line.split(",")[0] for line in record.splitlines()} == set(file.namelist())
    module = next(p for p in (tmp_path / "site").iterdir() if not p.name.endswith(".dist-info")).name
    said = subprocess.run(
        [sys.executable, "-c", f"import {module} as m; print(m.load().key)"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(Path.cwd())])},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert said.stdout.strip() == card["key"]


def _certificate(items: Path, card: dict[str, Any]) -> dict[str, Any]:
    """What `certify` would make of 40 items of which the flow lost two."""
    asked = {"prompt": "{q}", "answer": "`=cmd()` <b>", "metric": "contains", "max_new_tokens": 8}
    found = Certificate(
        "sim", card["key"], card["ir_hash"], "sim", 40, 30, 29, 2, 1, 0.9, rate_bound(2, 40), (1, 1)
    )
    return certificate.document(found, items, checksums.digest(items), asked, "a CPU")


def _first_checks(out: Path) -> dict[str, Check]:
    """What `verify` says before it comes to the plan, which this simulation lacks."""
    return {check.name: check for check in itertools.islice(verify(out, measure=False), 6)}


def test_a_certificate_is_carried_by_its_export_and_checked(finished: Path, tmp_path: Path):
    items, out = tmp_path / "<i>mine.jsonl", tmp_path / "out"
    items.write_text("{}\n")
    made = _certificate(items, _export(finished, out))
    (out / "card.md").write_text("my own words")
    certificate.keep_in_export(out, made)
    assert (out / "card.md.kept").read_text() == "my own words"
    text = (out / "card.md").read_text()
    assert "loses at most 12" in text and "No certificate" not in text and made["items_sha256"] in text
    assert "<i>" not in text and "<b>" not in text
    assert checksums.disagreements(out) == [] and "`certificate.json`" in (out / "README.md").read_text()
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        assert any(name.endswith("/certificate.json") for name in file.namelist())
    checks = _first_checks(out)
    assert checks["certificate"].agrees and checks["certificate"].words == made["words"]
    (out / "certificate.json").write_text(json.dumps(made | {"lost": 0}))
    checks = _first_checks(out)
    assert not checks["certificate"].agrees and not checks["checksums"].agrees
    with pytest.raises(VortexError, match="VS013"):
        certificate.keep_in_export(out, made | {"key": "another"})
    (out / "flow.py").write_text("changed")
    with pytest.raises(VortexError, match=r"VS013.*flow.py was changed"):
        certificate.keep_in_export(out, made)


def test_a_run_hands_its_certificate_to_its_exports(finished: Path, tmp_path: Path):
    card = _export(finished, tmp_path / "first")
    assert not (tmp_path / "first/certificate.json").exists()
    (tmp_path / "mine.jsonl").write_text("{}\n")
    kept = certificate.keep_in_run(finished / "sim", _certificate(tmp_path / "mine.jsonl", card))
    try:
        _export(finished, tmp_path / "second")
    finally:
        shutil.rmtree(kept.parent)
    assert json.loads((tmp_path / "second/certificate.json").read_text())["key"] == card["key"]


def test_an_export_overwrites_only_when_told_and_only_its_own(finished: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("x")
    with pytest.raises(VortexError) as error:
        _export(finished, out)
    assert error.value.code == "VS011"
    with pytest.raises(VortexError, match=r"VS011.*it is no export"):
        _export(finished, out, force=True)
    (out / "precious.txt").unlink()
    _export(finished, out)
    (out / "precious.txt").write_text("x")
    (out / "kernels/mine.py").write_text("x")
    (out / "flow.py").write_text("changed")
    _export(finished, out, force=True)
    assert (out / "precious.txt").read_text() == (out / "kernels/mine.py").read_text() == "x"
    assert (out / "flow.py").read_text() != "changed" and (out / "flow.py.kept").read_text() == "changed"
    assert checksums.disagreements(out) == []
    remove_export(out)
    assert _files(out) == {"precious.txt", "kernels/mine.py", "flow.py.kept"}


def test_an_export_does_not_write_through_links(finished: Path, tmp_path: Path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere.txt"
    _export(finished, out)
    (out / "serve.py").unlink()
    (out / "serve.py").symlink_to(elsewhere)
    elsewhere.write_text("theirs")
    with pytest.raises(VortexError, match=r"VS011.*serve.py there is not the export's"):
        _export(finished, out, force=True)
    assert elsewhere.read_text() == "theirs"


def test_a_manifest_of_others_removes_nothing_outside(tmp_path: Path):
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.mkdir()
    (outside / "a.txt").write_text("x")
    (out / "link").symlink_to(outside)
    (out / checksums.NAME).write_text(
        f"{checksums.digest(outside / 'a.txt')}  ../outside/a.txt\n"
        f"{checksums.digest(outside / 'a.txt')}  link/a.txt\n"
        f"{checksums.digest(outside / 'a.txt')}  {outside}/a.txt\n"
    )
    assert checksums.remove(out) == []
    assert (outside / "a.txt").exists()


def test_an_export_says_what_may_be_said_of_it(finished: Path, tmp_path: Path):
    with open_run("sim", readonly=True, root=finished) as run:
        state = read_state(run)
        archive = Archive(state, CONFIG.objective)
        winner = choose(archive, "sim", winner=True)
        loser = next(e for e in archive.entries if e.rank and e is not winner)
        for name, entry in (("winner", winner), ("loser", loser)):
            export(run, state, CONFIG, entry, tmp_path / name)
        assert state.finished is not None and winner.candidate.key == state.finished.winner
        state.finished = None
        with pytest.raises(VortexError) as error:
            choose(archive, "sim", winner=True)
        assert error.value.code == "VS044"
    said = {name: (tmp_path / name / "README.md").read_text() for name in ("winner", "loser")}
    assert "It won its campaign." in said["winner"]
    assert "sealed items" in said["winner"]
    assert "did not win" in said["loser"] or "not fit for use" in said["loser"]


def test_candidates_are_found_by_label_number_key_and_name(finished: Path):
    with open_run("sim", readonly=True, root=finished) as run:
        state = read_state(run)
        third = next(c for c in state.candidates.values() if c.number == 3)
        for wanted in ("c003", "3", third.key, third.key[:8], "block_topk"):
            assert find_candidate(run, state, wanted) is third
        with pytest.raises(VortexError) as error:
            find_candidate(run, state, "block_topc")
    assert error.value.code == "VS006"
    assert "block_topk" in error.value.remedy


def test_reading_a_run_changes_nothing(finished: Path):
    folder = finished / "sim"
    before = {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and "sqlite-" not in p.name}
    with open_run("sim", readonly=True, root=finished) as run:
        render(run, read_state(run), CONFIG)
    after = {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and "sqlite-" not in p.name}
    assert before == after


def test_unknown_runs_are_named_with_near_ones(finished: Path):
    with pytest.raises(VortexError) as error, open_run("sin", readonly=True, root=finished):
        pass
    assert error.value.code == "VS001"
    assert "sim" in error.value.remedy


def test_a_run_name_cannot_leave_its_folder():
    with pytest.raises(VortexError) as error, open_run("../evil", readonly=False, root=Path("nowhere")):
        pass
    assert error.value.code == "VS010"


def test_results_of_a_gpu_are_not_checked_on_a_cpu(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from search.commands import verify

    card = _export(finished, tmp_path / "out")
    assert card["devices"] == [{"kind": "cpu", "name": "simulated", "host": "simulated", "ranks": 1}]
    assert verify._device(card) == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    on_gpu = card | {"devices": [{"kind": "cuda", "name": "NVIDIA H100", "ranks": 2}]}
    with pytest.raises(VortexError, match="2 x NVIDIA H100") as error:
        verify._device(on_gpu)
    assert error.value.code == "VS045"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert verify._device(on_gpu) == "cuda"


def test_a_report_names_what_was_measured_on_and_no_idle_gpu(finished: Path):
    with open_run("sim", readonly=True, root=finished) as run:
        state = read_state(run)
        assert state.started is not None
        state.started.machine["gpus"] = ["NVIDIA H999"]
        html = render(run, state, CONFIG)
    assert "H999" not in html
    assert "<dt>measured on</dt><dd>simulated</dd>" in html
    assert "simulated busy" in html
