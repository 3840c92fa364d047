"""Where a crossover lies: as few shapes as it takes, what is kept of it, and what engines read. Times are made up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from search.cli import main
from vortex_core import library
from vortex_core.compiler.triton.tuning import crossover as module
from vortex_core.compiler.triton.tuning import results
from vortex_core.compiler.triton.tuning.crossover import (
    Measured,
    Probe,
    crossover_path,
    measure_crossover,
    read_crossover,
    store_crossover,
    stored_crossover,
)
from vortex_core.compiler.triton.tuning.results import Machine
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.crossover import CONTEXTS, NEVER, Crossover, first_win
from vortex_core.ir.knobs import Knobs
from vortex_core.specs import load_model

QWEN = Geometry(layers=28, kv_heads=8, group=2, head_dim=128, rope_dim=128, value_dim=128)
KNOBS = Knobs(page_size=64, budget="2048")
QUEST = library.load("quest").program
H200 = Machine("NVIDIA H200", "580.95.05", "2.11.0", "3.6.0")


@pytest.mark.parametrize("wins_from", [*CONTEXTS, 10**9])
def test_the_shortest_context_that_wins_is_found_in_few_tries(wins_from: int) -> None:
    asked: list[int] = []
    found = first_win(CONTEXTS, lambda n: asked.append(n) or n >= wins_from)
    assert found == (wins_from if wins_from in CONTEXTS else None)
    assert len(asked) <= len(CONTEXTS).bit_length()


def measured(
    monkeypatch: pytest.MonkeyPatch, knobs: Knobs = KNOBS, **options: Any
) -> tuple[Measured, list[Probe]]:
    """The flow takes 14 us a layer, dense attention 2 us and 8 more for every 16,384 tokens of the batch."""
    told: list[Probe] = []
    monkeypatch.setattr(module, "TuneCase", lambda *given: given)

    def probe(case: Any, timer: Any) -> Probe:
        batch, context = case[3], case[4]
        if batch * context > 64 * 16384:
            raise VortexError("VE040", "does not fit", "give a smaller --batch")
        return Probe(batch, context, 14.0 + batch / 8, 2.0 + 8.0 * batch * context / 16384)

    monkeypatch.setattr(module, "_probe", probe)
    found = measure_crossover(QUEST, knobs, QWEN, report=told.append, device=torch.device("cpu"), **options)
    return found, told


def test_each_batch_has_its_own_and_none_a_later_one_than_a_smaller_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, told = measured(monkeypatch, most=65536)
    assert found.crossover.points[:3] == ((1, 32768), (2, 16384), (4, 8192))
    tokens = [n for _, n in found.crossover.points]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[-1] == 3072, "shorter ones are within the budget"
    assert found.most == 65536
    assert found.probes == tuple(told)
    for batch, tokens_below in found.crossover.points:
        mine = [p for p in told if p.batch == batch]
        assert all(p.wins == (p.context >= tokens_below) for p in mine)


def test_where_a_flow_never_wins_it_is_dense_as_far_as_was_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(monkeypatch, most=12288, batches=[1])
    assert found.crossover == Crossover(((1, 12288),))


def test_what_has_none_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VortexError, match="from step to step"):
        measured(monkeypatch, KNOBS.with_(reuse_steps=2))
    with pytest.raises(VortexError, match="attends to every page"):
        measured(monkeypatch, most=2048)


@pytest.fixture
def h200(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and an empty cache."""
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path))
    monkeypatch.setattr(results, "this_machine", lambda: H200)
    monkeypatch.setattr(module, "this_machine", lambda: H200)


FOUND = Measured(Crossover(((1, 8192), (4, 4096))), 32768, "2026-11-29", (Probe(1, 8192, 10.0, 12.5),))


@pytest.mark.usefixtures("h200")
def test_it_is_kept_for_this_flow_model_and_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_crossover(QUEST, KNOBS, QWEN) == "it was not measured"
    assert stored_crossover(QUEST, KNOBS, QWEN) is NEVER
    path = crossover_path(QUEST, KNOBS, QWEN)
    assert path is not None
    store_crossover(FOUND, path)
    assert read_crossover(QUEST, KNOBS, QWEN) == FOUND
    assert stored_crossover(QUEST, KNOBS, QWEN) == FOUND.crossover
    others: Sequence[tuple[Any, Knobs, Geometry]] = (
        (library.load("block_topk").program, KNOBS, QWEN),
        (QUEST, KNOBS.with_(budget="1024"), QWEN),
        (QUEST, KNOBS, Geometry(36, 8, 2, 128, 128, 128)),
        (QUEST, KNOBS, Geometry(28, 8, 4, 128, 128, 128)),
    )
    for program, knobs, geometry in others:
        assert stored_crossover(program, knobs, geometry) is NEVER
    monkeypatch.setattr(
        module, "this_machine", lambda: Machine("NVIDIA H100", "580.95.05", "2.11.0", "3.6.0")
    )
    assert stored_crossover(QUEST, KNOBS, QWEN) is NEVER


@pytest.mark.usefixtures("h200")
@pytest.mark.parametrize(
    "text", ["", "[]", '{"crossover": [[1]]}', '{"crossover": [], "most": 1, "when": "", "probes": 3}']
)
def test_a_file_that_cannot_be_read_is_none_and_says_so(text: str) -> None:
    path = crossover_path(QUEST, KNOBS, QWEN)
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert "cannot be read" in str(read_crossover(QUEST, KNOBS, QWEN))
    assert stored_crossover(QUEST, KNOBS, QWEN) is NEVER


@pytest.mark.usefixtures("h200")
def test_the_command_measures_says_and_keeps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def measure(program: Any, knobs: Knobs, geometry: Geometry, **options: Any) -> Measured:
        asked.update(options, knobs=knobs)
        options["report"](FOUND.probes[0])
        return FOUND

    monkeypatch.setattr(module, "measure_crossover", measure)
    words = ["tune", "quest", "--model", "qwen3-8b", "--budget", "2048", "--page-size", "64", "--crossover"]
    main([*words, "--batches", "4,1"])
    said = capsys.readouterr().out
    assert "10.0 us the flow" in said and "1x8192,4x4096" in said
    assert asked["batches"] == [1, 4] and asked["most"] == 32768 and asked["knobs"] == KNOBS
    assert stored_crossover(QUEST, KNOBS, load_model("qwen3-8b").geometry()) == FOUND.crossover
    with pytest.raises(SystemExit):
        main([*words, "--batches", "4,x"])
    assert "--batches" in capsys.readouterr().err


def test_without_a_gpu_nothing_is_measured_and_nothing_is_read() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(VortexError, match="no CUDA GPU"):
        measure_crossover(QUEST, KNOBS, QWEN, report=lambda probe: None)
    assert crossover_path(QUEST, KNOBS, QWEN) is None
    assert read_crossover(QUEST, KNOBS, QWEN) == "there is no GPU here"


SIDES = """
import json, torch
import tests.interp.quick
from vortex_core import library
from vortex_core.compiler.triton.tuning.case import TuneCase
from vortex_core.compiler.triton.tuning.crossover import Sides, _probe
from vortex_core.geometry import Geometry
from vortex_core.ir.knobs import Knobs
torch.manual_seed(0)
for geometry in (Geometry(2, 2, 2, 16, 16, 16), Geometry(2, 1, 2, 48, 16, 32)):
    for reuse in (1, 2):
        knobs = Knobs(page_size=16, budget="64", reuse_layers=reuse)
        case = TuneCase(library.load("quest").program, knobs, geometry, 2, 256, torch.device("cpu"))
        sides = Sides(case)
        assert len(list(sides.sparse())) == len(list(sides.dense()))
        case.out.fill_(float("nan"))
        list(sides.dense())[0]()
        blocks, length = sides.blocks.page_ids[:, 0].long(), int(sides.lengths[0])
        kv = sides._in_blocks(case.kv[0])
        for b in range(2):
            for h in range(geometry.q_heads):
                k, v = (x[h // geometry.group, blocks[b]].flatten(0, 1)[:length].double() for x in (kv.k, kv.v))
                weights = torch.softmax(case.q[b, h].double() @ k.T * geometry.head_dim ** -0.5, -1)
                torch.testing.assert_close(case.out[b, h].double(), weights @ v, rtol=0.03, atol=0.01)
        dense = case.out.clone()
        case.out.fill_(float("nan"))
        list(sides.sparse())[0]()
        assert torch.isfinite(case.out).all() and not torch.equal(case.out, dense)
        timed = []
        probe = _probe(case, lambda launches: timed.append(len(launches)) or [30.0, 50.0][len(timed) - 1])
        assert (probe.sparse_us, probe.dense_us, probe.wins) == (30.0 / reuse, 50.0 / reuse, True)
print(json.dumps("done"))
"""


def test_both_sides_compute_what_they_say() -> None:
    """In a subprocess, because kernels are interpreted or compiled for a whole process."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SIDES], capture_output=True, text=True, env=env, timeout=170)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == "done"
