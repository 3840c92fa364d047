"""Tools mode, driven by the protocol's own client: jobs, limits, typed failures."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from search.tools.jobs import Jobs
from search.tools.server import Limits, build
from vortex_core import library
from vortex_core.errors import VortexError

mcp = pytest.importorskip("mcp")

ECHO = (sys.executable, "-c", "import json, sys; print(json.dumps({'given': sys.argv[1:]}))")
SLEEP = (
    sys.executable,
    "-c",
    "import sys, time; print('step 1', file=sys.stderr, flush=True); time.sleep(60)",
)


def call(
    jobs: Jobs, folder: Path, *calls: tuple[str, dict[str, Any]], limits: Limits | None = None
) -> list[Any]:
    async def go() -> list[Any]:
        async with mcp.Client(build(jobs, folder, limits or Limits())) as client:
            answers = []
            for name, arguments in calls:
                result = await client.call_tool(name, arguments)
                assert not result.is_error, result
                text = result.content[0].text
                answers.append(text if name == "language" else json.loads(text))
            return answers

    return asyncio.run(go())


def test_there_are_at_most_twelve_tools_and_each_says_what_it_does(tmp_path: Path):
    async def go() -> list[Any]:
        async with mcp.Client(build(Jobs(tmp_path), tmp_path, Limits())) as client:
            return list((await client.list_tools()).tools)

    tools = asyncio.run(go())
    assert len(tools) <= 12
    assert all(len(tool.description or "") > 40 for tool in tools)


def test_a_program_is_checked_in_the_jail_and_a_mistake_is_data(tmp_path: Path):
    good, bad, evil = call(
        Jobs(tmp_path),
        tmp_path,
        ("check", {"source": library.source("quest")}),
        ("check", {"source": library.source("quest").replace("maximum", "maximun")}),
        ("check", {"source": "import os\nos.system('true')\n"}),
    )
    assert good["ir_hash"] == library.load("quest").ir_hash
    assert bad["error"]["code"].startswith("VF")
    assert bad["error"]["location"]["line"]
    assert evil["error"]["code"] == "VF002"


def test_the_language_is_told(tmp_path: Path):
    (text,) = call(Jobs(tmp_path), tmp_path, ("language", {}))
    assert "forward_indexer" in text


def test_a_job_answers_at_once_and_is_polled_to_its_result(tmp_path: Path):
    jobs = Jobs(tmp_path, command=ECHO)
    (begun, ended) = call(
        jobs,
        tmp_path,
        ("evaluate", {"source": "x = 1", "plan": "quick"}),
        ("status", {"job": "job1", "wait_seconds": 30}),
    )
    assert begun["job"] == "job1"
    assert ended["state"] == "done"
    given = ended["result"]["given"]
    assert given[:2] == ["evaluate", "--json"]
    assert given[-1] == "--plan=quick"
    assert Path(given[2]).read_text() == "x = 1"


def test_a_campaign_cannot_ask_for_more_than_the_server_allows(tmp_path: Path):
    jobs = Jobs(tmp_path, command=ECHO)
    asked = {"run": "r", "proposer": "openai:some-model", "seconds": 1e9, "candidates": 7}
    _, ended = call(
        jobs,
        tmp_path,
        ("campaign", asked),
        ("status", {"job": "job1", "wait_seconds": 30}),
        limits=Limits(seconds=600, dollars=2.5),
    )
    given = ended["result"]["given"]
    assert {"--time-budget=600s", "--max-dollars=2.5", "--max-candidates=7"} <= set(given)


def test_jobs_have_a_limit_progress_and_an_end(tmp_path: Path):
    jobs = Jobs(tmp_path, most=1, command=SLEEP)
    try:
        jobs.start(["evaluate"])
        (busy,) = call(jobs, tmp_path, ("evaluate", {"source": "x"}))
        assert busy["error"]["code"] == "VS030"
        (unknown,) = call(jobs, tmp_path, ("status", {"job": "job9"}))
        assert unknown["error"]["code"] == "VS031"
        until = time.monotonic() + 30
        while "step 1" not in jobs.poll("job1")["progress"]:
            assert time.monotonic() < until
            time.sleep(0.05)
        process = jobs._jobs["job1"].process.pid
        assert jobs.cancel("job1")["state"] == "cancelled"
        assert not psutil.pid_exists(process)
    finally:
        jobs.close()


def test_a_job_that_takes_too_long_is_ended(tmp_path: Path):
    jobs = Jobs(tmp_path, seconds=0.5, command=SLEEP)
    jobs.start(["evaluate"])
    assert jobs.poll("job1", wait=30)["state"] == "out of time"
    assert jobs._jobs["job1"].process.poll() is not None


def test_a_command_that_prints_no_json_leaves_its_messages(tmp_path: Path):
    jobs = Jobs(tmp_path, command=(sys.executable, "-c", "raise SystemExit('no such thing')"))
    jobs.start(["show"])
    ended = jobs.poll("job1", wait=30)
    assert ended["state"] == "failed"
    assert "no such thing" in ended["result"]["messages"]
    with pytest.raises(VortexError):
        jobs.poll("job2")


KEYS = {"OPENAI_API_KEY": "sk-tools-51d0c7f2e9ab", "ANTHROPIC_API_KEY": "sk-tools-aa07c1f2e9ab"}


@pytest.mark.slow
def test_an_agent_takes_a_campaign_from_start_to_export_in_eight_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VORTEX_RUNS", str(tmp_path / "runs"))
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    driver = (sys.executable, "-m", "tests.null.search.tools_driver")
    jobs = Jobs(tmp_path / "jobs", command=driver)
    sources = [library.source(name) for name in ("block_topk", "gqa_block_topk", "centered_block_topk")]
    sources.append(library.source("quest").replace("maximum", "maximun"))
    started, handed, polled, ranked, shown, learned, exported = call(
        jobs,
        tmp_path / "tools",
        ("campaign", {"run": "mine", "campaign": "quick", "proposer": "inbox", "candidates": 12}),
        ("submit", {"run": "mine", "sources": sources, "ideas": ["means"], "last": True}),
        ("status", {"job": "job1", "wait_seconds": 120}),
        ("leaderboard", {"run": "mine"}),
        ("compare", {"run": "mine", "candidates": ["c001", "c002", "nobody"]}),
        ("lessons", {"run": "mine"}),
        ("export", {"run": "mine"}),
    )
    assert started["state"] == "running"
    assert [("error" in one) for one in handed["submitted"]] == [False, False, False, True]
    assert handed["submitted"][3]["error"]["code"].startswith("VF")
    assert polled["state"] == "done", polled
    found = [row for row in ranked["rows"] if not row["reference"]]
    assert found
    assert shown["c001"]["source"]
    assert shown["nobody"]["error"]["code"] == "VS006"
    assert isinstance(learned["lessons"], list)
    folder = Path(exported["out"])
    assert (folder / "flow.py").is_file()
    assert (folder / "AGENTS.md").is_file()
    for path in tmp_path.rglob("*"):  # runs, logs, reports, exports, what jobs printed
        if path.is_file():
            assert not any(key.encode() in path.read_bytes() for key in KEYS.values()), path


def test_no_key_is_on_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    jobs = Jobs(tmp_path, command=SLEEP)
    try:
        call(jobs, tmp_path, ("campaign", {"run": "r", "proposer": "openai:m", "candidates": 1}))
        lines = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
        assert any("--proposer=openai:m" in line for line in lines)
        assert not any(key in line for line in lines for key in KEYS.values())
    finally:
        jobs.close()
