"""What workers write down: one file of JSON lines for each process, whose path errors name."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any, TextIO

import structlog


def log_folder() -> Path:
    """Where this machine's workers write: `$VORTEX_LOGS`, which a campaign on its own machine sets to its run's folder
    `logs`; else a folder among temporary files."""
    return Path(os.environ.get("VORTEX_LOGS") or Path(tempfile.gettempdir()) / "vortex-search-logs")


class WorkerLog:
    """The log of this process.

    Args:
        role: `engine`, `cpu` or `serving`; the file is named after it, the host and the process.

    Attributes:
        place: `host:path`, for errors; empty where the folder cannot be written.
    """

    def __init__(self, role: str) -> None:
        host, self.place = socket.gethostname(), ""
        self._file: TextIO | None = None
        path = log_folder() / f"{role}-{host}-{os.getpid()}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError:
            return  # a worker without a log still works; its errors then name Ray's own files
        self.place = f"{host}:{path}"
        self._logger = structlog.wrap_logger(
            structlog.WriteLogger(self._file),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.dict_tracebacks,
                structlog.processors.JSONRenderer(default=str),
            ],
            role=role,
            host=host,
            pid=os.getpid(),
        )

    def say(self, event: str, **facts: Any) -> None:
        """One line."""
        if self._file is not None:
            self._logger.info(event, **facts)

    def failed(self, event: str, error: BaseException, **facts: Any) -> str:
        """One line with a traceback; returns `place`."""
        if self._file is not None:
            self._logger.error(event, exc_info=error, **facts)
        return self.place
