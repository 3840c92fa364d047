"""A cluster of this machine's own: on the loopback, behind a token, in a private folder, without secrets.

Ray by itself listens on every interface, keeps its sessions where everybody may write, and hands workers the whole
environment. Whoever reaches its ports may run code; a campaign's workers run nothing but verified programs, yet
their libraries are many.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ray._private import ray_constants
from ray._raylet import Config  # type: ignore[attr-defined]  # compiled, without types

from search.errors import no_cluster
from search.executors.environment import without_secrets
from search.executors.shared import ROOT

# Ray puts sockets some 70 characters below its folder; the system takes paths of 107.
_LONGEST = 36
_LOOPBACK = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR  # off: every address it chooses is the loopback


def ray_folder() -> Path:
    """The private folder (0700) that holds Ray's sessions; `session_latest/logs` in it is what workers wrote.

    Raises:
        VortexError: `VS016`, if there is no place for one.
    """
    found = tempfile.gettempdir()
    for base in dict.fromkeys([found, "/tmp"]):  # shorter than a TMPDIR that is too long
        folder = Path(base) / f"vortex-search-{os.getuid()}"
        if len(str(folder)) > _LONGEST:
            continue
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            made = folder.lstat()
            if stat.S_ISDIR(made.st_mode) and made.st_uid == os.getuid():
                folder.chmod(0o700)
                return folder / "ray"
    raise no_cluster(
        f"neither TMPDIR ({found}, at most {_LONGEST - len('/vortex-search-') - 5} characters) nor /tmp has a place "
        "for its sockets"
    )


def _token(folder: Path) -> Path:
    """A file that holds this user's token for clusters of this machine; made once, seen whole or not at all."""
    path = folder / "token"
    if not path.is_file():
        handle, made = tempfile.mkstemp(dir=folder)  # 0600
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(made, path)
        Path(made).unlink()
    return path


@contextlib.contextmanager
def private_cluster(folder: Path, logs: str) -> Iterator[None]:
    """While this lasts, a cluster that `ray.init` starts is private, and its processes inherit no secrets.

    Args:
        folder: `ray_folder()`.
        logs: where its workers write; empty for a place of their own.
    """
    token = _token(folder.parent)
    saved, clusters = dict(os.environ), ray_constants.ENABLE_RAY_CLUSTER
    kept = without_secrets(saved)
    for name in saved.keys() - kept.keys():
        del os.environ[name]
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        _LOOPBACK: "0",
        # Ray starts workers at nice 15, where anything else on the machine starves an engine being timed.
        "RAY_worker_niceness": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [saved.get("PYTHONPATH")])]),
    }
    if logs:
        os.environ["VORTEX_LOGS"] = logs
    # Both were read from the environment when Ray was imported.
    ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        os.environ.clear()
        os.environ.update(saved)
