"""`vortex-search serve` and the `serve.py` of an export, up to the command line they would run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from search.campaign.archive import Archive
from search.cli import main
from search.commands.export import export
from search.commands.serve import find_flow
from search.log.files import ContentStore
from search.log.run import open_run, read_state
from tests.cpu.search.test_report_and_export import CONFIG, finished
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.serving.bundle import load_flow

__all__ = ["finished"]  # the fixture: one simulated run


@pytest.fixture(autouse=True)
def _runs(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated run, whose points of a plane stand for real programs here."""
    monkeypatch.setenv("VORTEX_RUNS", str(finished))
    monkeypatch.delenv("VORTEX_SGLANG_PYTHON", raising=False)
    quest = library.load("quest")
    monkeypatch.setattr(ContentStore, "get_json", lambda self, key: quest.program.to_json())


def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    main(["serve", *arguments, "--dry-run", "--json"])
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_is_served_by_rank(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, model = find_flow("sim", 2)
    said = _said(capsys, "sim", "--rank", "2", "--model", "org/m", "--port", "30000")
    assert said["command"][-4:] == ["--page-size", str(bundle.knobs.page_size), "--port", "30000"]
    path = said["environment"]["VORTEX_SERVING_FLOW"]
    assert load_flow(path).key == bundle.key
    assert Path(path).is_relative_to(finished)
    assert model == CONFIG.model
    with pytest.raises(VortexError, match="rank"):
        find_flow("sim", 999)
    with open_run("sim", readonly=True) as run:
        state = read_state(run)
    assert state.finished is not None
    winner, _ = find_flow("sim", 1, winner=True)
    assert winner.name == state.candidates[state.finished.winner or ""].name
    first = next(e for e in Archive(state, CONFIG.objective).entries if not e.candidate.reference)
    assert find_flow("sim", 1)[0].name == first.candidate.name, "ranks leave the library out"


def test_a_file_is_traced_before_it_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(library.source("quest"))
    said = _said(capsys, str(tmp_path / "mine.py"), "--model", "qwen3-8b", "--prefill", "fa3")
    assert load_flow(said["environment"]["VORTEX_SERVING_FLOW"]).ir_hash == library.load("quest").ir_hash
    assert said["environment"]["VORTEX_SERVING_PREFILL"] == "fa3"
    assert any("qwen3-8b" in str(word).lower() for word in said["command"])


def test_knobs_can_be_changed(capsys: pytest.CaptureFixture[str]) -> None:
    sets = ("--set", "reuse_steps=1", "--set", "budget=max(512, length / 8)", "--set", "dense_layers=[0, 1]")
    said = _said(capsys, "lserve", "--model", "m", *sets)
    knobs = load_flow(said["environment"]["VORTEX_SERVING_FLOW"]).knobs
    assert (knobs.reuse_steps, knobs.budget, knobs.dense_layers) == (1, "max(512, length / 8)", (0, 1))
    with pytest.raises(SystemExit):
        main(["serve", "quest", "--model", "m", "--set", "no_knob=1", "--dry-run"])
    assert "VF061" in capsys.readouterr().err


def test_what_cannot_be_served_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (
        (["nosuch", "--model", "m"], "VS001"),
        (["quest"], "VS010"),
        (["lserve", "--model", "m"], "VE034"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["serve", *arguments, "--dry-run"])
        assert ended.value.code in (1, 2)
        assert capsys.readouterr().err.startswith(code)


def test_an_export_serves_itself(finished: Path, tmp_path: Path, root: Path) -> None:
    with open_run("sim", readonly=True) as run:
        state = read_state(run)
        entry = Archive(state, CONFIG.objective).entries[0]
        export(run, state, CONFIG, entry, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "out" / "serve.py"), "--print", "--model", "org/m"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)}, check=True,
    )  # fmt: skip
    assert f"VORTEX_SERVING_FLOW={tmp_path / 'out'}" in done.stdout
    assert "--model-path org/m --attention-backend vortex" in done.stdout
    assert load_flow(str(tmp_path / "out")).ir_hash == library.load("quest").ir_hash
