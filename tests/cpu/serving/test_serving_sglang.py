"""`benchmarks.serving_sglang` keeps what it measured, shape by shape, and goes on from there; engines are stand-ins."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from benchmarks import needs, serving_sglang
from vortex_core.errors import VortexError
from vortex_core.serving.client import Answer

COMMAND = [
    "serving_sglang",
    "--model",
    "tiny",
    "--device",
    "cpu",
    "--flows",
    "quest",
    "--repeats",
    "1",
    "--random-kv",
]


@dataclass
class Engine:
    """Answers in a millisecond a token; the third shape of an arm kills it if it is `frail`."""

    name: str
    log: Path
    frail: bool
    facts: dict[str, Any] = field(default_factory=lambda: {"sglang": "0", "start_s": 1.0})
    measured: list[tuple[int, int]] = field(default_factory=list)

    @property
    def status(self) -> dict[str, Any] | None:
        there = 100.0 * len(self.measured)
        if self.name.startswith("dense"):
            return None
        return {"tokens_there": there, "attended_tokens": there / 4, "sparse_layers": 3}

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to end."""

    def generate(self, ids: list[list[int]], new: int) -> Answer:
        if new == 1:
            if self.frail and len(self.measured) == 2:
                raise VortexError("VE038", "the engine died", "look at its log")
            self.measured.append((len(ids), len(ids[0])))
        return Answer(new / 1000, [[1] * new for _ in ids], [len(ids[0])])

    def stream(self, ids: list[list[int]], new: int) -> Answer:
        return Answer(new / 1000, [[1] * new for _ in ids], [len(ids[0])], [0.001] * (new * len(ids)))

    def flush(self) -> None:
        """Nothing is cached."""


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Engine]:
    """Those that were started."""
    started: list[Engine] = []

    def start(run: serving_sglang.Run, args: Any) -> Engine:
        log = tmp_path / "log"
        log.write_text("")
        started.append(Engine(run.arm.name, log, frail=len(started) == 1))
        return started[-1]

    monkeypatch.setattr(needs, "sglang", lambda parser: None)
    monkeypatch.setattr(serving_sglang.Run, "start", start)
    return started


def call(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> int:
    sets = ["1x64", "2x64", "1x128", "2x128"]
    monkeypatch.setattr(sys, "argv", [*COMMAND, "--out", str(out), *more, "--sets", *sets])
    return serving_sglang.main()


def test_a_run_goes_on_where_the_one_before_it_ended(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert call(monkeypatch, out) == 1
    assert [len(engine.measured) for engine in engines] == [4, 2]
    kept = json.loads((out / "serving_sglang.json").read_text())
    assert len(kept["rows"]) == 6 and list(kept["failures"]) == ["vortex:quest"]
    assert all(row["density"] == 0.25 for row in kept["rows"] if row["arm"] == "vortex:quest")

    assert call(monkeypatch, out) == 0
    assert [engine.name for engine in engines[2:]] == ["vortex:quest"], "the other arm was finished"
    assert engines[2].measured == [(2, 128), (1, 128)]
    kept = json.loads((out / "serving_sglang.json").read_text())
    assert len(kept["rows"]) == 8 and kept["failures"] == {}
    assert {row["speedup"] for row in kept["rows"] if row["arm"] == "vortex:quest"} == {1.0}

    assert call(monkeypatch, out) == 0
    assert len(engines) == 3, "nothing is left"


@pytest.mark.parametrize("more", [["--anew"], ["--budget", "64"]])
def test_other_options_begin_anew(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: list[str]
) -> None:
    out = tmp_path / "out"
    call(monkeypatch, out)
    assert call(monkeypatch, out, *more) == 0
    assert [len(engine.measured) for engine in engines] == [4, 2, 4, 4]
