"""`make bench`: its commands are such as the benchmarks take, and none keeps the next from running."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import needs

ON_A_GPU = ("kernels", "selections", "flows", "tuning", "parity", "serving", "serving_sglang")


@pytest.mark.parametrize("command", bench.COMMANDS)
def test_every_command_is_one_that_its_benchmark_takes(command: str, tmp_path: Path) -> None:
    name, *options = shlex.split(command)
    parser = importlib.import_module(f"benchmarks.{name}").parser()
    assert parser.parse_args([*options, "--out", str(tmp_path)]).out == tmp_path


def test_a_file_that_a_command_reads_is_in_the_folder_of_an_earlier_one() -> None:
    folders = [bench.folder(n, command) for n, command in enumerate(bench.COMMANDS, 1)]
    reads = [(n, path) for n, c in enumerate(bench.COMMANDS) for path in re.findall(r"runs/bench/\S+", c)]
    assert reads
    for at, path in reads:
        assert Path(path).parent.name in folders[:at]


def test_a_failure_and_a_lack_keep_no_other_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "__init__.py").touch()
    bodies = {
        "broken": "raise ValueError('broken on purpose')",
        "lacking": f"raise SystemExit({needs.LACKING})",
        "fine": "import pathlib, sys\npathlib.Path(sys.argv[-1]).mkdir(parents=True)",
    }
    for name, body in bodies.items():
        (package / f"{name}.py").write_text(body)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "COMMANDS", ("broken", "lacking --some option", "fine"))
    assert bench.main() == 1
    said = capfd.readouterr().out.splitlines()[-3:]
    assert said == [
        "failed with status 1: broken",
        "not possible here: lacking --some option",
        "measured: fine",
    ]
    assert [path.name for path in (tmp_path / "runs" / "bench").iterdir()] == ["03-fine"]
    monkeypatch.setattr(bench, "COMMANDS", ("lacking", "fine"))
    assert bench.main() == 0


def test_what_is_lacking_is_said_with_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser(prog="flows")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    needs.gpus(parser)
    with pytest.raises(SystemExit) as ended:
        needs.gpus(parser, 2)
    assert ended.value.code == needs.LACKING
    assert capsys.readouterr().err == "flows needs 2 CUDA GPUs, 1 here\n"
    monkeypatch.setenv("VORTEX_SGLANG_PYTHON", sys.executable)
    needs.sglang(parser)
    monkeypatch.delenv("VORTEX_SGLANG_PYTHON")
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        needs.sglang(parser)
    assert ended.value.code == needs.LACKING


@pytest.mark.parametrize(
    "command",
    [
        c
        for c in bench.COMMANDS
        if c.split()[0] in ("kernels", "selections", "flows", "tuning", "parity", "serving", "serving_sglang")
    ],
)
def test_gpu_benchmarks_end_at_once_where_there_is_none(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *options = shlex.split(command)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("VORTEX_SGLANG_PYTHON", sys.executable)
    monkeypatch.setattr(sys, "argv", [name, *options, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    assert ended.value.code == needs.LACKING
    assert not (tmp_path / "out").exists()
