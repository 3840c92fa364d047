"""Whether a run is as it was written: its database, the chain of its events, their meaning, and the texts they name.

Nothing is changed. Each problem says what to do; a run with none can be trusted as far as hashes go.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

from search.log import events as ev
from search.log import schema
from search.log.rows import unpack
from search.log.run import LOG, SECRET, Run
from search.log.state import CampaignState
from search.log.store import Record, SqliteEventStore, parse, read_only_uri
from vortex_core.errors import VortexError

Level = Literal["problem", "note"]
_MOST = 50  # findings of one kind; a broken log may have one for every event


@dataclass(frozen=True)
class Finding:
    """Something `fsck` found. A note is no damage."""

    level: Level
    what: str
    remedy: str = ""


@dataclass
class Check:
    """What was looked at and what was found."""

    events: int = 0
    texts: int = 0
    candidates: int = 0
    findings: list[Finding] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, level: Level, what: str, remedy: str = "") -> None:
        """Note a finding, up to some of each kind."""
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count <= _MOST:
            self.findings.append(Finding(level, what, remedy))
        elif count == _MOST + 1:
            self.findings.append(Finding(level, f"further findings of this kind are left out: {kind}"))

    @property
    def problems(self) -> int:
        """How many findings are damage."""
        return sum(f.level == "problem" for f in self.findings)


_RESTORE = "restore the run's folder from a copy; what the log says after this event cannot be trusted"
_TEXT = "restore the run's folder from a copy; without this text the candidate cannot be shown, exported or served"


def check_run(run: Run, *, deep: bool = False, progress: Callable[[int], None] = lambda n: None) -> Check:
    """Check a run.

    Args:
        run: opened for reading.
        deep: also verify every program again and compare its identity with the log's; takes milliseconds each.
        progress: called now and then with the events read so far.
    """
    check = Check()
    store = run.store
    assert isinstance(store, SqliteEventStore)
    with closing(sqlite3.connect(read_only_uri(run.folder / LOG), uri=True)) as db:
        _database(db, check)
    there = _names(
        run, check
    )  # before the events: a driver may write more meanwhile, which these will not name
    state = _events(store, check, progress)
    _texts(run, state, there, check)
    if not check.events:
        left = len(there) + (run.folder / SECRET).exists()
        if left:
            check.add("end", "problem", f"the log is empty, but {left} texts of its run are there", _RESTORE)
    if deep:
        _programs(run, state, check)
    check.candidates = len(state.candidates)
    return check


def _database(db: sqlite3.Connection, check: Check) -> None:
    version = schema.version_of(db)
    if version < 2:
        check.add(
            "schema", "note", f"the log has version {version} of {schema.VERSION}: its events are not chained",
            "it is brought up to date when a campaign or `compact` opens it",
        )  # fmt: skip
    try:
        for (said,) in db.execute("PRAGMA integrity_check(20)"):
            if said != "ok":
                check.add("database", "problem", f"the database is damaged: {said}", _RESTORE)
        if version >= 2:
            (numbered,) = db.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'events'").fetchone()
            (last,) = db.execute(
                "SELECT max((SELECT ifnull(max(seq), 0) FROM events), (SELECT ifnull(max(last), 0) FROM packed))"
            ).fetchone()
            if isinstance(numbered, int) and numbered > last:
                check.add(
                    "end", "problem", f"events {last + 1} to {numbered} were written and are gone", _RESTORE
                )
            for first, last, chain, body in db.execute("SELECT first, last, chain, body FROM packed"):
                _segment(db, check, first, last, chain, body)
    except sqlite3.DatabaseError as error:
        check.add("database", "problem", f"the database is damaged: {error}", _RESTORE)


def _segment(db: sqlite3.Connection, check: Check, first: int, last: int, said: str, body: bytes) -> None:
    """A packed segment ends with the link it says, counted from the end of the one before."""
    before = db.execute("SELECT chain FROM packed WHERE last = ?", (first - 1,)).fetchone()
    chain = schema.START if first == 1 else before[0] if before else ""
    try:
        for seq, (when, kind, version, text) in enumerate(unpack(body), first):
            chain = schema.link(chain, seq, when, kind, version, text)
    except VortexError as error:
        check.add("segment", "problem", f"events {first} to {last}: {error.message}", _RESTORE)
        return
    if chain != said:
        check.add("segment", "problem", f"events {first} to {last} are not those that were written", _RESTORE)


def _events(store: SqliteEventStore, check: Check, progress: Callable[[int], None]) -> CampaignState:
    """Chain, order, meaning; returns the state as far as it could be folded."""
    state, chain, time, folding = CampaignState(), schema.START, 0.0, True
    seen: set[tuple[Any, ...]] = set()
    try:
        for seq, when, kind, version, body, said in store.rows():
            check.events += 1
            if check.events % 10_000 == 0:
                progress(check.events)
            if seq != check.events:
                check.add("gap", "problem", f"event {check.events} is missing: {seq} comes next", _RESTORE)
                check.events = seq
            chain = schema.link(chain, seq, when, kind, version, body)
            if said not in ("", chain):
                check.add(
                    "chain", "problem", f"event {seq} ({kind}) is not the one that was written", _RESTORE
                )
                chain = said
            if when < time:
                check.add(
                    "time", "note", f"event {seq} is {time - when:.0f} s older than the one before: a clock went back",
                    "times and rates around it are unreliable; results are not touched",
                )  # fmt: skip
            time = when
            try:
                event = parse(kind, version, body, str(store.path))
            except VortexError as error:
                check.add("event", "problem", f"event {seq}: {error.message}", _RESTORE)
                folding = False
                continue
            for twice in _paid(event):
                if twice in seen:
                    check.add(
                        "twice",
                        "problem",
                        f"event {seq}: {' '.join(map(str, twice))} for the second time",
                        _RESTORE,
                    )
                seen.add(twice)
            if folding:
                folding = _fold(state, Record(seq, when, event), check)
    except VortexError as error:
        check.add("rows", "problem", error.message, _RESTORE)
    return state


def _paid(event: ev.Event) -> Iterator[tuple[Any, ...]]:
    """What must not be in a log twice."""
    match event:
        case ev.StageFinished(key=key, purpose=purpose, stage=stage, seed=seed):
            yield "result of", stage, f"({purpose}, items {seed})", "of", key
        case ev.Proposed(proposal=number):
            yield "answer to proposal", number
        case ev.CandidateFinished(key=key, purpose=purpose):
            yield "end of", key, f"({purpose})"


def _fold(state: CampaignState, record: Record, check: Check) -> bool:
    try:
        state.apply(record)
    except Exception as error:  # noqa: BLE001 - events of an order or content that no campaign writes
        check.add(
            "fold", "problem", f"event {record.seq} ({record.event.kind}) does not follow from those before it "
            f"({type(error).__name__}: {str(error)[:120]})", _RESTORE,
        )  # fmt: skip
        return False
    return True


def _names(run: Run, check: Check) -> set[str]:
    """Names of all texts that are there."""
    try:
        return run.files.names()
    except VortexError as error:
        check.add("texts", "problem", error.message, _TEXT)
        return set()


def _texts(run: Run, state: CampaignState, there: set[str], check: Check) -> None:
    """Everything that events name is there and is what its name says."""
    wanted: dict[str, str] = {}
    for candidate in state.candidates.values():
        wanted[f"{candidate.source}.py"] = candidate.label
        wanted[f"{candidate.program}.json"] = candidate.label
    for proposal in state.proposals.values():
        if proposal.source:
            wanted.setdefault(f"{proposal.source}.py", f"proposal {proposal.id}")
        if proposal.written:
            wanted.setdefault(f"{proposal.written}.py", f"proposal {proposal.id}")
        for name in proposal.words:
            wanted.setdefault(f"{name}.txt", f"proposal {proposal.id}")
    for (purpose, _), name in state.references.items():
        wanted[f"{name}.json"] = f"the dense answers to {purpose} items"
    for name, whose in wanted.items():
        check.texts += 1
        stem, _, suffix = name.rpartition(".")
        try:
            run.files.get(stem, f".{suffix}")
        except VortexError as error:
            check.add("text", "problem", f"{name} of {whose}: {error.message}", _TEXT)
    if spare := len(there - wanted.keys()):
        check.add("spare", "note", f"{spare} texts that no event names: an append failed after them")


def _programs(run: Run, state: CampaignState, check: Check) -> None:
    """Every program verifies, and is the one whose results the log keeps under its key."""
    for candidate in state.candidates.values():
        try:
            key = candidate.flow(run.files).key
        except VortexError as error:
            check.add("program", "problem", f"{candidate.label}: {error.code} {error.message}", _TEXT)
            continue
        if key != candidate.key:
            check.add(
                "identity", "problem", f"{candidate.label} is kept as {candidate.key} and reads as {key}",
                "check it with the version that wrote it: `leaderboard --json` names versions of every part",
            )  # fmt: skip
