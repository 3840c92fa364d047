"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.order import longest_first, scheduler

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

    from vortex_core.engine.models.weights import ModelPath

# Before any library reads them: no telemetry, no network but to local servers, no thread-pool warnings.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if _beside := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) - 1:  # the cores are shared
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // (_beside + 1))))

# Deterministic examples, and no deadline: two busy cores say nothing about the code under test.
settings.register_profile(
    "vortex", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("vortex")

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Side by side (pytest-xdist), the tests of a file run in one process: `tests/order.py`."""
    return scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests under tests/gpu are marked `gpu`, and every gpu test is skipped with its reason without a GPU."""
    if not os.environ.get("CHAOS"):
        without = pytest.mark.skip(reason="faults of clusters take minutes: make chaos")
        for item in items:
            if item.get_closest_marker("chaos"):
                item.add_marker(without)
    gpu_folder = ROOT / "tests" / "gpu"
    for item in items:
        if gpu_folder in item.path.parents:
            item.add_marker(pytest.mark.gpu)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _cuda_available():
        skip = pytest.mark.skip(reason="no CUDA device on this machine")
        for item in on_gpu:
            item.add_marker(skip)
    if os.environ.get("PYTEST_XDIST_WORKER"):
        longest_first(items)


def _cuda_available() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def smollm2() -> ModelPath:
    """SmolLM2-135M from the cache. Without it a test is skipped, or fails where CI should have fetched it."""
    from vortex_core.engine.models.weights import resolve_model
    from vortex_core.errors import VortexError

    try:
        return resolve_model("smollm2-135m", fetch=False)
    except VortexError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def single_thread() -> Iterator[None]:
    """One intra-op thread: tiny tensors run faster, and two test runs do not fight for two cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
