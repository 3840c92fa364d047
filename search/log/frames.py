"""A run as tables for other tools: one row a candidate, a measurement, a proposal, an event. Parquet or CSV.

Written while a campaign runs as well: what is read is the log as it stands at that moment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import bad_log, bad_value, not_written
from search.log.run import Run
from search.log.state import CampaignState
from vortex_core.text import visible

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("parquet", "csv")
_BATCH = 20_000  # rows of a row group: a run of any length is written in bounded memory


def write_frames(run: Run, state: CampaignState, folder: Path, form: str) -> dict[str, int]:
    """Write `candidates`, `measurements`, `proposals`, `parts` and `events` into a folder.

    Args:
        form: `parquet` or `csv`.

    Returns:
        Rows by table.

    Raises:
        VortexError: `VS010` for another format, `VS017` where nothing can be written.
    """
    if form not in FORMATS:
        raise bad_value("--format", form, f"one of {', '.join(FORMATS)}")
    tables: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "candidates": lambda: _candidates(state),
        "measurements": lambda: _measurements(state),
        "proposals": lambda: _proposals(state),
        "parts": lambda: _parts(state),
        "events": lambda: _events(run),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {
            name: _write(rows(), _schema(name), folder / f"{name}.{form}", form)
            for name, rows in tables.items()
        }
    except OSError as error:
        raise not_written(str(folder), error.strerror or str(error)) from error


def _write(rows: Iterator[dict[str, Any]], schema: pa.Schema, path: Path, form: str) -> int:
    import pyarrow as pa
    from pyarrow import csv, parquet

    writer: Any = (parquet.ParquetWriter if form == "parquet" else csv.CSVWriter)(path, schema)
    count = 0
    with writer:
        while batch := [row for _, row in zip(range(_BATCH), rows, strict=False)]:
            try:
                table = pa.Table.from_pylist(batch, schema=schema)
            except (pa.ArrowException, OverflowError) as error:  # a count without an end, a text for a number
                raise bad_log(f"of table {path.stem}", visible(error, 200)) from error
            writer.write_table(table)
            count += len(batch)
    return count


def _schema(name: str) -> pa.Schema:
    """Columns of a table, with their types."""
    import pyarrow as pa

    text, whole, real, flag = pa.string(), pa.int64(), pa.float64(), pa.bool_()
    columns: dict[str, list[tuple[str, Any]]] = {
        "candidates": [
            ("id", text), ("number", whole), ("key", text), ("ir_hash", text), ("name", text), ("reference", flag),
            ("arm", text), ("proposer", text), ("proposal", whole), ("parents", text), ("knobs", text),
            ("status", text), ("ended", text), ("fresh", text), ("holdout", text), ("admitted_at", real),
            ("finished_at", real), ("parts", text), ("source", text),
        ],
        "measurements": [
            ("id", text), ("key", text), ("purpose", text), ("seed", whole), ("stage", text), ("passed", flag),
            ("metric", text), ("value", real), ("low", real), ("high", real), ("unit", text), ("how", text),
            ("n", whole), ("seconds", real), ("error", text), ("measured_on", text),
        ],
        "proposals": [
            ("proposal", whole), ("arm", text), ("request", text), ("proposer", text), ("answered_by", text),
            ("parents", text), ("repairs", whole), ("outcome", text), ("key", text), ("dollars", real),
            ("error", text), ("idea", text),
        ],
        "parts": [
            ("part", whole), ("results", whole), ("versions", text), ("machine", text), ("engines", text),
        ],
        "events": [("seq", whole), ("time", real), ("kind", text), ("body", text)],
    }  # fmt: skip
    return pa.schema(columns[name])


def _candidates(state: CampaignState) -> Iterator[dict[str, Any]]:
    for c in state.candidates.values():
        yield {
            "id": c.label,
            "number": c.number,
            "key": c.key,
            "ir_hash": c.ir_hash,
            "name": c.name,
            "reference": c.reference,
            "arm": c.arm,
            "proposer": c.proposer,
            "proposal": c.proposal,
            "parents": " ".join(c.parents),
            "knobs": _json(c.knobs),
            "status": c.status(),
            "ended": c.ended,
            "fresh": c.status("fresh"),
            "holdout": c.status("holdout"),
            "admitted_at": c.admitted_at,
            "finished_at": c.finished_at,
            "parts": _json(c.parts),
            "source": f"{c.source}.py",
        }


def _measurements(state: CampaignState) -> Iterator[dict[str, Any]]:
    """A row for each metric; a stage without any has one with the metric left empty."""
    for c in state.candidates.values():
        for purpose, results in c.results.items():
            for result in results.values():
                error = result.failure.error if result.failure else {}
                common = {
                    "id": c.label,
                    "key": c.key,
                    "purpose": purpose,
                    "seed": c.seeds.get(purpose),
                    "stage": result.stage,
                    "passed": result.passed,
                    "seconds": result.seconds,
                    "error": error.get("code"),
                    "measured_on": result.info.get("measured_on"),
                }
                if not result.metrics:
                    yield common
                for name, m in result.metrics.items():
                    yield common | {
                        "metric": name, "value": float(m.value), "low": m.low, "high": m.high, "unit": m.unit,
                        "how": m.how, "n": m.n,
                    }  # fmt: skip


def _proposals(state: CampaignState) -> Iterator[dict[str, Any]]:
    for p in state.proposals.values():
        yield {
            "proposal": p.id,
            "arm": p.arm,
            "request": p.request,
            "proposer": p.proposer,
            "answered_by": p.answered_by,
            "parents": " ".join(p.parents),
            "repairs": p.repairs,
            "outcome": p.outcome,
            "key": p.key,
            "dollars": p.dollars,
            "error": None if p.error is None else str(p.error.get("code")),
            "idea": p.idea,
        }


def _parts(state: CampaignState) -> Iterator[dict[str, Any]]:
    for part in state.parts:
        yield {
            "part": part.session,
            "results": part.results,
            "versions": _json(part.versions),
            "machine": _json(part.machine),
            "engines": _json(part.engines),
        }


def _events(run: Run) -> Iterator[dict[str, Any]]:
    for record in run.store.read():
        body = _json(record.event.to_json())
        yield {"seq": record.seq, "time": record.time, "kind": record.event.kind, "body": body}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
