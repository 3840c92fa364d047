"""Tensor parallelism (Megatron-LM, arXiv 1909.08053): one model over several processes, each with a part of its heads.

Every rank runs the same program on the same tokens. Attention heads, the channels between the two products of an
MLP or an expert, and the vocabulary are divided; a layer costs two sums over the ranks. Each rank's KV pool
holds its own kv heads only.

Where there are more ranks than kv heads, several ranks hold the same kv head (under MLA, the one latent) and
divide the query heads that read it. A flow must then still see all of these queries, or ranks would select
different pages: at decode the queries of such ranks are gathered, every rank attends for all of them, and
keeps the output of its own. That reads no byte more, and decode attention is bound by the bytes of the cache.

transformers has tensor-parallel plans of its own. They do not fit here: they keep all kv heads of MiniMax-M2
on every rank, cannot divide fewer kv heads than ranks, and know nothing of absorbed latent attention.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vortex_core.engine.attention_hook import Step
from vortex_core.engine.models.latent import is_latent
from vortex_core.engine.models.parallel_modules import (
    ReducedLinear,
    SplitEmbedding,
    SplitHead,
    SplitNorm,
    all_reduce_output,
    columns_of,
    rows_of,
)
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.program import Program
from vortex_core.specs import ModelSpec

Span = tuple[int, int]  # first, last + 1


@dataclass(frozen=True)
class Ranks:
    """This process among those that hold a model together; `group` None is the default process group."""

    rank: int
    size: int
    group: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class Heads:
    """Which heads each tensor-parallel rank holds.

    Attributes:
        q: query heads of each rank.
        kv: kv heads of each rank.
        replicas: ranks that hold the same kv head, neighbours; 1 where kv heads are divided.
    """

    q: tuple[Span, ...]
    kv: tuple[Span, ...]
    replicas: int


@dataclass(frozen=True)
class Sharding:
    """What `shard` did to a model: the geometry of this rank, and whether it holds all kv heads."""

    ranks: Ranks
    geometry: Geometry
    divides_kv_heads: bool


def join_ranks(device_type: str) -> Ranks | None:
    """The ranks of a `torchrun` launch, or None where this is an ordinary process.

    Every rank uses the CUDA device of its local number.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return None
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())


def least_of_ranks(value: int, ranks: Ranks, device: torch.device) -> int:
    """The smallest of the ranks' values: what all of them can do, e.g. the tokens that fit each one's memory."""
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MIN, group=ranks.group)
    return int(shared)


def divide(total: int, parts: int) -> tuple[Span, ...]:
    """`total` in `parts` spans whose lengths differ by one at most."""
    ends = [total * i // parts for i in range(parts + 1)]
    return tuple(pairwise(ends))


def divide_channels(total: int, parts: int) -> tuple[Span, ...]:
    """The same in whole groups of 64 channels where there are enough of them, else of 8: matrix products on
    tensor cores want aligned rows."""
    unit = next(u for u in (64, 8, 1) if total % u == 0 and (total // u >= 2 * parts or u == 1))
    return tuple((a * unit, b * unit) for a, b in divide(total // unit, parts))


def divide_heads(spec: ModelSpec, size: int) -> Heads:
    """The heads of each of `size` ranks.

    Raises:
        VortexError: `VE020` where they cannot be divided so; the remedy names the numbers that work.
    """
    if not divisible(spec, size):
        works = [str(n) for n in range(1, 9) if divisible(spec, n)]
        raise VortexError(
            "VE020",
            f"{spec.name} has {spec.q_heads} query heads on {spec.kv_heads} kv heads, "
            f"which {size} ranks cannot hold",
            f"use one of {', '.join(works)} ranks",
        )
    if size <= spec.kv_heads:
        kv = divide(spec.kv_heads, size)
        return Heads(tuple((a * spec.group, b * spec.group) for a, b in kv), kv, 1)
    replicas = size // spec.kv_heads
    within = divide(spec.group, replicas)
    q = tuple((h * spec.group + a, h * spec.group + b) for h in range(spec.kv_heads) for a, b in within)
    return Heads(q, tuple((r // replicas, r // replicas + 1) for r in range(size)), replicas)


def divisible(spec: ModelSpec, size: int) -> bool:
    """Whether `size` ranks can hold a model's heads: whole kv heads each, or one kv head for equally many ranks."""
    if size <= spec.kv_heads:
        return True
    return size % spec.kv_heads == 0 and size // spec.kv_heads <= spec.group


def shard(model: Any, spec: ModelSpec, ranks: Ranks) -> Sharding:
    """Keep this rank's part of a transformers causal LM, in place. Call it before the engine takes the model.

    The weights may be on the meta device (see `random_weights`). Every rank must call it, in the same order
    for several models, for process groups are made here.

    Raises:
        VortexError: `VE020` where the heads do not divide; `VE021` for a model that is not understood.
    """
    heads = divide_heads(spec, ranks.size)
    if spec.weights_of is not None or (spec.mla is not None and spec.mla.qk_nope == 0):
        raise _not_understood(spec.name, "its grouped heads are already cached as one row")
    for layer in model.base_model.layers:
        _shard_attention(layer.self_attn, spec, heads, ranks)
        if hasattr(layer.mlp, "experts"):
            _shard_experts(layer.mlp, spec, ranks)
        else:
            _shard_gated(layer.mlp, spec, ranks, reduce=True)
    tied = model.lm_head.weight is model.base_model.embed_tokens.weight
    embedding = SplitEmbedding(model.base_model.embed_tokens, ranks)
    model.lm_head = SplitHead(model.lm_head, ranks, embedding.weight if tied else None)
    model.base_model.embed_tokens = embedding
    geometry = spec.geometry()
    if spec.mla is None:
        first, end = heads.kv[ranks.rank]
        geometry = replace(geometry, kv_heads=end - first)
    if heads.replicas > 1:
        _gather_queries(model.base_model, heads, ranks)
    model.vortex_sharding = sharding = Sharding(ranks, geometry, spec.kv_heads > 1)
    return sharding


def sharding_of(model: Any) -> Sharding | None:
    """What `shard` returned for this model, if it was called."""
    return getattr(model, "vortex_sharding", None)


def check_flow(program: Program, sharding: Sharding) -> None:
    """Refuse a program whose selection depends on kv heads that other ranks hold.

    Raises:
        VortexError: `VE022`.
    """
    shared = any(node.attr.get("share") is not None for node in program.index.nodes)
    if shared and sharding.divides_kv_heads:
        raise VortexError(
            "VE022",
            "this flow selects one set of pages for all kv heads, and the kv heads are on different ranks",
            "run it on one GPU, or let each kv head select for itself",
        )


# ---- parts of a model


def _shard_attention(attention: Any, spec: ModelSpec, heads: Heads, ranks: Ranks) -> None:
    first, end = heads.q[ranks.rank]
    if is_latent(attention):
        assert spec.mla is not None
        up = "q_proj" if spec.mla.q_lora is None else "q_b_proj"
        for name, width in ((up, attention.qk_head_dim), ("kv_b_proj", spec.mla.qk_nope + spec.mla.v_head)):
            setattr(attention, name, rows_of(getattr(attention, name), (first * width, end * width)))
        width = spec.mla.v_head
        attention.o_proj = ReducedLinear(
            columns_of(attention.o_proj, (first * width, end * width)), attention.o_proj.bias, ranks
        )
        return
    if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")):
        raise _not_understood(spec.name, f"{type(attention).__name__} has no q_proj, k_proj, v_proj, o_proj")
    dim = spec.head_dim
    q = (first * dim, end * dim)
    first, end = heads.kv[ranks.rank]
    kv = (first * dim, end * dim)
    attention.q_proj = rows_of(attention.q_proj, q)
    attention.k_proj = rows_of(attention.k_proj, kv)
    attention.v_proj = rows_of(attention.v_proj, kv)
    attention.o_proj = ReducedLinear(columns_of(attention.o_proj, q), attention.o_proj.bias, ranks)
    for name, span, copies in (("q_norm", q, 1), ("k_norm", kv, heads.replicas)):
        norm = getattr(attention, name, None)
        if norm is not None and norm.weight.numel() != dim:  # MiniMax normalises over all heads at once
            setattr(attention, name, SplitNorm(norm, span, copies, ranks))


def _shard_gated(mlp: Any, spec: ModelSpec, ranks: Ranks, *, reduce: bool) -> None:
    if not all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj")):
        raise _not_understood(spec.name, f"{type(mlp).__name__} has no gate_proj, up_proj, down_proj")
    span = divide_channels(mlp.gate_proj.out_features, ranks.size)[ranks.rank]
    mlp.gate_proj = rows_of(mlp.gate_proj, span)
    mlp.up_proj = rows_of(mlp.up_proj, span)
    down = columns_of(mlp.down_proj, span)
    mlp.down_proj = ReducedLinear(down, mlp.down_proj.bias, ranks) if reduce else down


def _shard_experts(block: Any, spec: ModelSpec, ranks: Ranks) -> None:
    """Every rank holds a slice of every expert, so that load is even whatever the router does."""
    experts = block.experts
    span = divide_channels(experts.down_proj.shape[2], ranks.size)[ranks.rank]
    gate, up = experts.gate_up_proj.chunk(2, 1)  # [expert, intermediate, hidden]
    mine = torch.cat((gate[:, slice(*span)], up[:, slice(*span)]), 1)
    experts.gate_up_proj = nn.Parameter(mine, requires_grad=False)
    experts.down_proj = nn.Parameter(experts.down_proj[:, :, slice(*span)].clone(), requires_grad=False)
    others = {name for name, _ in block.named_children()} - {"experts", "gate", "shared_experts"}
    if others:
        raise _not_understood(spec.name, f"{type(block).__name__} also has {', '.join(sorted(others))}")
    if getattr(block, "shared_experts", None) is not None:
        _shard_gated(block.shared_experts, spec, ranks, reduce=False)
    all_reduce_output(block, ranks)  # once for routed and shared experts together


def _not_understood(name: str, why: str) -> VortexError:
    return VortexError("VE021", f"{name} cannot be divided over ranks: {why}", "run it on one GPU")


# ---- query heads that share a kv head across ranks


class GatheredStep:
    """A step seen by a rank that holds some of the query heads of its one kv head."""

    def __init__(
        self, step: Step, counts: tuple[int, ...], mine: int, group: dist.ProcessGroup | None
    ) -> None:
        self.step, self.counts, self.mine, self.group = step, counts, mine, group

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See `attention_hook.Step`. A prompt selects nothing, so there each rank attends for its own heads."""
        if q.shape[2] > 1:
            return self.step.attend(layer, q, k, v, scale)
        batch, heads, rows, dim = q.shape
        width = max(self.counts)
        padded = q.new_zeros(width, batch, rows, dim)
        padded[:heads] = q.transpose(0, 1)
        gathered = q.new_empty(len(self.counts), *padded.shape)
        dist.all_gather_into_tensor(gathered.flatten(0, 1), padded, group=self.group)
        every = torch.cat([part[:count] for part, count in zip(gathered, self.counts, strict=True)])
        out = self.step.attend(layer, every.transpose(0, 1), k, v, scale)  # [batch, row, head, dim]
        first = sum(self.counts[: self.mine])
        return out[:, :, first : first + heads]


def _gather_queries(base_model: Any, heads: Heads, ranks: Ranks) -> None:
    """Have every forward of the model run with a `GatheredStep` around its step."""
    groups = []
    for start in range(0, ranks.size, heads.replicas):
        members = list(range(start, start + heads.replicas))
        # A group is made by all ranks together, whether they are in it or not.
        groups.append(ranks.group if heads.replicas == ranks.size else dist.new_group(members))
    start = ranks.rank - ranks.rank % heads.replicas
    counts = tuple(b - a for a, b in heads.q[start : start + heads.replicas])
    group = groups[start // heads.replicas]

    def wrap(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        step = GatheredStep(kwargs["vortex_step"], counts, ranks.rank - start, group)
        return args, kwargs | {"vortex_step": step}

    base_model.register_forward_pre_hook(wrap, with_kwargs=True)
