"""Tuning: what a search keeps, what the cache finds, and what explain says of it. Times come from a fake clock."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search.cli import main
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.compiler.triton.generate import generate
from vortex_core.compiler.triton.launch_config import FlowConfig, ScoreConfig
from vortex_core.compiler.triton.tuning import results as tuning
from vortex_core.compiler.triton.tuning import tune as tune_module
from vortex_core.compiler.triton.tuning.results import Key, Machine, Tuned, TuningCache
from vortex_core.compiler.triton.tuning.trials import Choice, Trial, choose
from vortex_core.compiler.triton.tuning.tune import (
    SCORE_ERROR,
    Result,
    attention_candidates,
    compare,
    score_candidates,
)
from vortex_core.compiler.triton.tuning.tune import tune as tune_flow
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.kernels.decode.config import DecodeConfig
from vortex_core.specs import load_model

QWEN = Geometry(layers=28, kv_heads=8, group=4, head_dim=128, rope_dim=128, value_dim=128)
H100 = Machine("NVIDIA H100 80GB HBM3", "580.95.05", "2.11.0", "3.6.0")
ATTENTION = DecodeConfig(64, 4, 3, 2, even=True)
FOUND = Tuned(FlowConfig(ScoreConfig(32, 4, 4, 3), ATTENTION), "2026-11-23", 1.08, 61.5)


@pytest.fixture
def h100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TuningCache:
    """A machine with a GPU, and its empty cache."""
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "this_machine", lambda: H100)
    return TuningCache()


def key_of(name: str = "quest", batch: int = 16, pages: int = 2048, geometry: Geometry = QWEN) -> Key:
    traced = library.load(name)
    key = Key.of(traced.program, traced.knobs, geometry, H100)
    return key.at(traced.knobs, geometry.layers, batch, pages)


# ---- the search ------------------------------------------------------------------------------------------------


def search(times: dict[str, list[float]], *, wrong: str = "", left: int = 100) -> Choice[str]:
    """Choose among named candidates whose successive measurements are given; the last one repeats."""
    series = {name: itertools.chain(us, itertools.repeat(us[-1])) for name, us in times.items()}
    ticks = itertools.count()
    default, *others = times
    return choose(
        "score", default, others, check=lambda c: "wrong" if c == wrong else "", measure=lambda c: next(series[c]),
        time_left=lambda: next(ticks) < left, report=lambda trial: None,
    )  # fmt: skip


def outcomes(choice: Choice[str]) -> dict[str, str]:
    return {trial.config: trial.outcome for trial in choice.trials}


def test_the_fastest_that_stays_fast_is_kept() -> None:
    choice = search({"default": [100.0], "good": [90.0], "better": [80.0, 82.0, 81.0], "bad": [120.0]})
    assert choice.config == "better"
    assert choice.gain == pytest.approx(100 / 82)
    assert outcomes(choice) == {
        "default": "default",
        "bad": "slower",
        "better": "kept",
        "good": "slower than the kept one",
    }


@pytest.mark.parametrize(
    "lucky",
    [
        [99.0],  # within the margin
        [80.0, 100.0],  # fast once
        [80.0, 80.0, 99.0],  # fast twice, then not
    ],
)
def test_noise_keeps_the_default(lucky: list[float]) -> None:
    choice = search({"default": [100.0], "lucky": lucky})
    assert (choice.config, choice.gain) == ("default", 1.0)
    assert outcomes(choice)["lucky"] == "not clearly faster"


def test_after_a_lucky_one_the_next_best_is_tried() -> None:
    assert search({"default": [100.0], "lucky": [50.0, 100.0], "good": [90.0]}).config == "good"


def test_a_wrong_candidate_is_rejected_however_fast() -> None:
    choice = search({"default": [100.0], "wrong": [1.0], "good": [90.0]}, wrong="wrong")
    assert choice.config == "good"
    assert outcomes(choice)["wrong"] == "rejected: wrong"


def test_out_of_time_nothing_more_is_tried() -> None:
    choice = search({"default": [100.0], "first": [99.5], "second": [50.0]}, left=1)
    assert choice.config == "default"
    assert outcomes(choice)["second"] == "no time left"


def test_outputs_must_agree_and_be_written_in_the_same_places() -> None:
    nan = float("nan")
    want = [torch.tensor([1.0, 2.0, nan, float("-inf")])]
    assert compare(lambda: [want[0] * (1 + SCORE_ERROR / 2)], want, SCORE_ERROR) == ""
    assert "relative difference" in compare(lambda: [want[0] * 1.01], want, SCORE_ERROR)
    for other in ([1.0, 2.0, 3.0, float("-inf")], [1.0, nan, nan, float("-inf")], [1.0, 2.0, nan, nan]):
        assert "missing" in compare(lambda got=other: [torch.tensor(got)], want, SCORE_ERROR)  # type: ignore[misc]


def test_candidates_are_few_distinct_and_within_the_engines_scratch() -> None:
    default = ScoreConfig(64, 2)
    scores = score_candidates(default, page_parallel=True, rows=True, latent=False)
    attention = attention_candidates(ATTENTION, 2, latent=False)
    for found, left_out in ((scores, default), (attention, ATTENTION)):
        assert 10 <= len(found) == len(set(found)) <= 20
        assert left_out not in found
    assert max(c.workers_per_sm for c in attention) == 2
    assert {c.block for c in scores} == {32, 64, 128}
    narrow = score_candidates(ScoreConfig(16, 1), page_parallel=True, rows=False, latent=True)
    assert {(c.block, c.blocks) for c in narrow} == {(16, 1), (32, 1)}
    assert {c.channels for c in narrow} > {64, 256}
    latent = attention_candidates(DecodeConfig(64, 8, 3, 1, latent_kernel=True), 1, latent=True)
    assert 3 <= len(latent) <= 6 and not any(c.latent_kernel for c in latent)


# ---- the cache -------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_by_its_key_alone(h100: TuningCache) -> None:
    key = key_of()
    path = h100.write(key, FOUND, [])
    assert h100.read(key) == FOUND
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file is left"
    machine = {f.name: replace(H100, **{f.name: "other"}) for f in fields(Machine)}
    others = [replace(key, machine=m) for m in machine.values()]
    for part in fields(Key):
        if part.name != "machine":
            value = getattr(key, part.name)
            others.append(replace(key, **{part.name: value + 1 if isinstance(value, int) else value + "x"}))
    assert len({h100.path(other) for other in others} | {path}) == len(others) + 1
    for other in others:
        assert h100.read(other) == "there is none"


def test_sizes_are_rounded_up_to_powers_of_two() -> None:
    assert key_of(batch=9, pages=1025) == key_of(batch=16, pages=2048)
    assert key_of(batch=17) != key_of(batch=16)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text[:40], "cannot be read"),
        (lambda text: "[]", "cannot be read"),
        (lambda text: text.replace('"blocks": 4', '"blocks": "4"'), "cannot be read"),
        (lambda text: text.replace('"stages"', '"stage"'), "cannot be read"),
        (lambda text: text.replace("580.95.05", "570.1"), "belongs to another key"),
    ],
)
def test_an_unusable_file_is_a_miss_that_says_why(
    h100: TuningCache, change: Callable[[str], str], why: str
) -> None:
    path = h100.write(key_of(), FOUND, [])
    path.write_text(change(path.read_text()))
    found = h100.read(key_of())
    assert isinstance(found, str) and why in found and str(path) in found


def test_a_miss_names_what_differs_from_the_nearest(h100: TuningCache) -> None:
    for driver in ("570.1", "580.95.05"):
        key = replace(key_of(), machine=replace(H100, driver=driver), generator=1)
        h100.write(key, FOUND, [])
    assert h100.miss(key_of()).endswith("(the nearest one has generator 1)")
    assert "nearest" not in h100.miss(key_of("block_topk"))


# ---- compiling -------------------------------------------------------------------------------------------------


def compiled(name: str = "quest") -> TritonFlow:
    traced = library.load(name)
    flow = backends.get("triton").compile(traced.program, traced.knobs, QWEN)
    assert isinstance(flow, TritonFlow)
    return flow


def test_compiling_takes_what_is_stored_for_its_shape(h100: TuningCache) -> None:
    h100.write(key_of(), FOUND, [])
    flow = compiled()
    assert flow.attention_config(12, 2000, torch.bfloat16) == ATTENTION
    assert flow.attention_config(1, 2000, torch.bfloat16) is None
    assert flow.attention_config(12, 2000, torch.float16) is None, "measured for bf16"
    assert compiled("block_topk").attention_config(16, 2048, torch.bfloat16) is None


def test_where_nothing_is_stored_one_look_is_all(h100: TuningCache, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Path] = []
    monkeypatch.setattr(Path, "is_dir", lambda self: looks.append(self) or False)
    monkeypatch.setattr(TuningCache, "read", lambda self, key: pytest.fail("nothing is there to be read"))
    assert compiled().attention_config(16, 2048, torch.bfloat16) is None
    assert looks == [h100.folder(key_of())]


def test_a_block_is_part_of_the_text_and_of_nothing_else() -> None:
    program = library.load("quest").program.canonical()
    usual = generate(program, QWEN, 16)
    assert generate(program, QWEN, 16, usual.block).text == usual.text
    half = generate(program, QWEN, 16, usual.block // 2)
    assert half.block == usual.block // 2
    assert half.text == generate(program, QWEN, 16, usual.block // 2).text != usual.text
    assert half.schedule == usual.schedule


# ---- the commands ----------------------------------------------------------------------------------------------


def test_tune_prints_every_trial_and_keeps_the_result(
    h100: TuningCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    traced = library.load("quest")
    asked: dict[str, object] = {}

    def fake(program: Program, knobs: Knobs, geometry: Geometry, **given: Any) -> Result:
        asked.update(given, page_size=knobs.page_size)
        key = Key.of(program, knobs, geometry, H100).at(knobs, geometry.layers, 16, 32768 // knobs.page_size)
        trials = (
            Trial("score", ScoreConfig(64, 1), 12.5, "default"),
            Trial("attend", ATTENTION, None, "rejected: does not fit"),
            Trial("step", FOUND.config, 61.5, "kept"),
        )
        for trial in trials:
            given["report"](trial)
        return Result(key, FOUND, trials)

    monkeypatch.setattr(tune_module, "tune", fake)
    command = ["tune", "quest", "--model", "qwen3-8b", "--seconds", "5", "--page-size", "32"]
    ended(command)
    said = capsys.readouterr().out
    assert (asked["batch"], asked["context"], asked["seconds"], asked["page_size"]) == (16, 32768, 5.0, 32)
    assert "12.5 us  block=64 blocks=1" in said
    assert "rejected: does not fit" in said
    assert "8.0% faster than with the defaults, 61.5 us a layer" in said
    key = Key.of(traced.program, traced.knobs.with_(page_size=32), load_model("qwen3-8b").geometry(), H100)
    assert h100.read(key.at(traced.knobs.with_(page_size=32), 36, 16, 1024)) == FOUND
    ended([*command, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["gain"] == FOUND.gain and len(found["trials"]) == 3
    assert Path(found["file"]).is_file()


def ended(command: list[str]) -> int:
    """Exit status of a command line."""
    try:
        main(command)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def explained(capsys: pytest.CaptureFixture[str]) -> tuple[bool, str]:
    ended(["explain", "quest", "--model", "qwen3-8b", "--batch", "16", "--length", "32768", "--json"])
    found = json.loads(capsys.readouterr().out)["tuning"]
    return found["tuned"], found["words"]


def test_explain_says_whether_there_is_a_result(
    h100: TuningCache, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned, words = explained(capsys)
    assert not tuned
    assert words.startswith("defaults: no tuning result for IR ")
    for part in ("driver 580.95.05", "NVIDIA H100 80GB HBM3", "batch 16", "2,048 pages of 16"):
        assert part in words
    command = "vortex-search tune quest --model qwen3-8b --batch 16 --context 32768"
    assert words.endswith(f"; run: {command}")
    key = key_of(geometry=load_model("qwen3-8b").geometry())
    path = h100.write(key, FOUND, [])
    faster = "tuned 2026-11-23 on NVIDIA H100 80GB HBM3: a step is 8.0% faster than with the defaults"
    assert explained(capsys) == (True, faster)
    h100.write(key, replace(FOUND, config=FlowConfig(), gain=1.0), [])
    assert explained(capsys)[1].endswith("the defaults are best")
    path.write_text("{")
    tuned, words = explained(capsys)
    assert not tuned and str(path) in words and "cannot be read" in words


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_tuning_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    traced = library.load("quest")
    with pytest.raises(VortexError, match="no CUDA GPU") as caught:
        tune_flow(
            traced.program, traced.knobs, QWEN, batch=1, context=32768, seconds=1, report=lambda trial: None
        )
    assert caught.value.code == "VE040" and caught.value.remedy
    assert ended(["tune", "quest", "--model", "qwen3-8b"]) == 2, "the user's to mend"
    assert "no CUDA GPU here" in capsys.readouterr().err


WHOLE = """
import sys, torch
import tests.interp.quick
from vortex_core import library
from vortex_core.geometry import Geometry
from vortex_core.compiler.triton.tuning.tune import tune
from vortex_core.compiler.triton.tuning.case import TuneCase

attend = TuneCase.attend
def spoiled(self, config, *given):
    out = attend(self, config, *given)
    if config.block_n == 64:
        out[0, 0] += 1
    return out
TuneCase.attend = spoiled

def timer(launches):
    for launch in launches:
        launch()
    return 10.0

traced = library.load(sys.argv[1]).with_knobs(page_size=8, budget="32")
shape = Geometry(1, 2, 2, 32, 32, 32)
found = tune(
    traced.program, traced.knobs, shape, batch=2, context=72, seconds=1e9, report=lambda trial: None, timer=timer,
    device=torch.device("cpu"),
)
bad = {t.config.block_n for t in found.trials if t.part == "attend" and t.outcome.startswith("rejected: wrong")}
assert bad == {64}, bad
others = [t for t in found.trials if not (t.part == "attend" and t.config.block_n == 64)]
assert all(t.us == 10.0 for t in others), [t for t in others if t.us is None]
assert {t.part for t in found.trials} == {"score", "attend", "step"}
assert found.tuned.gain == 1.0
print("tuned", len(found.trials))
"""


def test_every_candidate_computes_what_the_default_does(tmp_path: Path) -> None:
    """The whole search under the interpreter, of a flow that changes its states as it scores.

    A candidate that computes something else is rejected.
    """
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": ".", "VORTEX_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WHOLE, "h2o"], capture_output=True, text=True, env=env, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("tuned")
