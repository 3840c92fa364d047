"""Writing into the pool: values, scales, saturation, skipped slots, every layout."""

from __future__ import annotations

import pytest
import torch

from tests.interp.kernels import inputs
from vortex_core.kernels import KernelInputError, write_kv, write_latent
from vortex_core.kernels.reference import write_kv_reference

SLOTS = torch.tensor([3, -1, 17, 31, 8], dtype=torch.int32)


@pytest.mark.parametrize("layout", inputs.LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_writes_the_named_slots_and_no_others(layout: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # Exact after scaling: the interpreter does not round as the GPU does, whose tests check that.
    k = (torch.randn(5, 2, 24) * 4).to(torch.float8_e5m2).float() * 0.5
    v = torch.randn(5, 2, 16).to(torch.float8_e5m2).float() * 2.0
    k[0, 0, 0], v[2, 1, 3] = 1e30, -1e30
    k_cache = inputs.lay_out(torch.randn(4, 8, 2, 24).to(dtype), layout)
    v_cache = inputs.lay_out(torch.randn(4, 8, 2, 16).to(dtype), layout)
    want_k = write_kv_reference(k_cache, k, SLOTS, 0.5)
    want_v = write_kv_reference(v_cache, v, SLOTS, 2.0)
    write_kv(k, v, k_cache, v_cache, SLOTS, k_scale=0.5, v_scale=2.0)
    if dtype in (torch.float32, torch.float8_e4m3fn, torch.float8_e5m2):
        assert torch.equal(k_cache.float(), want_k.float())
        assert torch.equal(v_cache.float(), want_v.float())
    else:  # 1e30 is no bf16 value: the interpreter truncates it
        assert torch.allclose(k_cache.float(), want_k.float(), rtol=2.0**-7, atol=0.0)
        assert torch.allclose(v_cache.float(), want_v.float(), rtol=2.0**-7, atol=0.0)


def test_many_tokens_take_fuller_programs() -> None:
    tokens = 1030
    k = torch.randn(tokens, 1, 16)
    cache = torch.zeros(tokens // 8 + 1, 8, 1, 16)
    slots = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
    write_kv(k, None, cache, None, slots)
    assert torch.equal(cache.view(-1, 16)[slots], k[:, 0])


@pytest.mark.parametrize(("heads", "width", "narrow"), [(1, 32, 16), (4, 24, 8), (5, 32, 16), (20, 16, 4)])
def test_latent_rows_and_queries_lie_side_by_side(heads: int, width: int, narrow: int) -> None:
    row = torch.randn(5, 1, 2 * (width + narrow))  # as a model hands them over: parts of wider rows
    latent, rope = row[:, 0, :width], row[:, 0, width : width + narrow]
    q_latent = torch.randn(heads, 5, width).transpose(0, 1)
    q_rope = torch.randn(5, heads, width + narrow)[..., width:]
    cache = torch.zeros(4, 8, width + narrow)
    q = write_latent(latent, rope, cache, SLOTS, q_latent, q_rope)
    assert torch.equal(q, torch.cat([q_latent, q_rope], -1))
    flat = cache.view(-1, width + narrow)
    for t, slot in enumerate(SLOTS.tolist()):
        if slot >= 0:
            assert torch.equal(flat[slot], torch.cat([latent[t], rope[t]]))
    assert int((flat.abs().sum(1) > 0).sum()) == 4


def test_latent_writes_say_what_does_not_fit() -> None:
    latent, rope, cache = torch.randn(2, 16), torch.randn(2, 4), torch.zeros(3, 8, 20)
    slots, q = torch.tensor([0, 1]), torch.randn(2, 3, 20)
    with pytest.raises(KernelInputError, match="cache must be"):
        write_latent(latent, rope, cache[..., :18], slots, q[..., :16], q[..., 16:])
    with pytest.raises(KernelInputError, match="queries must be"):
        write_latent(latent, rope, cache, slots, q[..., :16], q[:1, :, 16:])
    with pytest.raises(KernelInputError, match="of 2 tokens"):
        write_latent(latent, rope, cache, slots[:1], q[..., :16], q[..., 16:])
    assert write_latent(latent[:0], rope[:0], cache, slots[:0], q[:0, :, :16], q[:0, :, 16:]).shape == (
        0,
        3,
        20,
    )
