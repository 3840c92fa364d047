"""How many tokens of KV cache a device has room for."""

from __future__ import annotations

import psutil
import torch

from vortex_core.compiler.interface import CompiledFlow
from vortex_core.device_errors import no_room_for_pool
from vortex_core.engine.errors import no_room_for_states
from vortex_core.engine.kv.blocks import BLOCK_TOKENS
from vortex_core.geometry import Geometry
from vortex_core.runtime.pool_flow import SEATS

CPU_TOKENS = 32768
# Page states lie beside the pool and change with the flow: room is kept for states of this share of the KV bytes
# (Quest's two bf16 vectors a page of 16 tokens are a sixteenth).
STATE_SHARE = 1 / 8


def kv_bytes_per_token(geometry: Geometry, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values over all layers; a latent is stored once."""
    channels = geometry.head_dim + (0 if geometry.is_mla else geometry.value_dim)
    return geometry.layers * geometry.kv_heads * channels * dtype.itemsize


def pool_tokens(geometry: Geometry, dtype: torch.dtype, device: torch.device, fraction: float) -> int:
    """Tokens of a pool that, with page states, leaves `1 - fraction` of the device's memory free."""
    if device.type != "cuda":
        return CPU_TOKENS
    free, total = torch.cuda.mem_get_info(device)
    usable = free + _cached(device) - (1.0 - fraction) * total
    tokens = int(usable / (kv_bytes_per_token(geometry, dtype) * (1.0 + STATE_SHARE)))
    return max(1, tokens // BLOCK_TOKENS) * BLOCK_TOKENS


def check_pool_fits(geometry: Geometry, dtype: torch.dtype, tokens: int, device: torch.device) -> None:
    """Raises `VE054` where a pool of so many tokens would not fit beside what is there."""
    if device.type != "cuda":
        return
    token, free = kv_bytes_per_token(geometry, dtype), free_bytes(device)
    if tokens * token > free:
        fits = int(free / (token * (1.0 + STATE_SHARE))) // BLOCK_TOKENS * BLOCK_TOKENS
        raise no_room_for_pool(tokens, tokens * token, free, fits)


def check_states_fit(compiled: CompiledFlow, pages: int, leaders: int, device: torch.device) -> None:
    """Raises `VE019` where the states of a flow would not fit the device."""
    states = compiled.new_states(1, device, SEATS)
    page = states.bytes_per_page()
    needed = (page * pages + states.bytes_of_requests()) * leaders
    free = free_bytes(device)
    if needed > free:
        raise no_room_for_states(needed, free, page, leaders)


def free_bytes(device: torch.device) -> int:
    """What this process may still take: of a GPU's memory, or of RAM."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    return torch.cuda.mem_get_info(device)[0] + _cached(device)


def allocated(device: torch.device) -> int:
    """Bytes of all tensors of this process on a GPU; 0 elsewhere."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _cached(device: torch.device) -> int:
    """Bytes that torch's allocator holds without using them."""
    return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
