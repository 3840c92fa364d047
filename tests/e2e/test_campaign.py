"""A whole campaign on a small model: killed, resumed, interrupted, extended, reported, exported, verified."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.log import events as ev
from search.log.run import open_run, read_state

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

PLAN = """
name: tiny
engine: {cpu_dtype: fp32}
parity: {pages: [0.05, 1, 3.5], seeds: [0], tie_tolerance: 1.0e-4}
recall: {needle_items: 1, perplexity_items: 1, steps: 1, min_recall: 0.1}
accuracy:
  tasks:
    - {task: pair_recall, context: 512, items: 2, distractors: 15}
  batch: 2
  gate_items: 1
  gate_margin: 0.9
  margin: 0.5
perplexity: {task: pair_answers, context: 512, items: 1, distractors: 15, max_ratio: 1000}
decode: {steps: 2, warmup: 1, rounds: 2}
modelled: {model: qwen3-8b, gpus: [h200]}
fresh: {share: 0.5}
"""
CAMPAIGN = """
description: a campaign for a test
model: retrieval-gqa
evaluation: {plan}
objective: {{margin: 0.5, gates: [{{metric: accuracy_delta, at_least: -0.9}}]}}
references: [dense, {{flow: block_topk, knobs: {{budget: "160"}}}}]
arms:
  - {{name: evolve, strategy: {{kind: evolve, size: 32}}, share: 2}}
  - {{name: random, strategy: {{kind: random}}, control: true}}
limits: {{candidates: 4}}
finals: {{elites: 1}}
"""


class Command:
    """The command line in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "plan.yaml").write_text(PLAN)
        (folder / "campaign.yaml").write_text(CAMPAIGN.format(plan=folder / "plan.yaml"))
        root = str(Path(__file__).resolve().parents[2])
        self.environment = os.environ | {"PYTHONPATH": root, "VORTEX_RUNS": str(folder / "runs")}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "search.cli", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # What a shell starts in the background ignores Ctrl-C, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.started.append(process)
        return process

    def close(self) -> None:
        """End what a test that failed left running."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)

    def campaign(self, *more: str) -> subprocess.Popen[str]:
        return self.start("--campaign", str(self.folder / "campaign.yaml"), "--run", "r", "--json", *more)

    def json(self, *arguments: str) -> Any:
        process = self.start(*arguments, "--json")
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return json.loads(out)

    def events(self) -> list[ev.Event]:
        with open_run("r", readonly=True, root=self.folder / "runs") as run:
            return [record.event for record in run.store.read()]

    def wait_for(self, process: subprocess.Popen[str], kind: type[ev.Event], count: int) -> None:
        """Until the log holds `count` events of a kind."""
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise AssertionError("ended early:\n" + "\n".join(process.communicate()))
            if (self.folder / "runs" / "r" / "events.sqlite").exists():
                found = [e for e in self.events() if isinstance(e, kind)]
                if len(found) >= count:
                    return
            time.sleep(0.1)
        raise AssertionError(f"no {count} events {kind.kind} in time")


def stages(events: list[ev.Event]) -> list[tuple[str, str, str]]:
    return [(e.key, e.purpose, e.stage) for e in events if isinstance(e, ev.StageFinished)]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    made = Command(tmp_path_factory.mktemp("campaign"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def killed_and_resumed(command: Command) -> tuple[list[ev.Event], dict[str, Any]]:
    """Events at the moment of `kill -9`, and what the second run of the same command printed."""
    process = command.campaign()
    command.wait_for(process, ev.CandidateFinished, 4)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    before = command.events()
    process = command.campaign()
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, err
    assert "resuming" in err
    return before, json.loads(out)


def test_a_killed_campaign_keeps_every_result_once(
    command: Command, killed_and_resumed: tuple[list[ev.Event], dict[str, Any]]
):
    before, _ = killed_and_resumed
    after = command.events()
    assert after[: len(before)] == before
    assert len(stages(after)) == len(set(stages(after)))
    finished = {e.key for e in before if isinstance(e, ev.CandidateFinished)}
    assert len(finished) >= 4
    with open_run("r", readonly=True, root=command.folder / "runs") as run:
        state = read_state(run)
        assert state.sessions == 2
        assert finished <= state.candidates.keys()
    rows = command.json("leaderboard", "r")["rows"]
    keys = [row["key"] for row in rows]
    assert len(keys) == len(set(keys))
    passed = {
        e.key for e in before if isinstance(e, ev.CandidateFinished) and e.passed and e.purpose == "search"
    }
    assert passed <= set(keys)


def test_it_ends_with_leaderboard_report_winner_and_statement(
    command: Command, killed_and_resumed: tuple[list[ev.Event], dict[str, Any]]
):
    _, said = killed_and_resumed
    assert said["distinct_programs"] >= 4
    assert said["finished"] == "4 distinct programs"
    assert said["summary"]["statement"]
    assert said["summary"]["control"]["words"]
    assert Path(said["report"]).stat().st_size > 500_000  # what draws it is inside
    assert (said["exported"] is None) == (said["winner"] is None)
    assert said["exported"] is None or (Path(said["exported"]) / "verify.py").exists()
    rows = command.json("leaderboard", "r")["rows"]
    assert {"dense", "block_topk budget=160"} <= {row["name"] for row in rows if row["reference"]}
    dense = next(row for row in rows if row["name"] == "dense")
    assert dense["metrics"]["modelled_speedup_h200"]["value"] == pytest.approx(1.0)
    assert dense["metrics"]["modelled_speedup_h200"]["how"] == "modelled"
    assert dense["metrics"]["decode_speedup"]["low"] < dense["metrics"]["decode_speedup"]["high"]


def test_a_candidate_can_be_shown(
    command: Command, killed_and_resumed: tuple[list[ev.Event], dict[str, Any]]
):
    shown = command.json("show", "r", "c003")
    assert "class" in shown["source"]
    assert shown["results"]["search"][0]["stage"] == "static"
    assert shown["arm"] in ("evolve", "random")


def test_an_export_verifies_and_a_changed_one_does_not(
    command: Command, killed_and_resumed: tuple[list[ev.Event], dict[str, Any]], tmp_path: Path
):
    out = tmp_path / "winner"
    command.json("export", "r", "--rank", "1", "--out", str(out))

    def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(out / "verify.py"), *arguments],
            env=command.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    whole = verify("--json")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    names = {check["name"] for check in json.loads(whole.stdout)["checks"]}
    assert {"program", "parity", "modelled_speedup_h200", "accuracy"} <= names
    knobs = json.loads((out / "knobs.json").read_text())
    (out / "knobs.json").write_text(json.dumps(knobs | {"keep_first": knobs["keep_first"] + 1}))
    assert verify("--quick").returncode == 1
    (out / "card.json").unlink()
    gone = verify("--quick")
    assert gone.returncode == 2
    assert "VS013" in gone.stderr


def test_ctrl_c_pauses_and_more_candidates_extend(
    command: Command, killed_and_resumed: tuple[list[ev.Event], dict[str, Any]]
):
    asked = sum(isinstance(e, ev.Asked) for e in command.events())
    process = command.campaign("--max-candidates", "6")
    command.wait_for(process, ev.Asked, asked + 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "The same command goes on" in err
    assert "Traceback" not in err
    assert isinstance(command.events()[-1], ev.CampaignPaused)


def test_other_settings_do_not_mix_into_a_run(
    command: Command, killed_and_resumed: tuple[list[ev.Event], dict[str, Any]]
):
    process = command.campaign("--seed", "5")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    error = json.loads(out)["error"]
    assert error["code"] == "VS004"
    assert "seed was 0, is 5" in error["message"]
