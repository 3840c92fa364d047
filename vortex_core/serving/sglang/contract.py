"""What the plug-in expects of SGLang, checked before anything runs, so that a moved interface has one message."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from vortex_core.serving.errors import interface_moved
from vortex_core.serving.sglang import SUPPORTED

# What is called with one argument, whatever its name.
REGISTRATIONS = (
    "sglang.srt.layers.attention.attention_registry:register_attention_backend",
    "sglang.srt.server_args:add_attention_backend_choices",
    "sglang.srt.server_args:add_chunked_prefix_cache_attention_backend",
)
# Parameters that calls of ours or overrides of ours rely on, by callable.
PARAMETERS = {
    "sglang.srt.layers.attention.base_attn_backend:AttentionBackend.init_forward_metadata": (
        "self",
        "forward_batch",
    ),
    "sglang.srt.layers.attention.base_attn_backend:AttentionBackend.init_forward_metadata_out_graph": (
        "self",
        "forward_batch",
        "in_capture",
    ),
    "sglang.srt.layers.attention.base_attn_backend:AttentionBackend.init_forward_metadata_in_graph": (
        "self",
        "forward_batch",
    ),
    "sglang.srt.layers.attention.base_attn_backend:AttentionBackend.init_cuda_graph_state": (
        "self",
        "max_bs",
        "max_num_tokens",
    ),
    "sglang.srt.layers.attention.base_attn_backend:AttentionBackend.forward_decode": (
        "self",
        "q",
        "k",
        "v",
        "layer",
        "forward_batch",
        "save_kv_cache",
    ),
    "sglang.srt.layers.attention.base_attn_backend:AttentionBackend.forward_extend": (
        "self",
        "q",
        "k",
        "v",
        "layer",
        "forward_batch",
        "save_kv_cache",
    ),
    "sglang.srt.mem_cache.memory_pool:MHATokenToKVPool.set_kv_buffer": (
        "self",
        "layer",
        "loc_info",
        "cache_k",
        "cache_v",
        "k_scale",
        "v_scale",
    ),
    "sglang.srt.mem_cache.memory_pool:MLATokenToKVPool.set_mla_kv_buffer": (
        "self",
        "layer",
        "loc",
        "cache_k_nope",
        "cache_k_rope",
    ),
    "sglang.srt.mem_cache.memory_pool:MHATokenToKVPool.get_kv_buffer": ("self", "layer_id"),
    "sglang.srt.mem_cache.memory_pool:MLATokenToKVPool.get_kv_buffer": ("self", "layer_id"),
    "sglang.srt.model_executor.pool_configurator:DefaultPoolConfigurator._compute_cell_size": (
        "self",
        "kvc",
        "num_layers",
    ),
    "sglang.srt.plugins.hook_registry:HookRegistry.register": ("target", "hook", "hook_type"),
    "sglang.srt.server_args:ServerArgs._get_default_attn_backend": (
        "self",
        "use_mla_backend",
        "model_config",
    ),
    "sglang.srt.server_args:ServerArgs.get_attention_backends": ("self",),
    "sglang.srt.runtime_context:get_parallel": (),
    "sglang.srt.mem_cache.memory_pool:KVWriteLoc": (),
    "sglang.srt.models.deepseek_common.attention_backend_handler:AttentionBackendRegistry.register": (
        "backend_name",
        "handler_func",
    ),
    "sglang.srt.models.deepseek_common.attention_backend_handler:_dispatch_mla_subtype": (
        "attn",
        "forward_batch",
    ),
}
# Settings of the server that are read, for what would be served wrongly.
SETTINGS = (
    "attention_backend",
    "speculative_algorithm",
    "pp_size",
    "tp_size",
    "enable_two_batch_overlap",
    "enable_pdmux",
    "disaggregation_mode",
    "enable_hierarchical_cache",
    "dcp_size",
    "disable_radix_cache",
)
# Fields of `ForwardBatch` that are read.
FIELDS = (
    "forward_mode",
    "batch_size",
    "req_pool_indices",
    "seq_lens",
    "out_cache_loc",
    "extend_seq_lens_cpu",
    "extend_prefix_lens_cpu",
)
MODES = ("is_decode", "is_idle", "is_extend", "is_target_verify", "is_draft_extend_v2")


def differences() -> Iterator[str]:
    """How the installed SGLang differs from what is expected; nothing where it does not."""
    for place in REGISTRATIONS:
        found = _resolve(place)
        if found is None:
            yield f"{place} is gone"
        elif not _takes_one(found):
            yield f"{place} does not take one argument"
    for place, wanted in PARAMETERS.items():
        found = _resolve(place)
        if found is None:
            yield f"{place} is gone"
            continue
        have = tuple(inspect.signature(found).parameters)
        missing = [name for name in wanted if name not in have]
        if missing:
            yield f"{place} takes {', '.join(have)}, not {', '.join(missing)}"
    batch = _resolve("sglang.srt.model_executor.forward_batch_info:ForwardBatch")
    fields = getattr(batch, "__dataclass_fields__", {})
    yield from (f"ForwardBatch has no field {name}" for name in FIELDS if name not in fields)
    settings = getattr(_resolve("sglang.srt.server_args:ServerArgs"), "__dataclass_fields__", {})
    yield from (f"ServerArgs has no field {name}" for name in SETTINGS if name not in settings)
    mode = _resolve("sglang.srt.model_executor.forward_batch_info:ForwardMode")
    yield from (f"ForwardMode has no {name}" for name in MODES if not hasattr(mode, name))
    registry = _resolve("sglang.srt.layers.attention.attention_registry:ATTENTION_BACKENDS")
    if not isinstance(registry, dict):
        yield "attention_registry.ATTENTION_BACKENDS is no table by name"
    absorbing = _resolve("sglang.srt.models.deepseek_common.utils:FORWARD_ABSORB_CORE_ATTENTION_BACKENDS")
    if not isinstance(absorbing, list):
        yield "deepseek_common.utils.FORWARD_ABSORB_CORE_ATTENTION_BACKENDS is no list"


def check() -> None:
    """Raise `VE035` if the installed SGLang is not as expected."""
    import sglang

    found = list(differences())
    if found:
        raise interface_moved(sglang.__version__, found, SUPPORTED)


def _takes_one(found: Callable[..., Any]) -> bool:
    try:
        inspect.signature(found).bind(None)
    except TypeError:
        return False
    return True


def _resolve(place: str) -> Callable[..., Any] | None:
    module, _, path = place.partition(":")
    try:
        found: Any = import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError):
        return None
    return found
