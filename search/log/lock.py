"""One writer a run, also where a run lies on a file system that several machines share.

On a local disk the kernel's lock is enough: it dies with its holder. On a network file system it may be kept by one
machine only, or by none, so three things are added: a test that the lock excludes anybody at all, a lease that the
holder renews and that other machines see, and a token in the log itself, checked in every append, which stops a
writer that was believed dead and comes back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import secrets
import stat
import threading
import time
from pathlib import Path
from typing import IO, Any

from search.errors import locks_do_nothing, run_locked
from vortex_core.files import UnfitFileError

LEASE = 90.0
"""Seconds without a sign of life after which another machine may take a run over."""
_RENEW = 15.0
_NETWORK = (
    "nfs", "cifs", "smb", "lustre", "beegfs", "gpfs", "ceph", "9p", "afs", "virtiofs", "orangefs", "pvfs", "panfs",
    "wekafs", "gfs2", "ocfs2", "fuse.",
)  # fmt: skip


def filesystem_of(path: Path) -> str:
    """The type of the file system that holds a path, e.g. `ext4` or `nfs4`; empty where the system does not say."""
    found, longest = "", -1
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    resolved = str(path.resolve())
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4].replace("\\040", " ")
        inside = resolved == mount or resolved.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= longest:  # of two mounts at one place the later one is seen
            found, longest = right.split()[0], len(mount)
    return found


def is_shared(filesystem: str) -> bool:
    """Whether other machines may see the same files."""
    return filesystem.startswith(_NETWORK)


class WriterLock:
    """Held for as long as a run is written.

    Args:
        path: of the event log; the lock lies beside it.

    Raises:
        VortexError: `VS003`, if another process holds it, here or on another machine; `VS046` where locks exclude
            nobody.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.token = secrets.token_hex(8)
        self.filesystem = filesystem_of(path.parent)
        self.shared = is_shared(self.filesystem)
        self._path = path.with_suffix(".lock")
        self._stop = threading.Event()
        self._file: IO[str] | None = _opened(self._path)
        try:
            self._take(path.parent.name)
        except BaseException:
            self._file.close()
            raise
        if self.shared:
            threading.Thread(target=self._renew, name="run lease", daemon=True).start()

    def _take(self, run: str) -> None:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise run_locked(run, _words(self._read())) from error
        if self.shared:
            if self._excludes_nobody():
                raise locks_do_nothing(str(self._path), self.filesystem)
            holder, age = self._read(), self._age()
            if holder and holder.get("host") != platform.node() and age < LEASE:
                left = f", {age:.0f} s ago; it may be taken over after {LEASE:.0f} s without a sign of life"
                raise run_locked(run, _words(holder) + left)
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": platform.node(), "token": self.token}))
        self._file.flush()

    def _read(self) -> dict[str, Any]:
        """What the lock says of its holder: process, host and token; empty where nobody holds it."""
        assert self._file is not None
        self._file.seek(0)
        try:
            found = json.loads(self._file.read(4096))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {"pid": found}  # earlier versions wrote the number alone

    def _excludes_nobody(self) -> bool:
        """Whether a second opening of the file gets the lock that the first one holds."""
        with _opened(self._path) as second:
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            return True

    def _age(self) -> float:
        """Seconds since the holder was last seen, by the file system's own clock: machines' clocks may differ."""
        now = self._path.with_suffix(".clock")
        now.touch()
        try:
            return now.stat().st_mtime - self._path.stat().st_mtime
        finally:
            now.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._stop.wait(_RENEW):
            with contextlib.suppress(OSError):
                self._path.touch()

    def release(self) -> None:
        """Let others write. Twice does nothing."""
        self._stop.set()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
            self._file.close()
            self._file = None


def _opened(path: Path) -> IO[str]:
    """The lock's file, made where there is none. In a stranger's run it may be a link, and what it leads to would be
    emptied.

    Raises:
        OSError: it is no plain file, or cannot be opened.
    """
    if path.is_symlink():
        raise UnfitFileError(f"{path.name} is a link", path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UnfitFileError(f"{path.name} is no file", path)
    return os.fdopen(handle, "a+", encoding="utf-8")


def _words(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    host = holder.get("host")
    return f"process {holder.get('pid')}" + (f" on {host}" if host and host != platform.node() else "")


def steady_clock() -> float:
    """Unix time that runs evenly within a process: it is set once, whatever the machine's clock does afterwards."""
    return _BEGAN + time.monotonic() - _BEGAN_STEADY


_BEGAN, _BEGAN_STEADY = time.time(), time.monotonic()
