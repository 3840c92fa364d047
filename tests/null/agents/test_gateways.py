"""Gateways: what they answer with status 200, in lists, or with our key in it."""

from __future__ import annotations

import asyncio
import json

import pytest

from agents.errors import ProposerError
from agents.providers.base import Completion, Message, Patience
from agents.providers.openai_provider import OpenAIProvider
from agents.testing import FakeModelServer, Scripted

KEY = "a-key-of-the-test"


def ask(script: list[Scripted], monkeypatch: pytest.MonkeyPatch) -> tuple[Completion, int]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeModelServer(script) as server:
        provider = OpenAIProvider(
            "m", server.url, patience=Patience(timeout_s=20, deadline_s=20, max_retries=2)
        )
        found = asyncio.run(provider.complete("", [Message("user", "hi")], 100))
        return found, len(server.received)


def raw(**fields: object) -> Scripted:
    return Scripted(raw=json.dumps({"object": "chat.completion", "model": "m", **fields}).encode())


LIMIT = raw(error={"code": 429, "message": "slow down"})


def test_an_error_with_status_200_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = ask([LIMIT, Scripted("yes")], monkeypatch)
    assert (found.text, asked) == ("yes", 2)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"code": 429, "message": "slow down"}, "VA012"), ({"code": 503, "message": "busy"}, "VA014"),
        ({"message": "odd"}, "VA014"), ({"code": 401, "message": "who"}, "VA011"), ("words", "VA014"),
    ],
)  # fmt: skip
def test_an_error_with_status_200_keeps_the_servers_words(
    error: object, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.providers.sdk_provider._LONGEST_PAUSE", 0.01)
    with pytest.raises(ProposerError) as caught:
        ask([raw(error=error)], monkeypatch)
    assert caught.value.code == code
    assert not caught.value.maybe_billed
    said = error["message"] if isinstance(error, dict) else error
    assert str(said) in caught.value.message


def test_content_in_chunks_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [{"type": "thinking", "text": "no"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": parts}}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    found, _ = ask([raw(choices=[choice], usage=usage)], monkeypatch)
    assert found.text == "ab"


def test_a_key_that_is_echoed_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = ask([Scripted(f"you sent Bearer {KEY}")], monkeypatch)
    assert found.text == "you sent Bearer [key]"


def test_deep_json_is_an_answer_outside_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProposerError, match="VA020"):
        ask([Scripted(raw=b"[" * 100_000)], monkeypatch)
