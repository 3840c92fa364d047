"""Bytes of a measured step, the time that nothing can beat, and what the driver says of a GPU."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from evaluators import gpu_state
from evaluators.roofline import described_gpu, step_bytes
from vortex_core import library
from vortex_core.specs import load_gpu, load_model


def test_a_gpu_is_known_by_its_drivers_name() -> None:
    names = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "NVIDIA B200": "b200"}
    for product, name in names.items():
        assert described_gpu(product) is load_gpu(name)
    assert described_gpu("NVIDIA A100-SXM4-80GB") is None


def test_dense_moves_weights_and_all_of_the_cache() -> None:
    model, shape = load_model("qwen3-8b"), {"batch": 16, "length": 8192, "kv_bytes": 2.0}
    moved = step_bytes(library.load("dense"), model, density=1.0, **shape)
    assert moved.kv == 16 * 8192 * model.kv_bytes_per_token()
    assert moved.weights == model.weight_bytes_read_per_step(16)
    halves = step_bytes(library.load("dense"), model, density=1.0, ranks=2, **shape)
    assert halves.total == pytest.approx(moved.total / 2)


def test_what_was_attended_counts_and_not_what_was_planned() -> None:
    model, flow = load_model("qwen3-8b"), library.load("quest").with_knobs(budget="1024", dense_layers=(0, 1))
    shape = {"batch": 4, "length": 8192, "kv_bytes": 2.0}
    planned, half = (step_bytes(flow, model, density=d, **shape) for d in (1024 / 8192, 512 / 8192))
    everything = 4 * 8192 * model.kv_bytes_per_token()
    sparse = (model.layers - 2) / model.layers
    assert planned.kv == pytest.approx(everything * (1 - sparse + sparse / 8), rel=1e-3)
    assert half.kv == pytest.approx(everything * (1 - sparse + sparse / 16), rel=1e-3)


def test_no_step_is_faster_than_its_least_bytes() -> None:
    model, gpu = load_model("glm-4.7-flash"), load_gpu("h200")
    moved = step_bytes(library.load("dense"), model, batch=64, length=4096, density=1.0, kv_bytes=2.0)
    least = moved.least_seconds(gpu, cached=0)
    assert least < moved.total / gpu.hbm_bandwidth, "a batch may go to fewer experts than expected"
    assert moved.least_seconds(gpu, cached=1e15) == 0
    assert moved.share(gpu, moved.total / gpu.usable_bandwidth) == pytest.approx(1)


def test_nvidia_smi_is_read_where_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"--query-gpu": "1755, 1980, 2619, 312.5, [N/A]\n", "--query-compute-apps": "12\n99\n"}

    def smi(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[-2:] == ["-i", "GPU-x"]
        return subprocess.CompletedProcess(command, 0, answers[command[1].split("=")[0]], "")

    monkeypatch.setattr(gpu_state.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(gpu_state.subprocess, "run", smi)
    found = gpu_state._from_smi("GPU-x")
    assert found == {"sm_mhz": 1755, "sm_max_mhz": 1980, "memory_mhz": 2619, "watts": 312.5, "neighbours": 1}

    def broken(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, 5)

    monkeypatch.setattr(gpu_state.subprocess, "run", broken)
    assert gpu_state._from_smi("GPU-x") == {}
