"""What the plug-in expects of SGLang, checked before anything runs, so that a moved interface has one message."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from vortex_core.serving.errors import interface_moved
from vortex_core.serving.sglang import SUPPORTED
from vortex_core.serving.sglang.compat import DEFAULT_BACKEND, resolve, setting_names

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
# What has had several homes: one of them must be there, and take these.
MOVED = {DEFAULT_BACKEND: ("use_mla_backend", "model_config")}
# Settings of the server that are read, for what would be served wrongly.
SETTINGS = (
    "attention_backend",
    "prefill_attention_backend",
    "decode_attention_backend",
    "speculative_algorithm",
    "pp_size",
    "tp_size",
    "enable_two_batch_overlap",
    "enable_pdmux",
    "disaggregation_mode",
    "enable_hierarchical_cache",
    "dcp_size",
    "disable_radix_cache",
    "enable_lmcache",
    "enable_flexkv",
    "radix_cache_backend",
)
# What SGLang's base class answers for every backend, and so for this one too where the backend that prefills has
# an answer of its own. `INNER` is handed on to that one. For the rest the base class's answer is right or is
# overridden: speculative decoding, DeepSeek-V4 and wrappers of several backends are refused.
INNER = (
    "data_type",
    "kv_cache_dtype",
    "kv_index_translator",
    "forward_metadata",
    "extend_dummy_seqs_capped_by_req_pool",
    "prefer_eager_mixed_prefill_under_dp_attention",
    "supports_prefill_cuda_graph_max_context_size",
)
OWN = (
    "attn_backend_list",
    "decode_attention_backend_str",
    "draft_extend_metadata_captured_in_graph",
    "forward",
    "forward_decode",
    "forward_extend",
    "forward_mixed",
    "get_cuda_graph_seq_len_fill_value",
    "get_indexer_metadata",
    "get_verify_buffers_to_fill_after_draft",
    "init_cuda_graph_state",
    "init_forward_metadata",
    "init_forward_metadata_for_breakable_cuda_graph_capture",
    "init_forward_metadata_in_graph",
    "init_forward_metadata_out_graph",
    "needs_cpu_seq_lens",
    "on_after_cuda_graph_warmup",
    "prefill_attention_backend_str",
    "prepare_forward_metadata_for_breakable_cuda_graph_replay",
    "prepare_full_cuda_graph_chunked_prefix",
    "prepare_prefill_shared_read_snapshot",
    "shared_read_ends",
    "support_triton",
    "supports_draft_extend_metadata_staging",
    "supports_full_cuda_graph_chunked_prefix",
    "supports_ragged_verify_graph",
    "update_verify_buffers_to_fill_after_draft",
    "use_captured_forward_metadata_for_breakable_cuda_graph",
    "validate_elastic_cuda_graph_recapture",
    "verify_mask",
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
        found = resolve(place)
        if found is None:
            yield f"{place} is gone"
        elif not _takes_one(found):
            yield f"{place} does not take one argument"
    for places, wanted in [*(((place,), names) for place, names in PARAMETERS.items()), *MOVED.items()]:
        found, place = next(((f, p) for p in places if (f := resolve(p))), (None, " or ".join(places)))
        if found is None:
            yield f"{place} is gone"
            continue
        have = tuple(inspect.signature(found).parameters)
        missing = [name for name in wanted if name not in have]
        if missing:
            yield f"{place} takes {', '.join(have)}, not {', '.join(missing)}"
    base = resolve("sglang.srt.layers.attention.base_attn_backend:AttentionBackend")
    known = {*INNER, *OWN}
    names = () if base is None else vars(base)
    yield from (
        f"AttentionBackend.{name} is new, and would hide the prefill backend's"
        for name in names
        if not name.startswith("_") and name not in known
    )
    batch = resolve("sglang.srt.model_executor.forward_batch_info:ForwardBatch")
    fields = getattr(batch, "__dataclass_fields__", {})
    yield from (f"ForwardBatch has no field {name}" for name in FIELDS if name not in fields)
    settings = setting_names()
    yield from (f"the server has no setting {name}" for name in SETTINGS if name not in settings)
    mode = resolve("sglang.srt.model_executor.forward_batch_info:ForwardMode")
    yield from (f"ForwardMode has no {name}" for name in MODES if not hasattr(mode, name))
    registry = resolve("sglang.srt.layers.attention.attention_registry:ATTENTION_BACKENDS")
    if not isinstance(registry, dict):
        yield "attention_registry.ATTENTION_BACKENDS is no table by name"
    absorbing = resolve("sglang.srt.models.deepseek_common.utils:FORWARD_ABSORB_CORE_ATTENTION_BACKENDS")
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
