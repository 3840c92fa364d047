"""A server whose replies are files: the proposer's own client asks it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from agents.base import ProposalRequest
from agents.errors import ProposerError
from agents.registry import make_proposer
from benchmarks.by_hand import ByHand, rendered

PROGRAM = """```python
from vortex_core import ops, vFlow
class Nearest(vFlow):
    def forward_indexer(self, q, cache):
        return ops.topk(ops.position())
```"""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ByHand:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = ByHand(tmp_path / "mail", 0, patience=20)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_a_reply_in_the_folder_is_the_models(served: ByHand) -> None:
    (served.folder / "0001.reply.md").write_text(PROGRAM)
    proposer = make_proposer(f"openai:hand@{served.url}", language="the language")
    proposal = asyncio.run(proposer.propose(ProposalRequest(kind="seed", seed=0, parents=(), tried=set())))
    assert "class Nearest" in proposal.source
    prompt = (served.folder / "0001.prompt.md").read_text()
    assert prompt.startswith("<!-- system -->") and "<!-- user -->" in prompt
    assert proposal.usage.input_tokens == -(-len(prompt.encode()) // 4)


def test_who_does_not_reply_in_time_is_a_failure(tmp_path: Path) -> None:
    server = ByHand(tmp_path, 0, patience=0.3)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proposer = make_proposer(f"openai:hand@{server.url}", language="the language", max_retries=0)
    with pytest.raises(ProposerError, match="nobody replied within"):
        asyncio.run(proposer.propose(ProposalRequest(kind="seed", seed=0, parents=(), tried=set())))


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert rendered([{"role": "user", "content": parts}]) == "<!-- user -->\n\nab\n"
