"""A program that kills its compiler is no program that compiles for too long."""

from __future__ import annotations

import os
import random
import time

import pytest

from benchmarks import limits
from vortex_core import library


def test_a_process_that_dies_is_told_from_one_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = library.load("quest").flow
    monkeypatch.setattr(limits, "_measured", lambda *about: os._exit(3))
    with pytest.raises(RuntimeError, match=r"'quest'.*ended with 3"):
        limits.measure("quest", flow, random.Random(0))
    monkeypatch.setattr(limits, "DEADLINE", 0.05)
    monkeypatch.setattr(limits, "_measured", lambda *about: time.sleep(60))
    assert limits.measure("quest", flow, random.Random(0))["refused"] == "deadline"
