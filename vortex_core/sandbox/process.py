"""The jailed child as a process: how it is started, how much it may say, and how it is ended.

The parent reads at most what an answer can hold: `MAX_TEXT` bytes of lines, then as many bytes of learned values as
the last line declares, and `MAX_ERRORS` bytes on standard error. Who says more is killed, whatever it was saying.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

MAX_TEXT = 1 << 20  # bytes of all lines together
MAX_ERRORS = 64 << 10
START_SECONDS = 60.0  # for Python to start and the doors to close; a busy machine fails no flow
_CHUNK = 64 << 10
_ROOT = str(Path(__file__).resolve().parents[2])
# Nothing of the user's environment or packages reaches the child: no environment but the seed of hashes, no site
# folder, no current folder on the path, no bytecode written.
_FLAGS = ("-s", "-P", "-S", "-B")


@dataclass
class Spoken:
    """What a child said until it ended or was ended.

    Attributes:
        lines: complete lines, without their ends.
        values: the bytes after the last line.
        errors: standard error.
        code: exit status, negative for a signal.
        ended: why it was killed, empty if it ended by itself: `late` (past its deadline), `never started`,
            `too much` (more than it may say).
    """

    lines: list[bytes] = field(default_factory=list)
    values: bytes = b""
    errors: bytes = b""
    code: int = 0
    ended: str = ""


def command(module: str) -> list[str]:
    """The command line of a child that runs `main()` of one of our modules."""
    start = f"import sys; sys.path.insert(0, {_ROOT!r}); from {module} import main; main()"
    return [sys.executable, *_FLAGS, "-c", start]


def ask(
    arguments: list[str],
    request: bytes,
    *,
    deadline: float,
    lines: int,
    values: Callable[[bytes], int] = lambda _: 0,
    seed: int = 0,
) -> Spoken:
    """Run a child, hand it a request, and take what it says.

    Args:
        arguments: its command line (`command`).
        request: its standard input.
        deadline: wall seconds from its first line, after which its whole process group is killed.
        lines: how many lines it says.
        values: from the last line, how many bytes follow it.
        seed: of its string hashes, so that the order of sets is the same wherever it runs.
    """
    child = subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONHASHSEED": str(seed)},
        cwd="/",
        start_new_session=True,
    )
    listener = _Listener(lines, values)
    try:
        listener.spoken.ended = _converse(child, request, deadline, listener)
    finally:
        _kill_group(child)
        for pipe in (child.stdin, child.stdout, child.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
    listener.spoken.code = child.returncode
    return listener.spoken


class _Listener:
    """Takes what the child says, and no more than it may say."""

    def __init__(self, lines: int, values: Callable[[bytes], int]) -> None:
        self.spoken = Spoken()
        self.started: float | None = None
        self._left = lines
        self._room = MAX_TEXT
        self._size = values
        self._buffer = bytearray()

    def hear(self, data: bytes) -> bool:
        """Standard output; False if it is too much."""
        if self._left:
            self._room -= len(data)
        self._buffer += data
        while self._left and (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self.spoken.lines.append(line)
            self.started = self.started or time.monotonic()
            self._left -= 1
            if not self._left:
                self._room += len(self._buffer)  # these were values
                if self._room < 0:
                    return False
                self._room = self._size(line)
        return self._room >= 0 if self._left else len(self._buffer) <= self._room

    def close(self) -> None:
        """The child has said everything."""
        if not self._left:
            self.spoken.values = bytes(self._buffer)

    def complain(self, data: bytes) -> bool:
        """Standard error; False if it is too much."""
        self.spoken.errors += data[: MAX_ERRORS - len(self.spoken.errors)]
        return len(self.spoken.errors) < MAX_ERRORS


def _converse(child: subprocess.Popen[bytes], request: bytes, deadline: float, listener: _Listener) -> str:
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    began = time.monotonic()
    left = memoryview(request)
    with selectors.DefaultSelector() as waiting:
        for pipe, what in ((child.stdout, selectors.EVENT_READ), (child.stderr, selectors.EVENT_READ),
                           (child.stdin, selectors.EVENT_WRITE)):  # fmt: skip
            os.set_blocking(pipe.fileno(), False)
            waiting.register(pipe, what)
        while waiting.get_map():
            end = began + START_SECONDS if listener.started is None else listener.started + deadline
            if (seconds := end - time.monotonic()) <= 0:
                return "never started" if listener.started is None else "late"
            for key, _ in waiting.select(seconds):
                if key.fileobj is child.stdin:
                    left = _write(child.stdin, left)
                    if not left:
                        waiting.unregister(child.stdin)
                        with contextlib.suppress(OSError):
                            child.stdin.close()
                    continue
                data = os.read(key.fd, _CHUNK)
                if not data:
                    waiting.unregister(key.fileobj)
                elif not (listener.hear if key.fileobj is child.stdout else listener.complain)(data):
                    return "too much"
    listener.close()
    end = began + START_SECONDS if listener.started is None else listener.started + deadline
    try:  # both pipes are closed: it has ended, or is about to
        child.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "late"
    return ""


def _write(pipe: IO[bytes], left: memoryview) -> memoryview:
    try:
        return left[os.write(pipe.fileno(), left[:_CHUNK]) :]
    except BlockingIOError:
        return left
    except BrokenPipeError:  # it died; how, its exit status says
        return left[:0]


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
