"""An SGLang engine in a process of its own, driven from here: for measuring, never for serving."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.serving.entry_points import plugin_path
from vortex_core.serving.errors import engine_died
from vortex_core.serving.launch import interpreter
from vortex_core.serving.settings import Settings

_LAST = 4000  # characters of the log that an error shows


@dataclass(frozen=True)
class Answer:
    """What one batch produced.

    Attributes:
        seconds: from handing the batch over to the last token.
        tokens: new tokens of each prompt.
        cached: prompt tokens of each that came from the prefix cache.
        gaps: of a stream, seconds between consecutive tokens of a sequence, all sequences, oldest first.
    """

    seconds: float
    tokens: list[list[int]]
    cached: list[int]
    gaps: list[float] = field(default_factory=list)


class EngineProcess:
    """A running engine. Use as a context manager; its processes end with it.

    Args:
        options: keyword arguments of `sglang.Engine`; `forced_starts`: whether answers may be given `starts`,
            which turns chunked prefill off.
        settings: the flow, with `--attention-backend vortex` in `options`; None for SGLang's own attention.
        python: interpreter of SGLang's environment; None: `$VORTEX_SGLANG_PYTHON`, else this one.
        variables: further environment variables.
        start_limit: seconds the start may take.
        held: whether somebody still keeps the engine from starting; that time does not count.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        settings: Settings | None = None,
        *,
        python: str | None = None,
        variables: Mapping[str, str] | None = None,
        start_limit: float = 900.0,
        held: Callable[[], bool] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vortex-serving-")
        folder = Path(self._folder.name)
        self._status = folder / "status.json"
        self.log = folder / "log.txt"
        environment = {**os.environ, **plugin_path(folder / "site"), **(variables or {})}
        if "PYTHONPATH" in (variables or {}):  # both: stand-ins of a test, and this tree
            environment["PYTHONPATH"] = os.pathsep.join(
                [plugin_path(folder / "site")["PYTHONPATH"], (variables or {})["PYTHONPATH"]]
            )
        if settings is not None:
            environment |= settings.to_environment() | {"VORTEX_SERVING_STATUS": str(self._status)}
        read, write = os.pipe()
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [interpreter(python), "-m", "vortex_core.serving.sglang.worker", str(write)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, text=True,
                pass_fds=(write,), start_new_session=True,
            )  # fmt: skip
        os.close(write)
        self._answers = os.fdopen(read)
        try:
            self.facts = self._ask(dict(options), start_limit, held)
        except BaseException:
            self.close(patience=0.5)  # there is nothing to finish
            raise

    def _ask(
        self, request: Mapping[str, Any], limit: float, held: Callable[[], bool] | None = None
    ) -> dict[str, Any]:
        """One request and its answer.

        Raises:
            VortexError: `VE038` if the engine died or did not answer in time; a refusal of the plug-in as it is.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death("ended") from None
        deadline = time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while not selector.select(timeout=1.0):
                if self._process.poll() is not None:
                    raise self._death(f"ended with status {self._process.returncode}")
                if held is not None and held():
                    deadline = time.monotonic() + limit
                elif time.monotonic() > deadline:
                    raise self._death(f"gave no answer in {limit:.0f} s")
        line = self._answers.readline()
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)  # its last words are written after the answers' end is closed
            raise self._death("ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def _death(self, how: str) -> VortexError:
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return engine_died(how, text[-_LAST:])

    def generate(
        self,
        ids: Sequence[Sequence[int]],
        new: int,
        limit: float = 600.0,
        *,
        starts: Sequence[Sequence[int]] | None = None,
    ) -> Answer:
        """Greedy answers of exactly `new` tokens to a batch of prompts.

        Args:
            starts: tokens that the answers begin with; the engine must have been started with `forced_starts`.
        """
        request: dict[str, Any] = {"do": "generate", "ids": [list(x) for x in ids], "new": new}
        if starts is not None:
            request["starts"] = [list(x) for x in starts]
        return Answer(**self._ask(request, limit))

    def stream(self, ids: Sequence[Sequence[int]], new: int, limit: float = 600.0) -> Answer:
        """The same token by token, with the time between tokens."""
        return Answer(**self._ask({"do": "stream", "ids": [list(x) for x in ids], "new": new}, limit))

    def profile(
        self, ids: Sequence[Sequence[int]], new: int, folder: Path, limit: float = 600.0
    ) -> list[Path]:
        """Generate, and record every GPU kernel meanwhile: a Chrome trace (gzip) of each rank, in `folder`."""
        self._ask({"do": "profile", "ids": [list(x) for x in ids], "new": new, "folder": str(folder)}, limit)
        return sorted(folder.rglob("*.trace.json.gz"))

    def flush(self) -> None:
        """Forget all cached prefixes."""
        self._ask({"do": "flush"}, 60.0)

    @property
    def status(self) -> dict[str, Any] | None:
        """What the plug-in reports: program, density, ...; None where it is not in use."""
        return json.loads(self._status.read_text(encoding="utf-8")) if self._status.exists() else None

    def close(self, patience: float = 20.0) -> None:
        """End every process of the engine, after `patience` seconds by force."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        with contextlib.suppress(ProcessLookupError):  # SGLang's own children, should it have left any
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._answers.close()
        self._folder.cleanup()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
