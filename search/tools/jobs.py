"""Commands that run beside the server: started at once, polled until they end, ended with it.

Each is `vortex-search ... --json` in a process group of its own, so a job cannot take the server down and nothing that
it started outlives it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from search.errors import bad_value, no_such_job, too_many_jobs
from vortex_core.text import visible

State = Literal["running", "done", "failed", "cancelled", "out of time"]

_ROOT = Path(__file__).resolve().parents[2]
_COMMAND = (sys.executable, "-m", "search.cli")
_SHORT = 120.0  # seconds of a command that reads
_PROGRESS = 2_000  # characters of a job's messages that a poll returns
_LARGEST = 4 << 20  # of an answer
_LONGEST = 20_000  # characters of one argument; the system takes 131,072 bytes
_GRACE = 20.0  # seconds an interrupted campaign has to finish its events


@dataclass
class Job:
    """One command.

    Attributes:
        id: how it is polled.
        what: the tool that started it, with what it was asked for.
        process: leader of the job's process group.
        folder: where `out` and `err` are written.
        began: `time.monotonic()`.
        ends: when it is interrupted.
        stopped: why it was interrupted, if it was.
    """

    id: str
    what: dict[str, Any]
    process: subprocess.Popen[bytes]
    folder: Path
    began: float
    ends: float
    stopped: State | None = None


class Jobs:
    """The jobs of one server.

    Args:
        folder: for their output.
        most: jobs that may run at once.
        seconds: longest time of a job; then it is interrupted, which pauses a campaign.
        command: what is given the arguments; `vortex-search` of this installation by default.
    """

    def __init__(
        self, folder: Path, *, most: int = 2, seconds: float = 3600.0, command: Sequence[str] = _COMMAND
    ) -> None:
        self.folder = folder
        self.most = most
        self.seconds = seconds
        self.command = command
        self._jobs: dict[str, Job] = {}

    def start(self, arguments: Sequence[str], **what: Any) -> dict[str, Any]:
        """Run `vortex-search ARGUMENTS --json`; answers at once.

        Raises:
            VortexError: `VS030` while as many jobs run as may.
        """
        running = [job.id for job in self._jobs.values() if self._state(job) == "running"]
        if len(running) >= self.most:
            raise too_many_jobs(self.most, running)
        name = f"job{len(self._jobs) + 1}"
        now = time.monotonic()
        folder = self.folder / name
        self._jobs[name] = Job(name, what, self._begin(arguments, folder), folder, now, now + self.seconds)
        return self.poll(name)

    def run(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Run a short command to its end; what it answers is the result."""
        with tempfile.TemporaryDirectory() as folder:
            process = self._begin(arguments, Path(folder))
            job = Job("", {}, process, Path(folder), time.monotonic(), time.monotonic() + _SHORT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SHORT)
            self._interrupt(job, "out of time")
            found: dict[str, Any] = _result(job.folder)
            return found

    def _begin(self, arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
        folder.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            return subprocess.Popen(
                [*self.command, *_as_json(arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,
            )

    def poll(self, name: str, wait: float = 0.0) -> dict[str, Any]:
        """How far a job is: its state, its latest messages, and what it answered once it has ended.

        Args:
            wait: seconds to wait for its end at most.

        Raises:
            VortexError: `VS031` for a name that no job has.
        """
        job = self._jobs.get(name)
        if job is None:
            raise no_such_job(name, list(self._jobs))
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.process.wait(max(0.0, min(wait, job.ends - time.monotonic())))
        state = self._state(job)
        answer: dict[str, Any] = {
            "job": name,
            "state": state,
            "seconds": round(time.monotonic() - job.began, 1),
            **job.what,
        }
        if state == "running":
            return answer | {"progress": _tail(job.folder / "err")}
        return answer | {"result": _result(job.folder)}

    def cancel(self, name: str) -> dict[str, Any]:
        """Interrupt a job: a campaign pauses with all it has finished."""
        self.poll(name)
        self._interrupt(self._jobs[name], "cancelled")
        return self.poll(name)

    def close(self) -> None:
        """End all jobs."""
        for job in self._jobs.values():
            if job.process.poll() is None:
                self._interrupt(job, "cancelled")

    def _state(self, job: Job) -> State:
        if job.process.poll() is None and time.monotonic() > job.ends:
            self._interrupt(job, "out of time")
        status = job.process.poll()
        if job.stopped is not None:
            return job.stopped
        return "running" if status is None else "done" if status == 0 else "failed"

    def _interrupt(self, job: Job, why: State) -> None:
        if job.process.poll() is not None:
            return
        job.stopped = why
        _signal(job, signal.SIGINT)
        try:
            job.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            _signal(job, signal.SIGKILL)
            job.process.wait()


def _as_json(arguments: Sequence[str]) -> list[str]:
    """A command line with `--json` where it is an option: after the command, before the names that follow `--`.

    Raises:
        VortexError: `VS010` for what no command line can hold.
    """
    for argument in arguments:
        if "\0" in argument or len(argument) > _LONGEST or not _is_text(argument):
            raise bad_value("an argument", visible(argument, 80), f"text of at most {_LONGEST} characters")
    at = 0 if arguments[0].startswith("-") else 1
    return [*arguments[:at], "--json", *arguments[at:]]


def _is_text(argument: str) -> bool:
    try:
        os.fsencode(argument)
    except UnicodeEncodeError:
        return False
    return True


def _signal(job: Job, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.process.pid, number)


def _result(folder: Path) -> Any:
    """The JSON a command printed; without any, its last messages."""
    try:
        return json.loads(_tail(folder / "out", _LARGEST))
    except ValueError:
        return {"messages": _tail(folder / "err")}


def _tail(path: Path, limit: int = _PROGRESS) -> str:
    """The end of a file, at most `limit` bytes of it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - limit))
        return file.read(limit).decode("utf-8", "replace")
