"""A model server on a local socket that speaks both protocols and misbehaves on request.

It stands in for the paid services in tests of clients: real SDKs, real HTTP, scripted answers.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

Protocol = Literal["openai", "anthropic"]
_PATHS: dict[str, Protocol] = {"/v1/chat/completions": "openai", "/v1/messages": "anthropic"}
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


@dataclass(frozen=True)
class Received:
    """One request as it arrived. Header names are in lower case."""

    protocol: Protocol
    headers: dict[str, str]
    body: dict[str, Any]


class FakeModelServer:
    """Serves a script, one entry a request; the last entry repeats. Use it as a context manager.

    Attributes:
        received: the requests so far.
    """

    def __init__(self, script: Iterable[Scripted]) -> None:
        self.received: list[Received] = []
        self._script = deque(script)
        if not self._script:
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
            return self._script.popleft() if len(self._script) > 1 else self._script[0]

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
                answer = scripted.body(protocol, str(data.get("model")))
                try:
                    self.send_response(scripted.status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(answer)))
                    for name, value in scripted.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer)
                except ConnectionError:
                    self.close_connection = True  # the client gave up waiting, as a test of timeouts wants

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it
                """Tests want silence."""

        return Handler
