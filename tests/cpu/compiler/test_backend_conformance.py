"""The CPU backends pass the public suite; Triton's runs on a GPU (tests/gpu/compiler)."""

from __future__ import annotations

from evaluators.testing import BackendConformance


class TestTorch(BackendConformance):
    backend = "torch"


class TestOracle(BackendConformance):
    backend = "oracle"
    serves = False
