"""Two reports of compile times side by side: what takes more is said, what is missing is left blank."""

from __future__ import annotations

from typing import Any

from benchmarks.compile_kernels import GOAL, to_markdown, worse


def row(name: str, seconds: float, **more: Any) -> dict[str, Any]:
    kernel = {
        "seconds": seconds, "registers": 64, "stack": 0, "shared": 0, "instructions": 900, "barriers": 3, **more,
    }  # fmt: skip
    return {"kind": "found", "flow": name, "kernels": {"update_kernel": kernel}, "alone": seconds}


def test_what_takes_more_is_said() -> None:
    old, new = row("a", 3.0), row("a", 0.5, registers=80, instructions=500)
    assert worse(old, new) == ["update_kernel registers 64 -> 80"]
    assert worse({}, new) == []


def test_programs_above_the_goal_are_counted() -> None:
    rows = [row("a", GOAL + 1), row("b", GOAL / 2), {"kind": "found", "flow": "c", "error": "VE050: no"}]
    report = {"command": "it", "date": "today", "machine": "m", "rows": rows}
    table = to_markdown(report, {"b": row("b", 4.0)}).splitlines()
    assert "| found | 2 | 1.62 | 1 | 2.50 |  |  |  |" in table
    assert "| b | 0.75 |  |  |  |  |  | 4.00 |  |  |" in table
    assert not any(line.startswith("| c ") for line in table)
