"""One writer at a time: locks, leases and file systems that several machines share."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from search.log import events as ev
from search.log import lock as locks
from search.log.lock import WriterLock, filesystem_of, is_shared
from search.log.run import LOG
from search.log.store import SqliteEventStore
from search.testing import EXAMPLES
from vortex_core.errors import VortexError


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "filesystem_of", lambda path: "nfs4")


def test_file_systems_are_told_apart(tmp_path: Path):
    assert filesystem_of(Path("/proc/self")) == "proc"
    assert filesystem_of(tmp_path)
    assert [is_shared(name) for name in ("nfs4", "lustre", "fuse.sshfs", "ext4", "xfs", "tmpfs")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.usefixtures("network")
def test_a_log_on_a_network_file_system_needs_no_shared_memory(tmp_path: Path):
    store = SqliteEventStore(tmp_path / LOG)
    store.append(*EXAMPLES)
    assert not (tmp_path / f"{LOG}-shm").exists()
    reader = SqliteEventStore(tmp_path / LOG, readonly=True)
    assert len(list(reader.read())) == len(EXAMPLES)
    reader.close()
    store.close()


@pytest.mark.usefixtures("network")
def test_locks_that_exclude_nobody_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)  # as on a mount with nolock
    with pytest.raises(VortexError, match="nfs4") as error:
        SqliteEventStore(tmp_path / LOG)
    assert error.value.code == "VS046"


@pytest.mark.usefixtures("network")
def test_another_machines_lease_is_respected_until_it_is_old(tmp_path: Path):
    held = tmp_path / "events.lock"
    held.write_text(json.dumps({"pid": 4, "host": "elsewhere", "token": "t"}))  # its lock is not seen here
    with pytest.raises(VortexError, match=r"process 4 on elsewhere, \d+ s ago") as error:
        SqliteEventStore(tmp_path / LOG)
    assert error.value.code == "VS003"
    old = time.time() - locks.LEASE - 1
    os.utime(held, (old, old))
    store = SqliteEventStore(tmp_path / LOG)
    store.close()
    SqliteEventStore(tmp_path / LOG).close()  # what was released may be taken at once


@pytest.mark.parametrize("late", [EXAMPLES[2:3], EXAMPLES[2:4]])
@pytest.mark.usefixtures("network")
def test_a_writer_that_was_believed_dead_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: tuple[ev.Event, ...]
):
    path = tmp_path / LOG
    first = SqliteEventStore(path)
    first.append(EXAMPLES[0])
    with monkeypatch.context() as patched:  # another machine, to which the first one's lock means nothing
        patched.setattr(WriterLock, "_take", lambda self, run: None)
        second = SqliteEventStore(path)
    second.append(EXAMPLES[1])
    with pytest.raises(VortexError) as error:
        first.append(*late)
    assert error.value.code == "VS047"
    assert [r.event for r in second.read()] == list(EXAMPLES[:2])
    first.close()
    second.close()
