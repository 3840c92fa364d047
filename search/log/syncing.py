"""Bringing a log's last events to the disk while the driver goes on."""

from __future__ import annotations

import os
import time
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

_REST = 0.01
"""Seconds between two waits for the disk. An answer by itself does not wait for them; of a burst many share one."""


class DiskSync:
    """Waits for the disk in a thread of its own, once for all that was asked for meanwhile.

    Args:
        path: a file that is only ever written in place or at its end; made before the first `begin`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._asked: SimpleQueue[bool] = (
            SimpleQueue()
        )  # whether more may come; nobody waits to put something in
        self._thread: Thread | None = None
        self.error: OSError | None = None
        """What the disk said; nothing written before it can be trusted to be there."""

    def begin(self) -> None:
        """Bring to the disk all that was written before this call. Returns at once."""
        self._asked.put(True)
        if self._thread is None:
            self._thread = Thread(target=self._run, name="log to disk", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait for what was asked for, and end the thread. Closing twice does nothing."""
        if self._thread is not None:
            self._asked.put(False)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            # The log's own connection keeps the file; SQLite locks no part of it, so closing this gives up no lock.
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                while self._asked.get():
                    more = all(self._asked.get() for _ in range(self._asked.qsize()))
                    os.fsync(file)
                    if not more:
                        return
                    time.sleep(_REST)
            finally:
                os.close(file)
        except OSError as error:
            self.error = error
