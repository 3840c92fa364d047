"""A few hundred mutants of what is read; `python -m tests.fuzz.mutants 20000` tries many."""

from __future__ import annotations

from tests.fuzz.mutants import KINDS, try_all


def test_mutants_end_in_a_value_or_a_code() -> None:
    legal, wrong = try_all(60 * len(KINDS), seed=7)
    assert not wrong
    assert legal["reply"] == 60
    assert all(0 < legal[kind] < 60 for kind in ("IR", "knobs", "flow", "log"))
