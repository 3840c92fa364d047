"""From SGLang's model runner and the settings to a backend, refusing what it would serve wrongly."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.environ import envs
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.runtime_context import get_parallel

from vortex_core.compiler.triton.tuning.crossover import stored_crossover
from vortex_core.geometry import Geometry
from vortex_core.ir.crossover import NEVER, Crossover
from vortex_core.ir.flow import Flow
from vortex_core.ir.layers import LayerPlan
from vortex_core.kernels.runtime import INTERPRETED
from vortex_core.serving.decoder import FlowDecoder, PoolShape, compile_flow, state_bytes_per_page
from vortex_core.serving.errors import no_memory, page_mismatch, unsupported, unsupported_flow
from vortex_core.serving.plan import check_servable
from vortex_core.serving.settings import Settings
from vortex_core.serving.sglang import NAME
from vortex_core.serving.sglang.backend import VortexAttnBackend
from vortex_core.serving.sglang.compat import attention_backends, default_backend, setting, setting_names
from vortex_core.serving.sglang.mla import register_mla
from vortex_core.serving.sglang.status import Status

_KV = {"bf16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def rank_geometry(model: Any) -> Geometry:
    """The model as one tensor-parallel rank holds it. `model` is SGLang's `ModelConfig`."""
    ranks = get_parallel().attn_tp_size
    q_heads, layers = model.num_attention_heads // ranks, model.num_hidden_layers
    if model.attention_arch == AttentionArch.MLA:
        rank, rope = model.kv_lora_rank, model.qk_rope_head_dim
        return Geometry(layers, 1, q_heads, rank + rope, rope, rank)
    heads = model.get_num_kv_heads(ranks)
    return Geometry(layers, heads, q_heads // heads, model.head_dim, model.head_dim, model.v_head_dim)


def state_bytes_per_token(bundle: Flow, model: Any, backend: str) -> int:
    """Bytes of page states that a token of the pool brings along, over all layers, rounded up."""
    geometry = rank_geometry(model)
    check_servable(bundle.program, bundle.knobs)
    plan = LayerPlan(bundle.program, bundle.knobs, geometry.layers)
    page = state_bytes_per_page(compile_flow(bundle, geometry, backend)) * len(plan.leaders)
    return -(-page // bundle.knobs.page_size)


def flow_backend(settings: Settings, device: str) -> str:
    """The compiler's backend: as set, else Triton on a GPU and torch elsewhere."""
    chosen = settings.backend or ("triton" if device == "cuda" else "torch")
    if chosen == "triton" and device != "cuda" and not INTERPRETED:
        raise unsupported("the triton backend without a GPU", "unset VORTEX_SERVING_BACKEND")
    return chosen


def build(runner: Any, settings: Settings, bundle: Flow) -> VortexAttnBackend:
    """The backend of one rank. Raises `VE03x` for what it would not serve as asked."""
    args, model = runner.server_args, runner.model_config
    _check_server(runner, args)
    if runner.page_size % bundle.knobs.page_size:
        raise page_mismatch(bundle.knobs.page_size, runner.page_size)
    if bundle.program.is_request_local and not setting(args, "disable_radix_cache"):
        raise unsupported_flow("its page states belong to one request", "start with --disable-radix-cache")
    kv_dtype = runner.token_to_kv_pool.dtype
    wanted = bundle.knobs.kv_dtype
    if wanted != "auto" and _KV[wanted] != kv_dtype:
        raise unsupported_flow(
            f"it was made for KV in {wanted}, the pool holds {kv_dtype}",
            f"start with --kv-cache-dtype {wanted}",
        )
    backend = flow_backend(settings, runner.device)
    geometry = rank_geometry(model)
    device = (
        torch.device(runner.device, runner.gpu_id) if runner.device == "cuda" else torch.device(runner.device)
    )
    pool = _pool_shape(runner, bundle.knobs.page_size)
    _check_memory(bundle, geometry, pool, backend, device)
    decoder = FlowDecoder(
        bundle, geometry, pool, runner.token_to_kv_pool.get_kv_buffer, device, backend,
        _crossover(settings, bundle, geometry, device),
    )  # fmt: skip
    inner_name = settings.prefill or default_prefill(runner)
    if inner_name not in ATTENTION_BACKENDS or inner_name == NAME:
        known = ", ".join(sorted(set(ATTENTION_BACKENDS) - {NAME}))
        raise unsupported(f"prefill by {inner_name!r}", f"set VORTEX_SERVING_PREFILL to one of {known}")
    if geometry.is_mla:
        register_mla(inner_name)
    status = Status(
        settings.status,
        {
            "flow": bundle.name,
            "ir_hash": bundle.ir_hash,
            "key": bundle.key,
            "backend": backend,
            "prefill": inner_name,
            "page_size": bundle.knobs.page_size,
            "budget": bundle.knobs.budget,
            "sparse_layers": decoder.flow.plan.sparse_layers,
            "layers": geometry.layers,
            "kv_dtype": str(kv_dtype).removeprefix("torch."),
            "tokens": pool.pages * bundle.knobs.page_size,
            "state_bytes": decoder.state_bytes,
            "crossover": decoder.flow.crossover.text,
            "tp_size": setting(args, "tp_size"),
        },
        speaks=get_parallel().tp_rank == 0,
    )
    status.announce()
    return VortexAttnBackend(ATTENTION_BACKENDS[inner_name](runner), inner_name, decoder, runner, status)


def _crossover(settings: Settings, bundle: Flow, geometry: Geometry, device: torch.device) -> Crossover:
    """As set, else what was measured on this machine."""
    if settings.crossover is not None:
        return Crossover.parse(settings.crossover)
    return stored_crossover(bundle.program, bundle.knobs, geometry) if device.type == "cuda" else NEVER


def default_prefill(runner: Any) -> str:
    """What SGLang itself would take for this model and device."""
    if runner.device == "cpu":
        return "torch_native"
    return default_backend(runner.server_args, runner.use_mla_backend, runner.model_config)


def _pool_shape(runner: Any, page_size: int) -> PoolShape:
    pool = runner.token_to_kv_pool
    return PoolShape(
        pages=len(pool.get_kv_buffer(pool.start_layer)[0]) // page_size,
        layers=(0, runner.model_config.num_hidden_layers),
        kv_dtype=pool.dtype,
        batch=runner.req_to_token_pool.size,
        longest=runner.req_to_token_pool.req_to_token.shape[1],  # a little more than the context length
    )


# Caches that put keys and values into pages which no prefill wrote, so that nothing computed their states.
_FOREIGN_CACHES = (
    "enable_hierarchical_cache",
    "enable_lmcache",
    "enable_flexkv",
    "radix_cache_backend",
    "enable_unified_cache_external_linker",  # since 0.5.20
)


def _check_server(runner: Any, args: Any) -> None:
    pool, known = runner.token_to_kv_pool, setting_names()

    def given(name: str) -> Any:
        return setting(args, name)

    foreign = [name for name in _FOREIGN_CACHES if name in known and given(name)]
    # Since 0.5.19: replays what precedes a decode step as a graph of its own; ours is more than launches.
    glue = getattr(envs, "SGLANG_ENABLE_METADATA_GLUE_GRAPH", None)
    refused = (
        (given("speculative_algorithm") is not None, "speculative decoding", "drop --speculative-algorithm"),
        (given("pp_size") > 1, "pipeline parallelism", "use --tp-size"),
        (given("enable_two_batch_overlap") or given("enable_pdmux"), "two-batch overlap or PD multiplexing",
         "drop them"),
        (given("disaggregation_mode") != "null", "prefill-decode disaggregation", "serve both in one server"),
        (foreign, f"caches beyond the pool ({', '.join(foreign)})", "drop the setting"),
        (given("dcp_size") > 1, "decode context parallelism", "use --tp-size"),
        (attention_backends(args) != (NAME, NAME), "being only one of two attention backends",
         f"start with --attention-backend {NAME} alone, and name the one that prefills in VORTEX_SERVING_PREFILL"),
        (runner.sliding_window_size is not None, "sliding-window models", "choose another --attention-backend"),
        (type(pool) not in (MHATokenToKVPool, MLATokenToKVPool), f"KV pools of type {type(pool).__name__}",
         "serve a decoder-only model with full attention and plain KV"),
        (pool.post_capture_active, "KV pools sized after graph capture",
         "set SGLANG_ENABLE_POST_CAPTURE_KV_SIZING=0"),
        (glue is not None and glue.get(), "graphs of a step's preparation",
         "unset SGLANG_ENABLE_METADATA_GLUE_GRAPH"),
        (getattr(pool, "kv_cache_layout", "nhd") != "nhd" or getattr(pool, "is_quantized_kv_cache", False),
         "KV layouts other than NHD in bf16, fp16 or fp8", "drop the setting"),
    )  # fmt: skip
    for found, what, remedy in refused:
        if found:
            raise unsupported(what, remedy)


def _check_memory(
    bundle: Flow, geometry: Geometry, pool: PoolShape, backend: str, device: torch.device
) -> None:
    """The pool's size already accounts for the states (see `plugin`); this is for what accounting missed."""
    if device.type != "cuda":
        return
    plan = LayerPlan(bundle.program, bundle.knobs, geometry.layers)
    page = state_bytes_per_page(compile_flow(bundle, geometry, backend))
    needed = page * len(plan.leaders) * pool.pages
    free = (
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
    )
    if needed > free:
        raise no_memory(needed, free, pool.pages * bundle.knobs.page_size)
