"""A chat server without a model: prompts lie in a folder, whoever reads them writes the replies beside them.

`python -m benchmarks.by_hand FOLDER --port 8800`, then `--proposer openai:NAME@http://127.0.0.1:8800/v1`: each request
becomes `FOLDER/0001.prompt.md`, and is answered with the text of `FOLDER/0001.reply.md` as soon as that file is there
(write it under another name and rename it). So any author, a person or a program that only knows files, writes for a
campaign through the same client, prompts and accounts as a paid model. A proposer file with `timeout_s` and
`deadline_s` gives slow authors time. Tokens in `usage` are estimated as four bytes each. The server listens on the
loopback alone and asks for no key.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_LONGEST = 4 << 20  # bytes of a request
_LOOK = 0.2  # seconds between two looks for a reply


def tokens(text: str) -> int:
    """An estimate: four bytes of UTF-8 each."""
    return -(-len(text.encode()) // 4)


def rendered(messages: list[dict[str, Any]]) -> str:
    """The messages as one document; content in parts is joined."""
    parts = []
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        parts.append(f"<!-- {message.get('role')} -->\n\n{content}\n")
    return "\n".join(parts)


class ByHand(ThreadingHTTPServer):
    """The server.

    Args:
        folder: where prompts and replies lie; replies that are there already are used, in order.
        port: of the loopback; 0 takes a free one.
        patience: seconds that a reply may take before the request is refused with status 504.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int, patience: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.patience = patience
        self.numbers = itertools.count(1 + len(list(folder.glob("*.prompt.md"))))
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Address for `base_url`."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def ask(self, prompt: str) -> str | None:
        """The reply to a prompt, or None when nobody wrote one in time."""
        name = f"{next(self.numbers):04}"
        draft = self.folder / f".{name}.prompt.md"
        draft.write_text(prompt, encoding="utf-8")
        draft.rename(self.folder / f"{name}.prompt.md")
        reply = self.folder / f"{name}.reply.md"
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            if reply.exists():
                return reply.read_text(encoding="utf-8")
            time.sleep(_LOOK)
        return None


class _Handler(BaseHTTPRequestHandler):
    server: ByHand
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The list of models, for clients that look."""
        self._say(200, {"object": "list", "data": [{"id": "by-hand", "object": "model"}]})

    def do_POST(self) -> None:
        """A chat completion."""
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= _LONGEST or not self.path.endswith("/chat/completions"):
            self._refuse(404, f"only POST .../chat/completions of at most {_LONGEST} bytes is served")
            return
        try:
            asked = json.loads(self.rfile.read(length))
            prompt = rendered(asked["messages"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._refuse(400, f"no list of messages: {error}")
            return
        if asked.get("stream"):
            self._refuse(400, "stream is not supported")
            return
        text = self.server.ask(prompt)
        if text is None:
            self._refuse(504, f"nobody replied within {self.server.patience:g} s")
            return
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        sent, got = tokens(prompt), tokens(text)
        usage = {"prompt_tokens": sent, "completion_tokens": got, "total_tokens": sent + got}
        answer = {"id": "by-hand", "object": "chat.completion", "created": int(time.time()), "usage": usage}
        self._say(200, answer | {"model": asked.get("model", "by-hand"), "choices": [choice]})

    def _refuse(self, status: int, why: str) -> None:
        self.close_connection = True
        self._say(status, {"error": {"message": why, "type": "invalid_request_error", "code": status}})

    def _say(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: the folder is the log."""


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where prompts and replies lie")
    parser.add_argument("--port", type=int, default=8800, help="of the loopback (%(default)s)")
    parser.add_argument(
        "--patience", type=float, default=3600, metavar="SECONDS", help="for a reply (%(default)s)"
    )
    given = parser.parse_args()
    with ByHand(given.folder, given.port, given.patience) as server:
        print(f"--proposer openai:NAME@{server.url}; prompts and replies in {given.folder}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
