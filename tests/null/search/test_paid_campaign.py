"""Two paid models that misbehave, a driver that is killed again and again: accounts to the token, nothing paid for
twice."""

from __future__ import annotations

import email.utils
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from agents.testing import FakeModelServer, Scripted
from agents.testing.server import Received
from search.log import events as ev
from search.log.run import open_run
from search.log.state import CampaignState
from vortex_core.errors import VortexError

ROOT = Path(__file__).parents[3]
SECRETS = {"OPENAI_API_KEY": "sk-first-51d0c7f2e9ab", "ANTHROPIC_API_KEY": "sk-second-aa07c1f2e9ab"}
FLOW = "IDEA: a point\n```python\nfrom vortex_core import ops, vFlow\nclass P(vFlow):\n    x = {x:.2f}\n```\n"


def counted(protocol: str, n: int) -> dict[str, int]:
    """Numbers of tokens that no two answers of both servers share."""
    return {"input_tokens": 1000 + 2 * n + (protocol == "openai"), "output_tokens": 100 + n}


def chat(message: dict[str, object], n: int, choices: bool = True) -> bytes:
    tokens = counted("openai", n)
    usage = {"prompt_tokens": tokens["input_tokens"], "completion_tokens": tokens["output_tokens"]}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}}
    return json.dumps({"model": "m", "usage": usage, "choices": [choice] if choices else []}).encode()


def answer(received: Received, n: int) -> Scripted:
    """Every third request meets a fault, each kind in turn; the others get a program, after a moment."""
    tokens = counted(received.protocol, n)
    x = random.Random(f"{received.protocol}{n}").random()
    good = Scripted(FLOW.format(x=x), delay_s=0.02, **tokens)
    if n % 3:
        return good
    soon = email.utils.formatdate(time.time(), usegmt=True)
    faults = [
        Scripted("slow down", status=429, headers={"retry-after": "0.01"}),
        Scripted("slow down", status=429, headers={"retry-after": soon}),
        Scripted("internal", status=500, headers={"retry-after-ms": "5"}),
        Scripted("I will not.", stop="refusal", **tokens),
        Scripted("word " * 40_000, **tokens),
        Scripted("", **tokens),
        Scripted(hang_up=True),
        Scripted(raw=b"\xff\xfe\x80 not text"),
    ]
    if received.protocol == "openai":
        call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": FLOW.format(x=x)}}
        faults += [
            Scripted(raw=chat({"content": None, "reasoning_content": "hm"}, n)),
            Scripted(raw=chat({}, n, choices=False)),
            Scripted(raw=chat({"content": None, "tool_calls": [call]}, n)),
            Scripted(raw=json.dumps({"model": "m", "choices": [], "usage": {"prompt_tokens": -1}}).encode()),
        ]
    return faults[(n // 3) % len(faults)]


def sessions(folder: Path, urls: list[str], kills: int) -> None:
    """Run the campaign to its end, killing the driver `kills` times while calls are under way."""
    environment = os.environ | SECRETS | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.null.search.paid_driver", str(folder), *urls]
    rng = random.Random(5)
    for session in range(kills + 1):
        with (folder / f"log{session}").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            if session < kills:
                _await_calls(folder, process, rng.randint(4, 8))
                process.kill()
                process.wait()
            else:
                assert process.wait(120) == 0, (folder / f"log{session}").read_text()[-2000:]


def _await_calls(folder: Path, process: subprocess.Popen[bytes], more: int) -> None:
    """Until so many further calls are booked, and one of them is open."""
    before, until = None, time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None, "it ended before it was killed"
        try:
            with open_run("paid", readonly=True, root=folder) as run:
                state = CampaignState.fold(run.store.read())
        except VortexError:  # it has only just begun
            continue
        booked = state.calls
        before = booked if before is None else before
        if booked >= before + more and any(p.booked for p in state.proposals.values()):
            return
        time.sleep(0.01)
    raise AssertionError("no calls")


@pytest.mark.slow
def test_accounts_are_exact_whatever_servers_do_and_however_often_the_driver_dies(tmp_path: Path):
    with FakeModelServer(answer) as first, FakeModelServer(answer) as second:
        sessions(tmp_path, [first.url, second.url], kills=2)
        served = {
            protocol: [counted(protocol, n) for n, made in enumerate(server.answers) if _billed(made)]
            for protocol, server in (("openai", first), ("anthropic", second))
        }
        received = len(first.received) + len(second.received)
        keys = {value for r in first.received + second.received for value in r.headers.values()}
    with open_run("paid", readonly=True, root=tmp_path) as run:
        events = [record.event for record in run.store.read()]
    state = CampaignState()
    with open_run("paid", readonly=True, root=tmp_path) as run:
        state = CampaignState.fold(run.store.read())
    assert state.finished is not None
    assert state.distinct_programs >= 12

    # Every answer that arrived is in the accounts once, with its own tokens.
    known = Counter((t["input_tokens"], t["output_tokens"]) for found in served.values() for t in found)
    settled = Counter(
        (e.input_tokens, e.output_tokens)
        for e in events
        if isinstance(e, ev.Proposed | ev.ProposalFailed) and e.output_tokens
    )
    assert not settled - known, "tokens that no server reported"
    assert max(settled.values()) == 1, "an answer is in the accounts twice"
    # What was served and is not settled was swallowed by a kill, and each such call is booked in full.
    lost = sum(s.lost for s in state.spending.values())
    unknown = sum(isinstance(e, ev.ProposalFailed) and e.error["code"] == "VA020" for e in events)
    swallowed = (known - settled).total()
    assert swallowed <= lost + unknown
    assert 1 <= lost <= 2 * 4, "at most the calls under way at each kill"
    assert state.tokens >= sum(a + b for a, b in settled.elements())
    assert state.calls <= received + lost, "a booked call may have been killed before it was sent"
    # Nothing was asked again that had been answered.
    answered = Counter(e.proposal for e in events if isinstance(e, ev.Proposed | ev.ProposalFailed))
    assert max(answered.values()) == 1
    assert all(p.outcome != "open" for p in state.proposals.values())
    assert {s.split(":")[0] for s in state.spending} == {"openai", "anthropic"}

    # Keys were sent, and are written nowhere.
    for secret in SECRETS.values():
        assert any(secret in value for value in keys)
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def _billed(made: Scripted) -> bool:
    return (
        made.status == 200
        and not made.hang_up
        and made.raw != b"\xff\xfe\x80 not text"
        and b"-1" not in (made.raw or b"")
    )
