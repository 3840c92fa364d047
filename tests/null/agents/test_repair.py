"""One repair round as a campaign runs it: a faulty program, the tracer's error, the mended program."""

from __future__ import annotations

import asyncio
import json

import pytest

from agents.base import FailedAttempt, ProposalRequest
from agents.registry import make_proposer
from agents.testing import FakeModelServer, Scripted
from agents.testing.conformance import BROKEN
from vortex_core.errors import VortexError
from vortex_core.sandbox.load import trace_source

from .conftest import ANSWER, LANGUAGE


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_error_of_the_tracer_goes_back_and_the_answer_traces(protocol: str) -> None:
    script = [Scripted(f"IDEA: a slip\n```python\n{BROKEN}```"), Scripted(ANSWER)]
    with FakeModelServer(script) as server:
        proposer = make_proposer(f"{protocol}:m@{server.url}", language=LANGUAGE)
        first = asyncio.run(proposer.propose(ProposalRequest(kind="seed", seed=1)))
        assert first.source == BROKEN
        with pytest.raises(VortexError) as refused:
            trace_source(first.source, "flow.py")
        failed = FailedAttempt(first.source, refused.value.to_json())
        second = asyncio.run(proposer.propose(ProposalRequest(kind="repair", seed=1, failed=failed)))
        prompt = server.received[1].body["messages"][-1]["content"]
    traced = trace_source(second.source, "flow.py")
    assert traced.name == "page_mean"
    assert BROKEN.rstrip() in prompt
    error = refused.value
    assert error.location is not None
    for fact in (error.code, error.remedy, f'"line": {error.location.line}'):
        assert fact in prompt
    assert json.dumps(error.message, ensure_ascii=False) in prompt
