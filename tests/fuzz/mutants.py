"""Mutants of what is read from files and servers: IR, knobs, cards, run logs, replies.

`python -m tests.fuzz.mutants 20000` tries so many, evenly over the kinds, and prints what did not end in a value or a
`VortexError`. The same seed tries the same mutants.
"""

from __future__ import annotations

import copy
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from agents.reply import extract
from evaluators.plan import load_plan
from search.commands import verify
from search.log import events
from search.log.run import open_run, read_state
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.files import parse_json
from vortex_core.flow.emit import emit
from vortex_core.ir.flow import Flow
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 10**6, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "x", "head",
    "dim", "page", "token", "q", "D", "S/0", "1e9", "\ud800", "\x00", "x" * 5_000,
    [], [[]], {}, {"a": 1}, [0], [None] * 50,
]  # fmt: skip
FLOWS = ("quest", "h2o", "lserve", "twilight", "rocketkv", "loki", "nsa", "snapkv")
REPLY = "Thoughts.\n```python\nfrom vortex_core import ops, vFlow\nclass W(vFlow):\n    pass\n```\nIDEA: x\n"


def mutate(value: Any, rng: random.Random) -> Any:
    """A copy with one to three places changed, removed, doubled, renamed or swapped."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return rng.choice(ODD)
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0 | 1:
                holder[key] = copy.deepcopy(rng.choice(ODD))
            case 2:
                del holder[key]
            case 3:
                other, place = rng.choice(places)
                if _has(other, place):
                    holder[key] = copy.deepcopy(other[place])
            case 4 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 5 if isinstance(holder, dict):
                holder[str(rng.choice(ODD))[:50]] = holder.pop(key)
            case _:
                if isinstance(holder[key], int | float):
                    holder[key] = holder[key] * rng.choice([-1, 2, 0.5, 10**9])
    return value


def _places(value: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    if depth > 12 or not isinstance(value, dict | list):
        return []
    found: list[tuple[Any, Any]] = [
        (value, key) for key in (value if isinstance(value, dict) else range(len(value)))
    ]
    for _, key in list(found):
        found += _places(value[key], depth + 1)
    return found


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _text(value: Any) -> str:
    return json.dumps(value)


def read_program(rng: random.Random) -> None:
    """IR as JSON, then emitted as source if it is legal."""
    flow = library.load(rng.choice(FLOWS))
    data = parse_json(_text(mutate(flow.original.to_json(), rng)))
    program = Program.from_json(data)
    emit(program.canonical(), flow.knobs, "x", "d", beside=bool(program.params))


def read_knobs(rng: random.Random) -> None:
    """Knobs, then their pages at some lengths."""
    whole = Knobs(budget="max(256, length / 16) if layer < 4 else 64", dense_layers=(0, 1)).to_json()
    knobs = Knobs.from_json(parse_json(_text(mutate(whole, rng))))
    for length in (1, 17, 4096, 10**6):
        knobs.pages(length, 1, 28)


def read_flow(rng: random.Random) -> None:
    """A bundle: name, program, knobs."""
    flow = library.load(rng.choice(FLOWS)).flow
    Flow.from_json(parse_json(_text(mutate(flow.to_json(), rng))))


@cache
def _plan() -> dict[str, Any]:
    return load_plan("quick").model_dump(mode="json")


def read_card(rng: random.Random) -> None:
    """An export's card, as `verify` reads it."""
    flow = library.load("quest")
    card = {
        "format": 1, "ir_hash": flow.ir_hash, "key": flow.key, "model": "smollm2-135m", "plan": _plan(),
        "metrics": {"search": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}}, "seeds": {"search": 1},
        "items": {"search": {"needle": [1.0]}},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for name, value in (
            ("card", card),
            ("program", flow.program.to_json()),
            ("knobs", flow.knobs.to_json()),
        ):
            changed = mutate(value, rng) if rng.random() < 0.6 else value
            (path / f"{name}.json").write_text(_text(changed), encoding="utf-8")
        # Tracing is another test's; what follows it reads the card.
        found = mock.patch.object(verify, "trace_file", return_value=flow)
        with found, mock.patch.object(verify, "_CPU_STAGES", ("static",)):
            list(verify.verify(path, measure=False))


def read_log(rng: random.Random) -> None:
    """A run's log: changed events, in another order."""
    started = events.CampaignStarted("sim", {"model": "m"}, {}, {}, {})
    key = "k" * 16
    admitted = events.Admitted(
        key, "i" * 16, "n", "d", "0" * 16, "1" * 16, {"page_size": 16}, None, True, 0.1
    )
    done = events.CandidateFinished(key, "search", 1, True)
    log: list[events.Event] = [started, events.SessionStarted(1, {}), admitted, done]
    rows = [[e.kind, e.version, e.to_json()] for e in log]
    rows = mutate(rows, rng)
    if isinstance(rows, list) and rng.random() < 0.3:
        rng.shuffle(rows)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "r").mkdir()
        db = sqlite3.connect(Path(folder) / "r" / "events.sqlite")
        db.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, time REAL, kind, version, body)")
        for seq, row in enumerate(rows if isinstance(rows, list) else []):
            kind, version, body = (*row, None, None, None)[:3] if isinstance(row, list) else (row, 1, {})
            cells = [x if (isinstance(x, str) and x.isascii()) or (type(x) is int and abs(x) < 2**62) else None
                     for x in (kind, version)]  # fmt: skip
            db.execute("INSERT INTO events VALUES (?, 0, ?, ?, ?)", (seq + 1, *cells, _text(body)))
        db.commit()
        db.close()
        with open_run("r", readonly=True, root=Path(folder)) as run:
            read_state(run)


def read_reply(rng: random.Random) -> None:
    """A model's answer with pieces cut, repeated and mixed."""
    pieces = ["```", "```python\n", "~~~\n", "<think>", "</think>", "\n" * 50, "class A(a", "IDEA:", "\ud800",
              "[" * 500, "\u202e", REPLY, "  ", "`" * 30, '"""', "vFlow)", "\x00", "def f(\n"]  # fmt: skip
    text = list(REPLY)
    for _ in range(rng.randint(1, 30)):
        text.insert(rng.randrange(len(text) + 1), rng.choice(pieces) * rng.choice([1, 1, 2, 50]))
    extract("".join(text))


KINDS: dict[str, Callable[[random.Random], None]] = {
    "IR": read_program, "knobs": read_knobs, "flow": read_flow, "card": read_card, "log": read_log, "reply": read_reply,
}  # fmt: skip


def try_all(count: int, seed: int = 1) -> tuple[dict[str, int], list[str]]:
    """Try `count` mutants; returns how many of each kind were legal, and what raised anything but a coded error."""
    import evaluators.worker  # noqa: F401  it brings torch, which is no mutant's time

    legal, wrong = dict.fromkeys(KINDS, 0), []
    for n in range(count):
        kind = list(KINDS)[n % len(KINDS)]
        began = time.monotonic()
        try:
            KINDS[kind](random.Random(f"{seed}-{n}"))
            legal[kind] += 1
        except VortexError:
            pass
        except ValueError as error:
            if not str(error).startswith("no JSON"):
                wrong.append(f"{kind} {n}: {type(error).__name__}: {error}"[:300])
        except Exception as error:
            wrong.append(f"{kind} {n}: {type(error).__name__}: {error}"[:300])
        if time.monotonic() - began > 10:
            wrong.append(f"{kind} {n}: took {time.monotonic() - began:.0f} s")
    return legal, wrong


if __name__ == "__main__":
    accepted, failed = try_all(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    print(f"{sys.argv[1]} mutants, legal: {accepted}, uncoded: {len(failed)}")
    print("\n".join(failed[:50]))
    sys.exit(bool(failed))
