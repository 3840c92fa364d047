"""Between transformers' configurations and `ModelSpec`, in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vortex_core.engine.models.weight_files import first_dtype
from vortex_core.errors import VortexError
from vortex_core.files import read_json
from vortex_core.specs import DType, MlaSpec, ModelSpec, MoeSpec
from vortex_core.text import visible

# In a config.json this key, with the value "latent", says that the engine shall run a grouped-query model as MLA.
ATTENTION_KEY = "vortex_attention"

_MOST_LAYERS = 1_000  # each is built, without memory for weights, to count parameters
# What a checkpoint says its weights are -> as a configuration would.
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_DTYPES: dict[str, DType] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def spec_from_directory(directory: Path, *, name: str) -> ModelSpec:
    """The dimensions of the model whose `config.json` lies in `directory`.

    Raises:
        VortexError: `VM006` no readable config; `VM007` an architecture `ModelSpec` does not describe, or code of
            the model's own, which is never run and whose place no other code takes silently.
    """
    _require_no_code(directory)
    try:
        config = read_config(directory)
    except Exception as error:  # transformers raises whatever a broken config leads it to
        first = visible(str(error).strip().split("\n")[0] or type(error).__name__, 200)
        raise VortexError(
            "VM006", f"{directory}/config.json: {first}", "Does transformers know this model?"
        ) from error
    if config.dtype in (None, "auto"):  # then that of the weights counts, as where they are loaded
        config.dtype = _STORED.get(first_dtype(directory) or "")
    return spec_from_hf_config(config.get_text_config(), name=name)


def read_config(directory: Path) -> Any:
    """The transformers configuration in a directory; code of the model's own is never run."""
    from transformers import AutoConfig

    fields = read_json(directory / "config.json")
    if isinstance(fields, dict) and fields.get("dtype", fields.get("torch_dtype")) == "auto":
        # Some tools write what is an argument of from_pretrained; transformers looks for a dtype of that name.
        left = {k: v for k, v in fields.items() if k not in ("dtype", "torch_dtype", "model_type")}
        return AutoConfig.for_model(fields["model_type"], **left)
    return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def _require_no_code(directory: Path) -> None:
    """Refuse a directory whose configuration or tokenizer names code of its own.

    Transformers' class of the same model type would load it, and may compute something else than its author's.
    """
    for name in ("config.json", "tokenizer_config.json"):
        path = directory / name
        if name == "config.json" and not path.exists():
            raise VortexError(
                "VM006", f"{directory} has no config.json", "Give a directory in Hugging Face layout."
            )
        try:
            found = read_json(path) if path.exists() else {}
        except OSError as error:
            raise VortexError(
                "VM006", f"{path}: {error.strerror}", "Fetch or save the model again."
            ) from error
        if not isinstance(found, dict):
            raise VortexError("VM006", f"{path} is no JSON object", "Fetch or save the model again.")
        if "auto_map" in found:
            raise VortexError(
                "VM007",
                f"{path} names code of its own (auto_map: {visible(found['auto_map'], 120)}), which is never run",
                "If transformers' own class of this model type is meant, remove the key auto_map.",
            )


def spec_from_hf_config(config: Any, *, name: str) -> ModelSpec:
    """The dimensions of a transformers `PreTrainedConfig`; parameters are counted on the meta device.

    Raises:
        VortexError: `VM007` where a layer is not full causal attention or the experts follow no simple
            pattern: a description would be false.
    """
    try:
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    except TypeError as error:
        raise _unsupported(name, f"layer_types: {error}") from error
    if kinds or getattr(config, "use_sliding_window", False):
        found = ", ".join(sorted(kinds)) or "sliding_attention"
        raise _unsupported(name, f"layers with {found}; only full causal attention is paged here")
    try:
        heads, layers = int(config.num_attention_heads), int(config.num_hidden_layers)
        if layers > _MOST_LAYERS:
            raise _unsupported(name, f"{layers} layers, at most {_MOST_LAYERS}")
        _require_read(config, name)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        mla = _grouped_as_latent(kv_heads, head_dim) if wants_latent(config) else _mla(config)
        moe, dense_first = _moe(config, layers, name)
        return ModelSpec(
            name=name,
            hf_id=name,
            architecture=config.model_type,
            layers=layers,
            hidden=config.hidden_size,
            q_heads=heads,
            kv_heads=1 if mla else kv_heads,
            head_dim=mla.kv_lora + mla.qk_rope if mla else head_dim,
            intermediate=config.intermediate_size,
            vocab=config.vocab_size,
            max_context=config.max_position_embeddings,
            rope_theta=config.rope_parameters["rope_theta"],
            rotary_channels=None if mla else _rotary_channels(config, head_dim),
            rotary_frequencies=_rotary_frequencies(config),
            parameters=_count_parameters(config),
            tie_embeddings=bool(config.tie_word_embeddings),
            dtype=_dtype(config),
            mla=mla,
            moe=moe,
            dense_first_layers=dense_first,
        )
    except VortexError:
        raise
    except Exception as error:  # numbers of the wrong kind lead transformers and torch to any exception
        said = visible(error, 200) or type(error).__name__
        raise _unsupported(name, f"model type {config.model_type}: {said}") from error


def _rotary_channels(config: Any, head_dim: int) -> int | None:
    """Channels of a head that rotate, None if all do."""
    width = int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
    return None if width == head_dim else width


def _rotary_frequencies(config: Any) -> tuple[float, ...] | None:
    """Those of a scaled rotary embedding; empty where they depend on the length, None where nothing is scaled."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = config.rope_parameters.get("rope_type", "default")
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        return ()
    found, _ = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    return tuple(found.tolist())


def reference_config(spec: ModelSpec) -> Any:
    """A transformers config of exactly these shapes, for random weights where only speed is asked.

    Context scaling of the rotary embedding is left out: it changes values, not shapes or time.
    """
    from transformers import AutoConfig

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": spec.rope_theta}
    if spec.rotary_channels is not None and spec.mla is None:
        rope["partial_rotary_factor"] = spec.rotary_channels / spec.head_dim
    fields: dict[str, Any] = {
        "num_hidden_layers": spec.layers,
        "hidden_size": spec.hidden,
        "num_attention_heads": spec.q_heads,
        "intermediate_size": spec.intermediate,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.max_context,
        "rope_parameters": rope,
        "tie_word_embeddings": spec.tie_embeddings,
    }
    extra: dict[str, Any] = {}
    if spec.mla is not None and spec.mla.qk_nope == 0:  # a grouped-query model in disguise
        heads = spec.mla.qk_rope // spec.mla.v_head
        fields |= {"num_key_value_heads": heads, "head_dim": spec.mla.v_head}
        extra[ATTENTION_KEY] = "latent"
    elif spec.mla is not None:
        fields |= {
            "num_key_value_heads": spec.q_heads,  # transformers counts heads after up-projection
            "q_lora_rank": spec.mla.q_lora,
            "kv_lora_rank": spec.mla.kv_lora,
            "qk_nope_head_dim": spec.mla.qk_nope,
            "qk_rope_head_dim": spec.mla.qk_rope,
            "v_head_dim": spec.mla.v_head,
        }
    else:
        fields |= {"num_key_value_heads": spec.kv_heads, "head_dim": spec.head_dim}
    if spec.moe is not None:
        fields["num_experts_per_tok"] = spec.moe.active
        # One meaning, several spellings: DeepSeek and GLM, MiniMax and Mixtral, Qwen.
        fields |= dict.fromkeys(("n_routed_experts", "num_local_experts", "num_experts"), spec.moe.experts)
        fields["moe_intermediate_size"] = spec.moe.intermediate
        fields["n_shared_experts"] = spec.moe.shared
        sparse = spec.layers - spec.dense_first_layers
        fields["mlp_layer_types"] = ["dense"] * spec.dense_first_layers + ["sparse"] * sparse
    known = vars(AutoConfig.for_model(spec.architecture)).keys()
    return AutoConfig.for_model(spec.architecture, **{k: v for k, v in fields.items() if k in known}, **extra)


def wants_latent(config: Any) -> bool:
    """Whether a configuration asks that its grouped-query attention run as MLA (`models.grouped`)."""
    return getattr(config, ATTENTION_KEY, None) == "latent"


def _grouped_as_latent(kv_heads: int, head_dim: int) -> MlaSpec:
    """The latent is the values of all kv heads, the rotary part their keys; no score comes from the latent."""
    width = kv_heads * head_dim
    return MlaSpec(q_lora=None, kv_lora=width, qk_nope=0, qk_rope=width, v_head=head_dim)


def _mla(config: Any) -> MlaSpec | None:
    if getattr(config, "kv_lora_rank", None) is None:
        return None
    return MlaSpec(
        q_lora=config.q_lora_rank,
        kv_lora=config.kv_lora_rank,
        qk_nope=config.qk_nope_head_dim,
        qk_rope=config.qk_rope_head_dim,
        v_head=config.v_head_dim,
    )


def _moe(config: Any, layers: int, name: str) -> tuple[MoeSpec | None, int]:
    """The experts, and how many leading layers have a dense MLP instead."""
    spellings = ("n_routed_experts", "num_local_experts", "num_experts")
    experts = next((n for key in spellings if (n := getattr(config, key, None))), None)
    if experts is None:
        return None, 0
    moe = MoeSpec(
        experts=experts,
        active=config.num_experts_per_tok,
        shared=getattr(config, "n_shared_experts", None) or 0,
        intermediate=getattr(config, "moe_intermediate_size", None) or config.intermediate_size,
    )
    kinds = getattr(config, "mlp_layer_types", None)
    if kinds is None:
        if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
            raise _unsupported(name, "dense layers between sparse ones")
        kinds = [
            "dense" if i < getattr(config, "first_k_dense_replace", 0) else "sparse" for i in range(layers)
        ]
    dense = kinds.count("dense")
    if "dense" in kinds[dense:]:
        raise _unsupported(name, "dense layers between sparse ones")
    return moe, dense


def _dtype(config: Any) -> DType:
    """The dtype of the checkpoint: fp8 where it says it is quantised so, else the config's own."""
    quantised = getattr(config, "quantization_config", None)
    if isinstance(quantised, dict) and quantised.get("quant_method") == "fp8":
        return "fp8"
    return _DTYPES[str(config.dtype or "float32").removeprefix("torch.")]


def _require_read(config: Any, name: str) -> None:
    """Refuse weights in a packing that nothing here unpacks; block-scaled fp8 is widened."""
    quantised = getattr(config, "quantization_config", None)
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
    if method not in (None, "fp8"):
        raise _unsupported(name, f"weights quantised by {visible(method, 60)}")


def _count_parameters(config: Any) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _unsupported(name: str, why: str) -> VortexError:
    return VortexError(
        "VM007",
        f"{name} cannot be described: {why}",
        "Choose a decoder-only model with full attention in bf16, fp16, fp32 or fp8.",
    )
