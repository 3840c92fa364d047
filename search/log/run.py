"""A run on disk: `runs/NAME/` with its event log, which also holds the texts that events name."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.config import CampaignConfig
from search.errors import bad_log, bad_value, no_such_candidate, unknown_run
from search.log.events import CampaignStarted
from search.log.files import ContentStore
from search.log.state import CampaignState, Candidate
from search.log.store import EventStore, SqliteEventStore
from vortex_core.errors import VortexError
from vortex_core.files import named_path, read_text
from vortex_core.text import visible

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LOG = "events.sqlite"
SECRET = "sealed"


def runs_root() -> Path:
    """Where runs live: `$VORTEX_RUNS`, or `runs` in the working directory."""
    return named_path(os.environ.get("VORTEX_RUNS") or "runs")


def run_names(root: Path | None = None) -> list[str]:
    """Runs that have an event log."""
    root = root or runs_root()
    return sorted(p.parent.name for p in root.glob(f"*/{LOG}"))


@dataclass(frozen=True)
class Run:
    """An opened run.

    Attributes:
        name: folder name.
        folder: `runs/NAME`.
        store: its event log.
        files: sources (`.py`), programs and other JSON, by content; in the log, of older runs in files.
    """

    name: str
    folder: Path
    store: EventStore
    files: ContentStore


@contextmanager
def open_run(name: str, *, readonly: bool, root: Path | None = None) -> Iterator[Run]:
    """Open `runs/NAME`, for writing (made if missing, locked) or for reading.

    Raises:
        VortexError: `VS001` for an unknown run, `VS003` if another process writes it, `VS010` for a bad name.
    """
    root = root or runs_root()
    if not _NAME.fullmatch(name):
        raise bad_value("--run", name, "letters, digits, dots, dashes and underscores")
    folder = root / name
    if readonly and not (folder / LOG).exists():
        raise unknown_run(name, run_names(root))
    store = SqliteEventStore(folder / LOG, readonly=readonly)
    try:
        yield Run(name, folder, store, ContentStore(store.texts, folder / "files"))
    finally:
        store.close()


def sealed_secret(folder: Path, below: int) -> int:
    """A number that a run draws once and keeps, from which its sealed items are made: nobody can know them before the
    finals, and no two runs share them. Written with the first call, readable by the owner alone.

    Args:
        below: the number is smaller than this.

    Raises:
        VortexError: `VS005` where the file holds something else.
    """
    path = folder / SECRET
    with suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as out:
            out.write(str(secrets.randbelow(below)))
    try:
        found = int(read_text(path))
    except OSError as error:
        raise bad_log(str(path), error.strerror or str(error)) from error
    except ValueError as error:
        raise bad_log(str(path), "it is no number") from error
    if not 0 <= found < below:
        raise bad_log(str(path), "its number is out of range")
    return found


def read_state(run: Run) -> CampaignState:
    """The run's state as of now.

    Raises:
        VortexError: `VS005`, if the log cannot be read.
    """
    try:
        return CampaignState.fold(run.store.read())
    except VortexError:
        raise
    except Exception as error:  # events of an order or content that no campaign writes
        raise bad_log(str(run.folder / LOG), f"its events make no run ({type(error).__name__})") from error


def campaign_of(state: CampaignState) -> CampaignConfig:
    """The campaign that a run was started with, with the limits of its latest session.

    Raises:
        VortexError: `VS005`, if the log says none.
    """
    assert state.started is not None, "a run without its first event"
    return recorded_campaign(state.started, state.limits)


def recorded_campaign(started: CampaignStarted, changed: Mapping[str, Any] | None = None) -> CampaignConfig:
    """The campaign of a run's first event, with what was `changed` since.

    Raises:
        VortexError: `VS005`, if it is none.
    """
    try:
        return CampaignConfig.model_validate({**started.settings["campaign"], **(changed or {})})
    except (ValueError, KeyError, TypeError) as error:
        why = f"run {started.run!r} states no campaign ({type(error).__name__})"
        raise bad_log(f"of {visible(started.run, 100)}", visible(why, 200)) from error


def find_candidate(run: Run, state: CampaignState, wanted: str) -> Candidate:
    """A candidate by label (`c012`), number, key prefix of 6 digits or more, or name.

    Raises:
        VortexError: `VS006`, if there is none.
    """
    candidates = list(state.candidates.values())
    for candidate in candidates:
        if wanted in (candidate.label, str(candidate.number), candidate.key):
            return candidate
    by_prefix = [c for c in candidates if len(wanted) >= 6 and c.key.startswith(wanted)]
    by_name = [c for c in candidates if c.name == wanted]
    for found in (by_prefix, by_name):
        if found:
            return found[0]
    raise no_such_candidate(run.name, wanted, [*(c.label for c in candidates), *(c.name for c in candidates)])


def recorded_seed(started: CampaignStarted) -> int:
    """The seed of a run's first event.

    Raises:
        VortexError: `VS005`, if it says none.
    """
    seed = started.settings.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise bad_log("of this run", f"its seed is {visible(seed, 40)}")
    return seed
