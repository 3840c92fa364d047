"""The Triton backend passes the public suite on a GPU, at shapes that models have."""

from __future__ import annotations

import pytest

from evaluators.testing import BackendConformance
from vortex_core.geometry import Geometry

pytestmark = pytest.mark.gpu


class TestTriton(BackendConformance):
    backend = "triton"
    device = "cuda"
    tie_tolerance = 1e-3
    grouped = Geometry(1, 2, 4, 64, 64, 64)
    latent = Geometry(1, 1, 16, 576, 64, 512)
