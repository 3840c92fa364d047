"""True dimensions of models and GPUs, read from `configs/models` and `configs/hardware`.

Nothing here needs torch or weights: these are the numbers that cost models, planners and
`vortex-search models` reason with. Sizes are in bytes, rates in bytes or FLOPs a second.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vortex_core.configs import ConfigFolder, Strict
from vortex_core.geometry import Geometry
from vortex_core.registry import unknown_name

DType = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4"]

DTYPE_BYTES: dict[str, float] = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "int4": 0.5}

# Share of the datasheet bandwidth taken as usable on a GPU nobody has measured for this project:
# the lower of the two measured shares (H100 3.03/3.35 = 0.904, H200 4.28/4.80 = 0.892).
UNMEASURED_BANDWIDTH_SHARE = 0.89
# Seconds of a layer beyond its bytes, dense and of experts, where nobody measured them: those of an H200.
UNMEASURED_LAYER_OVERHEAD = 33e-6
UNMEASURED_MOE_LAYER_OVERHEAD = 76e-6

_MODELS = ConfigFolder("models", "model", unknown="VM001", invalid="VM003")
_HARDWARE = ConfigFolder("hardware", "GPU", unknown="VM002", invalid="VM003")


class MlaSpec(Strict):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): ranks and channels per head."""

    q_lora: PositiveInt | None = Field(description="rank of the query projection; None: not factored")
    kv_lora: PositiveInt = Field(description="channels of the cached latent, without the rotary part")
    qk_nope: int = Field(ge=0, description="query/key channels a head that carry no position")
    qk_rope: PositiveInt = Field(description="rotary channels, cached once and shared by all heads")
    v_head: PositiveInt = Field(description="value channels a head, after up-projection")


class MoeSpec(Strict):
    """Mixture of experts: every sparse layer holds `experts` gated MLPs and runs `active` a token."""

    experts: PositiveInt
    active: PositiveInt
    shared: int = Field(ge=0, description="experts that every token runs")
    intermediate: PositiveInt = Field(description="hidden channels of one expert")

    @model_validator(mode="after")
    def _active_within_experts(self) -> MoeSpec:
        if self.active > self.experts:
            raise ValueError(f"{self.active} active experts of {self.experts}")
        return self


class PypiWeights(Strict):
    """Weights that ship inside a Python package, as one GGUF file."""

    package: str
    version: str
    file: str = Field(description="path of the GGUF file inside the wheel")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ModelSpec(Strict):
    """A decoder-only transformer by its dimensions.

    `kv_heads` and `head_dim` describe the KV cache as decode attention sees it. Under MLA that is one
    latent head of `kv_lora + qk_rope` channels, which every query head reads after absorption.
    """

    name: str
    hf_id: str
    architecture: str = Field(description="model_type of transformers, e.g. llama, qwen3, glm4_moe_lite")
    layers: PositiveInt
    hidden: PositiveInt
    q_heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    intermediate: PositiveInt = Field(description="hidden channels of a dense layer's MLP")
    vocab: PositiveInt
    max_context: PositiveInt = Field(description="tokens")
    rope_theta: PositiveFloat
    rotary_channels: PositiveInt | None = Field(
        default=None, description="channels of a head that rotate, the first; None: all (MLA: qk_rope)"
    )
    rotary_frequencies: tuple[float, ...] | None = Field(
        default=None,
        description="radians a token by rotary pair, where they are not powers of rope_theta; empty: not fixed",
    )
    parameters: PositiveInt = Field(description="all trained parameters; tied embeddings count once")
    tie_embeddings: bool
    dtype: DType = Field(description="dtype of the published weights")
    mla: MlaSpec | None = None
    moe: MoeSpec | None = None
    dense_first_layers: int = Field(default=0, ge=0, description="leading layers with a dense MLP (MoE only)")
    pypi: PypiWeights | None = None
    shipped: str | None = Field(
        default=None,
        description="folder of the package vortex_core that holds the weights, trained by this project",
    )
    weights_of: str | None = Field(
        default=None, description="the described GQA model that this one is, with the same weights, as MLA"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        if self.q_heads % self.kv_heads:
            raise ValueError(f"{self.q_heads} query heads do not divide among {self.kv_heads} kv heads")
        if self.mla is not None:
            width = self.mla.kv_lora + self.mla.qk_rope
            if (self.kv_heads, self.head_dim) != (1, width):
                raise ValueError(
                    f"MLA caches one latent head of {width} channels: kv_heads 1, head_dim {width}"
                )
        if self.moe is None and self.dense_first_layers:
            raise ValueError("dense_first_layers is for MoE models: without experts every layer is dense")
        if self.dense_first_layers > self.layers:
            raise ValueError(f"dense_first_layers {self.dense_first_layers} of {self.layers} layers")
        return self

    @property
    def group(self) -> int:
        """Query heads that read one kv head; under MLA all of them read the one latent head."""
        return self.q_heads // self.kv_heads

    @property
    def value_dim(self) -> int:
        """Channels of a cached value row; under MLA the latent without its rotary part."""
        return self.head_dim if self.mla is None else self.mla.kv_lora

    @property
    def sparse_layers(self) -> int:
        """Layers whose MLP is a mixture of experts."""
        return 0 if self.moe is None else self.layers - self.dense_first_layers

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert: gate, up and down projections."""
        return 0 if self.moe is None else 3 * self.hidden * self.moe.intermediate

    @property
    def active_parameters(self) -> int:
        """Parameters one token passes through (all of them where there are no experts)."""
        if self.moe is None:
            return self.parameters
        idle = self.moe.experts - self.moe.active
        return self.parameters - self.sparse_layers * idle * self.expert_parameters

    def geometry(self) -> Geometry:
        """The shapes that a flow is compiled for.

        The rotary channels of GQA models count as the whole head: programs do not tell partial rotary
        embeddings (MiniMax) apart. Under MLA they are the last `qk_rope` channels of the latent row.
        """
        return Geometry(
            layers=self.layers,
            kv_heads=self.kv_heads,
            group=self.group,
            head_dim=self.head_dim,
            rope_dim=self.head_dim if self.mla is None else self.mla.qk_rope,
            value_dim=self.value_dim,
            rotary=self._rotary(),
        )

    def _rotary(self) -> tuple[float, ...]:
        """Radians that each rotary pair turns a token; none where one row holds the keys of several heads."""
        if self.rotary_frequencies is not None:
            return self.rotary_frequencies
        if self.mla is not None and self.mla.qk_nope == 0:
            return ()
        width = self.rotary_channels or (self.head_dim if self.mla is None else self.mla.qk_rope)
        return tuple(self.rope_theta ** (-2 * i / width) for i in range(width // 2))

    def weight_bytes(self, dtype: DType | None = None) -> int:
        """Bytes of all weights in `dtype` (default: as published).

        Quantised checkpoints keep embeddings and norms wider, so for fp8 and below this is a lower bound.
        """
        return round(self.parameters * DTYPE_BYTES[dtype or self.dtype])

    def kv_bytes_per_token(self, dtype: DType = "bf16") -> int:
        """Bytes of KV cache that one token takes in all layers.

        GQA stores a key and a value row per kv head; MLA stores the latent and its rotary part once.
        """
        rows = self.head_dim + self.value_dim if self.mla is None else self.head_dim
        return round(self.layers * self.kv_heads * rows * DTYPE_BYTES[dtype])

    def weight_bytes_read_per_step(self, batch: int, dtype: DType | None = None) -> int:
        """Weight bytes that one decode step of `batch` sequences must read.

        An untied input embedding is left out (a step reads `batch` rows of it). Experts count as often as
        a step is expected to touch them: E·(1 - (1 - k/E)^batch), uniform and independent routing assumed;
        real routers are skewed and touch fewer.
        """
        assert batch >= 1, batch
        read = float(self.parameters)
        if not self.tie_embeddings:
            read -= self.vocab * self.hidden
        if self.moe is not None:
            miss = (1 - self.moe.active / self.moe.experts) ** batch
            read -= self.sparse_layers * self.moe.experts * miss * self.expert_parameters
        return round(read * DTYPE_BYTES[dtype or self.dtype])


class GpuSpec(Strict):
    """One GPU: what the datasheet says, what was measured, and what is assumed."""

    name: str
    product: str = Field(description="the board these figures hold for")
    hbm_bytes: PositiveInt
    hbm_bandwidth: PositiveFloat = Field(description="datasheet, bytes/s")
    measured_copy_bandwidth: PositiveFloat | None = Field(
        description="best copy kernel, read + write, bytes/s; None: not measured"
    )
    bf16_flops: PositiveFloat = Field(description="dense tensor-core FLOP/s")
    fp8_flops: PositiveFloat = Field(description="dense tensor-core FLOP/s")
    fp32_flops: PositiveFloat = Field(description="FLOP/s of the vector units, outside tensor cores")
    launch_overhead_assumed: PositiveFloat = Field(
        description="seconds a kernel costs inside a CUDA graph; an assumption, not a measurement"
    )
    layer_overhead: PositiveFloat | None = Field(
        None,
        description="seconds that a decoder layer takes beyond its bytes and its attention's launches, as its norms, "
        "products and activations are small launches one after the other; None: not measured",
    )
    moe_layer_overhead: PositiveFloat | None = Field(None, description="likewise of a layer of experts")

    @property
    def usable_bandwidth(self) -> float:
        """Bytes/s a good kernel can reach: measured where known, else a share of the datasheet.

        Copies read and write; pure reads have gone a little higher (H200 dense decode: 4.52e12), so compare
        a measurement with `hbm_bandwidth` before calling it too fast to be true.
        """
        return self.measured_copy_bandwidth or UNMEASURED_BANDWIDTH_SHARE * self.hbm_bandwidth

    @property
    def bandwidth_is_measured(self) -> bool:
        """Whether `usable_bandwidth` was measured on this GPU."""
        return self.measured_copy_bandwidth is not None

    def layer_overheads(self, model: ModelSpec) -> float:
        """Seconds of a step that `layer_overhead` says of all layers, where nobody measured it an H200's."""
        plain = self.layer_overhead or UNMEASURED_LAYER_OVERHEAD
        experts = self.moe_layer_overhead or UNMEASURED_MOE_LAYER_OVERHEAD
        return (model.layers - model.sparse_layers) * plain + model.sparse_layers * experts

    def kv_capacity_tokens(self, model: ModelSpec, kv_dtype: DType = "bf16") -> int:
        """Tokens of KV cache that fit beside the model's weights; 0 where the weights alone do not fit.

        An upper bound: activations, graphs and page states of a flow are not subtracted.
        """
        free = self.hbm_bytes - model.weight_bytes()
        return max(0, free // model.kv_bytes_per_token(kv_dtype))

    def flops(self, dtype: DType) -> float:
        """Dense tensor-core FLOP/s at this operand width (wider than 16 bits is not modelled)."""
        assert dtype not in ("fp32",), "no kernel here multiplies fp32 on tensor cores"
        return self.bf16_flops if dtype in ("bf16", "fp16") else self.fp8_flops


@cache
def list_models() -> tuple[str, ...]:
    """Names of the described models, sorted."""
    return _MODELS.names()


@cache
def list_gpus() -> tuple[str, ...]:
    """Names of the described GPUs, sorted."""
    return _HARDWARE.names()


@cache
def load_model(name: str) -> ModelSpec:
    """The description of a model by its name or Hugging Face id, in any letter case.

    Raises:
        VortexError: `VM001` unknown name; `VM003` the description does not validate.
    """
    wanted = name.lower()
    if wanted not in list_models():
        specs = (_described(known) for known in list_models())
        by_id = {spec.hf_id.lower(): spec.name for spec in specs if spec.weights_of is None}
        if wanted not in by_id:
            raise unknown_name("VM001", "model", name, list_models())
        wanted = by_id[wanted]
    return _described(wanted)


@cache
def load_gpu(name: str) -> GpuSpec:
    """The description of a GPU by its name, in any letter case.

    Raises:
        VortexError: `VM002` unknown name; `VM003` the description does not validate.
    """
    return _HARDWARE.load(name.lower(), GpuSpec)


@cache
def _described(name: str) -> ModelSpec:
    return _MODELS.load(name, ModelSpec)
