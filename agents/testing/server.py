"""A model server on a local socket that speaks all three protocols, also as streams, and misbehaves on request.

It stands in for the paid services in tests of clients: real SDKs, real HTTP, scripted answers.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

Protocol = Literal["openai", "openai-responses", "anthropic"]
_PATHS: dict[str, Protocol] = {
    "/v1/chat/completions": "openai",
    "/v1/responses": "openai-responses",
    "/v1/messages": "anthropic",
}
_STOPS = {
    "openai": {"end": "stop", "length": "length", "refusal": "content_filter"},
    "anthropic": {"end": "end_turn", "length": "max_tokens", "refusal": "refusal"},
}


@dataclass(frozen=True)
class Scripted:
    """One answer.

    Attributes:
        text: what the model says.
        status: HTTP status; from 400 on, `text` is the error's message.
        error_type: `error.type` (openai: also `error.code`) of an error.
        stop: why the model stopped.
        input_tokens: prompt tokens reported, cached ones included.
        output_tokens: produced tokens reported.
        cache_read_tokens: the part of the prompt reported as read from the cache.
        delay_s: seconds before the answer; it ends early when the server is closed.
        headers: further headers, such as Retry-After.
        raw: a body to send instead of the protocol's own.
        hang_up: close the connection without an answer.
        half: send half of the answer, then close the connection.
    """

    text: str = ""
    status: int = 200
    error_type: str = "error"
    stop: Literal["end", "length", "refusal"] = "end"
    input_tokens: int = 100
    output_tokens: int = 20
    cache_read_tokens: int = 0
    delay_s: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    hang_up: bool = False
    half: bool = False

    def stream(self, protocol: Protocol, model: str) -> bytes:
        """The answer as server-sent events."""
        return b"".join(
            (f"event: {event['type']}\n" if "type" in event else "").encode()
            + b"data: "
            + json.dumps(event).encode()
            + b"\n\n"
            for event in self._events(protocol, model)
        ) + (b"data: [DONE]\n\n" if protocol == "openai" else b"")

    def _events(self, protocol: Protocol, model: str) -> Iterable[dict[str, Any]]:
        whole = self._answer(protocol, model)
        parts = [self.text[i : i + 40] for i in range(0, len(self.text), 40)]
        if protocol == "openai-responses":
            for part in parts:
                yield {
                    "type": "response.output_text.delta",
                    "delta": part,
                    "item_id": "m",
                    "output_index": 0,
                    "content_index": 0,
                    "sequence_number": 0,
                    "logprobs": [],
                }
            ended = "completed" if whole["status"] == "completed" else "incomplete"
            yield {"type": f"response.{ended}", "response": whole, "sequence_number": 1}
        elif protocol == "openai":
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": model}
            for part in parts:
                yield chunk | {"choices": [{"index": 0, "delta": {"content": part}, "finish_reason": None}]}
            reason = whole["choices"][0]["finish_reason"]
            yield chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
            yield chunk | {"choices": [], "usage": whole["usage"]}
        else:
            yield {"type": "message_start", "message": whole | {"content": [], "stop_reason": None}}
            yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
            for part in parts:
                yield {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "text_delta", "text": part},
                }
            yield {"type": "content_block_stop", "index": 0}
            yield {
                "type": "message_delta",
                "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
                "usage": {"output_tokens": self.output_tokens},
            }
            yield {"type": "message_stop"}

    def body(self, protocol: Protocol, model: str) -> bytes:
        """The answer as `protocol` words it."""
        if self.raw is not None:
            return self.raw
        if self.status >= 400:
            return json.dumps(self._error(protocol)).encode()
        return json.dumps(self._answer(protocol, model)).encode()

    def _error(self, protocol: Protocol) -> dict[str, Any]:
        error = {"type": self.error_type, "message": self.text}
        if protocol == "anthropic":
            return {"type": "error", "error": error}
        return {"error": {**error, "code": self.error_type, "param": None}}

    def _answer(self, protocol: Protocol, model: str) -> dict[str, Any]:
        if protocol == "openai-responses":
            return self._response(model)
        stop = _STOPS[protocol][self.stop]
        if protocol == "anthropic":
            return {
                "id": "msg_test",
                "type": "message",
                "role": "assistant",
                "model": model,
                "content": [{"type": "text", "text": self.text}],
                "stop_reason": stop,
                "stop_sequence": None,
                "usage": {
                    "input_tokens": self.input_tokens - self.cache_read_tokens,
                    "cache_read_input_tokens": self.cache_read_tokens,
                    "cache_creation_input_tokens": 0,
                    "output_tokens": self.output_tokens,
                },
            }
        return {
            "id": "chatcmpl-test",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [
                {"index": 0, "finish_reason": stop, "message": {"role": "assistant", "content": self.text}}
            ],
            "usage": {
                "prompt_tokens": self.input_tokens,
                "completion_tokens": self.output_tokens,
                "total_tokens": self.input_tokens + self.output_tokens,
                "prompt_tokens_details": {"cached_tokens": self.cache_read_tokens},
            },
        }

    def _response(self, model: str) -> dict[str, Any]:
        reasons = {"length": "max_output_tokens", "refusal": "content_filter"}
        content = [{"type": "output_text", "text": self.text, "annotations": []}]
        return {
            "id": "resp_test",
            "object": "response",
            "created_at": 0,
            "model": model,
            "status": "completed" if self.stop == "end" else "incomplete",
            "incomplete_details": None if self.stop == "end" else {"reason": reasons[self.stop]},
            "output": [
                {"type": "reasoning", "id": "r", "summary": []},
                {
                    "type": "message",
                    "id": "m",
                    "role": "assistant",
                    "status": "completed",
                    "content": content,
                },
            ],
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": self.input_tokens,
                "input_tokens_details": {"cached_tokens": self.cache_read_tokens},
                "output_tokens": self.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.input_tokens + self.output_tokens,
            },
        }


@dataclass(frozen=True)
class Received:
    """One request as it arrived. Header names are in lower case."""

    protocol: Protocol
    headers: dict[str, str]
    body: dict[str, Any]


class FakeModelServer:
    """Serves a script, one entry a request; the last entry repeats. Use it as a context manager.

    Args:
        script: the answers, or what gives one for a request and its number, counted from 0.

    Attributes:
        received: the requests so far.
        answers: what was answered to each.
    """

    def __init__(self, script: Iterable[Scripted] | Callable[[Received, int], Scripted]) -> None:
        self.received: list[Received] = []
        self.answers: list[Scripted] = []
        self._write = script if callable(script) else None
        self._script = deque(() if callable(script) else script)
        if self._write is None and not self._script:
            raise ValueError("a script needs at least one answer")
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        """Address for `base_url`."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> FakeModelServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _take(self, request: Received) -> Scripted:
        with self._lock:
            self.received.append(request)
            if self._write is not None:
                answer = self._write(request, len(self.received) - 1)
            else:
                answer = self._script.popleft() if len(self._script) > 1 else self._script[0]
            self.answers.append(answer)
            return answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                protocol = _PATHS.get(self.path.partition("?")[0])
                if protocol is None:
                    self.send_error(404)
                    return
                data = json.loads(body)
                headers = {name.lower(): value for name, value in self.headers.items()}
                scripted = server._take(Received(protocol, headers, data))
                server._closing.wait(scripted.delay_s)
                if scripted.hang_up:
                    self.close_connection = True
                    return
                streams = data.get("stream") and scripted.status < 400 and scripted.raw is None
                model = str(data.get("model"))
                answer = scripted.stream(protocol, model) if streams else scripted.body(protocol, model)
                try:
                    self.send_response(scripted.status)
                    self.send_header("content-type", "text/event-stream" if streams else "application/json")
                    self.send_header("content-length", str(len(answer)))
                    for name, value in scripted.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer[: len(answer) // 2] if scripted.half else answer)
                    if scripted.half:
                        self.close_connection = True
                except ConnectionError:
                    self.close_connection = True  # the client gave up waiting, as a test of timeouts wants

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it
                """Tests want silence."""

        return Handler
