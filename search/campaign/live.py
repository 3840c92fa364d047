"""What others may see of a campaign while it runs, without reading its whole log: where it stands, and its ranking.

Kept in `RUN/live.sqlite` by the driver. It is a shadow of the log, written a moment later and never waited for:
losing it loses nothing, and a reader that finds it stale reads the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.results import StageResult
from search.campaign.archive import Entry, Score, order, score
from search.config import CampaignConfig, Objective
from search.log import events as ev
from search.log import foreign
from search.log.entries import Candidate
from search.log.state import CampaignState
from search.log.store import Record
from vortex_core.files import parse_json

FILE = "live.sqlite"
FRESH = 15.0
"""Seconds after its last word for which a driver counts as alive."""
_EVERY = 1.0
_WINDOW = 600.0  # seconds of which the rate is taken
_SCHEMA = """
CREATE TABLE IF NOT EXISTS board (
    number INTEGER PRIMARY KEY, reference INTEGER, scored INTEGER, verdict INTEGER, broken INTEGER, stale INTEGER,
    first REAL, second REAL, accuracy REAL, speed REAL, candidate TEXT
);
CREATE INDEX IF NOT EXISTS ranking ON board (scored, reference, broken, stale, verdict, first, second, number);
CREATE INDEX IF NOT EXISTS fronts ON board (verdict, accuracy, speed);
CREATE TABLE IF NOT EXISTS stands (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER, time REAL, body TEXT);
"""
_BODY = json.JSONEncoder(separators=(",", ":"))
_PLACE = "broken, stale, verdict, first, second, number"


def _for_writing(path: Path) -> sqlite3.Connection:
    """The view's tables. What lies there and is not ours goes: everything in a view can be made from the log again."""
    try:
        foreign.refuse_odd_files(path)
        db = sqlite3.connect(path, isolation_level=None)
        foreign.distrust(db, ("board", "stands"))
        foreign.refuse_triggers(db, ())
        with contextlib.closing(sqlite3.connect(":memory:")) as ours:
            ours.executescript(_SCHEMA)
            kept, known = _schema_of(db), _schema_of(ours)
        if not kept.items() <= known.items():
            raise sqlite3.DatabaseError("its tables are of another kind")
    except sqlite3.Error:
        for beside in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + beside).unlink(missing_ok=True)
        db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=OFF")
    db.executescript(_SCHEMA)
    return db


def _schema_of(db: sqlite3.Connection) -> dict[str, str]:
    found = db.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
    return {name: " ".join(str(sql).split()) for name, sql in found}


class LiveView:
    """The driver's side.

    Args:
        folder: of the run.
        config: of the campaign.
        facts: what no event says: what runs where, queue, engines.
        search: working seconds that are the search's, as far as is known now; None without limit.
    """

    def __init__(
        self,
        folder: Path,
        config: CampaignConfig,
        facts: Callable[[], dict[str, Any]],
        search: Callable[[], float | None],
    ) -> None:
        self._config = config
        self._facts = facts
        self._search = search
        objective = config.objective
        gates = (gate.metric for gate in objective.gates)
        self._shown = {objective.accuracy, objective.speed, *gates, "accuracy", "decode_speedup", "density"}
        self._finished: deque[tuple[float, int]] = deque()
        self._db = _for_writing(folder / FILE)
        self._db.execute("BEGIN")

    def begin(self, state: CampaignState) -> None:
        """Bring the ranking up to a log that others may have written since."""
        known = self._db.execute("SELECT seq FROM stands").fetchone()
        if known is None or known[0] != state.seq:
            self._db.execute("DELETE FROM board")
            for candidate in state.candidates.values():
                self._put(candidate)
        self.say(state)

    def watch(self, record: Record, state: CampaignState) -> None:
        """Called with every new event."""
        match record.event:
            case ev.CandidateFinished(key=key) | ev.CandidateAbandoned(key=key):
                self._put(state.candidates[key])

    def _put(self, candidate: Candidate) -> None:
        found = score(candidate, self._config.objective) if candidate.status() == "passed" else None
        if found is None and not candidate.reference:
            return
        place: tuple[Any, ...] = (None,) * 7
        if found is not None:
            broken, stale, verdict, first, second, _ = order(candidate, found)
            place = (verdict, broken, stale, first, second, *found.point)
        self._db.execute(
            "INSERT OR REPLACE INTO board VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                candidate.number,
                candidate.reference,
                found is not None,
                *place,
                _BODY.encode(_slim(candidate, self._shown)),
            ),
        )

    def say(self, state: CampaignState) -> None:
        """Write down where the campaign stands now."""
        now = time.time()
        self._finished.append((now, state.finished_found))
        while now - self._finished[0][0] > _WINDOW:
            self._finished.popleft()
        body = self._stands(state, now) | self._facts()
        self._db.execute(
            "INSERT OR REPLACE INTO stands VALUES (1, ?, ?, ?)", (state.seq, now, json.dumps(body))
        )
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def _stands(self, state: CampaignState, now: float) -> dict[str, Any]:
        began, before = self._finished[0]
        rate = (state.finished_found - before) / max(now - began, 1e-9) if now > began else 0.0
        limits, new = self._config.limits, state.distinct_programs / max(state.finished_found, 1)
        left = [max(0, limits.candidates - state.distinct_programs) / new] if new else []
        if limits.evaluations is not None:
            left.append(max(0, limits.evaluations - state.finished_found))
        etas = [count / rate for count in left] if rate else []
        if (seconds := self._search()) is not None:
            etas.append(max(0.0, seconds - state.active_seconds))
        return {
            "phase": _phase(state),
            "programs": state.distinct_programs,
            "programs_wanted": self._config.limits.candidates,
            "candidates": state.finished_found,
            "stopped": len(state.failed),
            "proposals": len(state.proposals),
            "per_minute": round(rate * 60, 2),
            "eta_seconds": round(min(etas)) if etas else None,
            "active_seconds": round(state.active_seconds, 1),
            "gpu_seconds": round(state.gpu_seconds, 1),
            "dollars": round(state.dollars, 4),
            "infrastructure_failures": len(state.infrastructure),
            "stages": {
                name: {"runs": t.runs, "seconds": round(t.seconds, 2), "doubled": t.doubled}
                for name, t in state.stage_time.items()
            },
            "session": state.sessions,
            "finished": state.finished.reason if state.finished else None,
        }

    async def keep(self, state: CampaignState, also: Callable[[], None] = lambda: None) -> None:
        """Write it down every second, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY)
            with contextlib.suppress(
                sqlite3.Error
            ):  # a full disk ends the campaign through its log, not through this
                self.say(state)
            also()

    def close(self, state: CampaignState) -> None:
        """The last word."""
        with contextlib.suppress(sqlite3.Error):
            self.say(state)
            self._db.execute("COMMIT")
        self._db.close()


@dataclass(frozen=True)
class Live:
    """What a reader finds.

    Attributes:
        seq: event up to which it goes.
        age: seconds since the driver wrote it.
        stands: see `LiveView`.
    """

    seq: int
    age: float
    stands: dict[str, Any]

    @property
    def alive(self) -> bool:
        """Whether a driver seems to be at work."""
        return self.age < FRESH and self.stands.get("finished") is None


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection | None]:
    path = folder / FILE
    if not path.is_file():
        yield None
        return
    foreign.refuse_odd_files(path)
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        foreign.distrust(db, ("board", "stands"))
        yield db


def read_live(folder: Path) -> Live | None:
    """Where a campaign stands, as its driver last said; None where none did, or it cannot be read."""
    try:
        with _reading(folder) as db:
            found = None if db is None else db.execute("SELECT seq, time, body FROM stands").fetchone()
        if found is None:
            return None
        live = Live(int(found[0]), time.time() - found[1], dict(parse_json(found[2])))
    except (sqlite3.Error, ValueError, TypeError, OverflowError):
        return None
    plain = math.isfinite(live.age) and all(
        _is_said(live.stands.get(k, ...), kind) for k, kind in _SAID.items()
    )
    return live if plain else None


def _is_said(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


_NUMBER = (int, float)
_SAID: dict[str, Any] = {
    "phase": str, "programs": int, "programs_wanted": int, "candidates": int, "stopped": int, "proposals": int,
    "per_minute": _NUMBER, "eta_seconds": (int, float, type(None)), "active_seconds": _NUMBER, "gpu_seconds": _NUMBER,
    "dollars": _NUMBER, "infrastructure_failures": int, "stages": dict, "finished": (str, type(None)),
}  # fmt: skip


def read_board(folder: Path, objective: Objective, limit: int) -> list[Entry]:
    """The leaders, references among them, best first."""
    with _reading(folder) as db:
        if db is None:
            return []
        found = db.execute(
            f"SELECT candidate FROM board WHERE scored AND NOT reference ORDER BY {_PLACE} LIMIT ?", (limit,)
        ).fetchall()
        found += db.execute("SELECT candidate FROM board WHERE reference").fetchall()
        candidates = [_candidate(json.loads(text)) for (text,) in found]
        scored = [(c, s) for c in candidates if (s := score(c, objective)) is not None and not c.ended]
        scored.sort(key=lambda pair: order(*pair))
        entries, rank = [], 0
        for candidate, found_score in scored:
            rank += not candidate.reference
            front = 0 if _on_the_front(db, found_score) else 1
            entries.append(Entry(candidate, found_score, None if candidate.reference else rank, front))
        return entries


def _on_the_front(db: sqlite3.Connection, found: Score) -> bool:
    accuracy, speed = found.point
    beaten = db.execute(
        "SELECT 1 FROM board WHERE verdict = ? AND accuracy >= ? AND speed >= ? AND (accuracy > ? OR speed > ?) "
        "LIMIT 1",
        (int(found.verdict), accuracy, speed, accuracy, speed),
    )
    return beaten.fetchone() is None


def _phase(state: CampaignState) -> str:
    if state.finished is not None:
        return "finished"
    if state.finalists is not None:
        return "finals"
    return "searching" if state.proposals else "measuring references"


def _slim(candidate: Candidate, shown: set[str]) -> dict[str, Any]:
    """A candidate with the numbers that a ranking shows, and without its answers."""
    plain = {k: v for k, v in vars(candidate).items() if k not in ("results", "abandoned")}
    results = {
        purpose: [
            slim
            for result in results.values()
            if (slim := _shown(result, shown))["metrics"] or slim["failure"] or slim["info"]
        ]
        for purpose, results in candidate.results.items()
    }
    abandoned = {purpose: event.to_json() for purpose, event in candidate.abandoned.items()}
    return plain | {"results": results, "abandoned": abandoned}


def _shown(result: StageResult, shown: set[str]) -> dict[str, Any]:
    metrics = {name: metric.to_json() for name, metric in result.metrics.items() if name in shown}
    where = result.info.get("measured_on")
    info = {"measured_on": where} if metrics and where else {}
    return result.to_json() | {"metrics": metrics, "items": {}, "info": info}


def _candidate(data: dict[str, Any]) -> Candidate:
    results = {
        purpose: {r["stage"]: StageResult.from_json(r) for r in listed}
        for purpose, listed in data["results"].items()
    }
    abandoned = {purpose: ev.CandidateAbandoned(**event) for purpose, event in data["abandoned"].items()}
    parts = {purpose: tuple(found) for purpose, found in data["parts"].items()}
    return Candidate(
        **data
        | {"results": results, "abandoned": abandoned, "parts": parts, "parents": tuple(data["parents"])}
    )
