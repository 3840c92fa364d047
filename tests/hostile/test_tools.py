"""The server of tools is given lines that are no message and names that are options: it answers and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from search.tools.jobs import Jobs
from tests.null.search.test_tools import ECHO, call

HELLO = (
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}},
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
)  # fmt: skip
BROKEN = (
    b"", b"{", b'{"jsonrpc": "2.0", "id": 3, "meth', bytes(range(256)).replace(b"\n", b""), b"[" * 100_000,
    b'{"a":' * 50_000, b"null", b"5", b"[]", b"{}", b'{"jsonrpc": "1.0", "id": 4, "method": "ping"}',
    b'{"jsonrpc": "2.0", "id": [], "method": "ping"}', b'{"jsonrpc": "2.0", "id": 4, "method": "\xe9"}',
    b'{"jsonrpc": "2.0", "id": 77, "result": {}}', b'{"jsonrpc": "2.0", "id": 77, "error": {"code": "x"}}',
    b'{"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": 5}',
    b'{"jsonrpc": "2.0", "id": 6, "method": "tools/call", "params": {"name": "nope"}}',
    b'{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": []}}',
    b'{"jsonrpc": "2.0", "id": 8, "method": "ping", "params": {"x": "' + b"x" * (8 << 20) + b'"}}',
)  # fmt: skip
NAMES = ("--help", "--json", "--out=/tmp/x", "-h", "\0", "x" * 300_000, "\x1b[2J", "../../x")


@pytest.mark.timeout(120)
def test_it_goes_on_after_what_is_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_RUNS", str(tmp_path))
    last = {"jsonrpc": "2.0", "id": 99, "method": "tools/call", "params": {
        "name": "status", "arguments": {"job": "\x1b", "wait_seconds": 1e300}}}  # fmt: skip
    said = subprocess.Popen(
        [sys.executable, "-m", "search.cli", "mcp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert said.stdin is not None
    assert said.stdout is not None
    lines = [json.dumps(m).encode() for m in HELLO] + [*BROKEN, json.dumps(last).encode()]
    said.stdin.write(b"".join(line + b"\n" for line in lines))
    said.stdin.flush()
    answer: dict[str, Any] = {}
    while answer.get("id") != 99:
        line = said.stdout.readline()
        assert line, "it ended"
        answer = json.loads(line)
    said.stdin.close()
    assert "VS031" in json.dumps(answer)
    assert said.wait(60) == 0


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_is_never_an_option(tmp_path: Path, name: str) -> None:
    jobs = Jobs(tmp_path, command=ECHO)
    asked = [
        ("leaderboard", {"run": name}),
        ("export", {"run": name}),
        ("compare", {"run": "r", "candidates": [name]}),
        ("explain", {"source": "x", "model": name, "gpu": name}),
        ("campaign", {"run": name, "model": name, "campaign": name, "proposer": name}),
    ]
    for tool, arguments in asked:
        (answer,) = call(jobs, tmp_path, (tool, arguments))
        if "job" in answer:
            answer = jobs.poll(answer["job"], 30)["result"]
        answer = next(iter(answer.values())) if tool == "compare" and "error" not in answer else answer
        if "error" in answer:
            assert answer["error"]["code"] == "VS010"
            continue
        given = answer["given"]
        positional = given.index("--") if "--" in given else len(given)
        options = given[1:positional] if tool != "campaign" else given
        assert options.count("--json") == 1
        assert given.index("--json") < 2
        assert not ({name} - {"--json"}) & set(options), "an option of its own"


def test_whatever_a_call_is_given_ends_in_a_code(tmp_path: Path) -> None:
    asked = [
        ("check", {"source": "\0"}),
        ("check", {"source": "#" * (1 << 20)}),
        ("check", {"source": "x", "model": "\0"}),
        ("submit", {"run": "\0", "sources": ["\0"], "ideas": ["\x1b"]}),
        ("lessons", {"run": "\0"}),
        ("lessons", {"run": "x" * 5_000}),
        ("campaign", {"run": "r", "seconds": -5, "model": "\0"}),
        ("status", {"job": "\0", "wait_seconds": -1e300}),
    ]
    for answer in call(Jobs(tmp_path, command=ECHO), tmp_path, *asked):
        error = answer["submitted"][0]["error"] if "submitted" in answer else answer["error"]
        assert error["code"] not in ("", "VS091")
        assert len(error["message"]) <= 2_100
