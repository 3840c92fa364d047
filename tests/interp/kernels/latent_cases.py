"""The Gluon kernel of latent attention computes the definition, merge included (`gluon_standin.py`: on its text)."""

from __future__ import annotations

import pytest
import torch

from tests.interp.kernels import inputs
from tests.interp.kernels.gluon_standin import StandIn
from vortex_core.kernels import DecodeConfig, mla_decode, mla_decode_workspace
from vortex_core.kernels.decode import latent as latent_decode
from vortex_core.kernels.decode import split_launch
from vortex_core.kernels.reference import mla_decode_reference

CPU = torch.device("cpu")
# Weights are rounded to bf16 for the second product, and so is the output.
UNIT = 2**-8


@pytest.mark.parametrize(
    ("heads", "page_size", "lens", "workers", "even"),
    [
        (3, 16, [0, 1, 63, 64, 65, 300], 3, False),  # workers hold ends, whole rows and beginnings
        (20, 64, [700, 65], 4, False),  # a row over several workers, and more tiles than workers
        (3, 16, [2176] * 15 + [2049], 17, False),  # 34 tiles a row for 32 a worker: shares become whole rows
        (3, 16, [700], 4, True),  # one request, cut alike however long
        (3, 16, [0, 70, 300], 7, True),  # two pieces a row, some without tokens
        (5, 128, [129, 0], 2, True),  # one piece a row
        (34, 8, [70], 1, False),  # two rows of 17 heads a request
    ],
)
def test_latent_kernel_equals_the_definition(
    monkeypatch: pytest.MonkeyPatch, heads: int, page_size: int, lens: list[int], workers: int, even: bool
) -> None:
    monkeypatch.setattr(split_launch, "EVEN_TOKENS", 512 if even else 0)
    monkeypatch.setattr(latent_decode, "latent_decode_kernel", StandIn(latent_decode.latent_decode_kernel))
    monkeypatch.setattr("vortex_core.kernels.runtime.INTERPRETER_MULTIPROCESSORS", workers)
    case = inputs.attention(
        lens, heads=1, group=heads, dim=576, page_size=page_size, dtype=torch.bfloat16, q_dtype=torch.bfloat16
    )
    cache, ids, n = case.k[:, :, 0], case.pages.page_ids[:, 0], case.pages.lengths[:, 0]
    config = DecodeConfig(64, 8, 3, 1, 1, fused_merge=False, latent_kernel=True)
    workspace = mla_decode_workspace(len(lens), heads, CPU, config)
    lse = torch.full((len(lens), heads), float("nan"))
    out = mla_decode(
        case.q, cache, ids, n, workspace=workspace, config=config, sm_scale=192**-0.5, kv_scale=0.5, lse=lse
    )
    want, want_lse = mla_decode_reference(case.q, cache, ids, n, sm_scale=192**-0.5, kv_scale=0.5)
    assert inputs.close(out, want, UNIT)
    assert inputs.close(lse, want_lse, 1e-5)
