"""Layers that hold a part of their weights and exchange the rest of their result with the other ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

if TYPE_CHECKING:
    from vortex_core.engine.models.parallel import Ranks, Span


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A layer with these weights, as they are."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made


def rows_of(linear: nn.Linear, span: Span) -> nn.Linear:
    """The part of a layer that computes outputs `span`."""
    mine = slice(*span)
    # Copies, so that the whole weight can be freed.
    return _linear(linear.weight[mine].clone(), None if linear.bias is None else linear.bias[mine].clone())


def columns_of(linear: nn.Linear, span: Span) -> nn.Linear:
    """The part of a layer that reads inputs `span`, without its bias: its result is one term of a sum."""
    return _linear(linear.weight[:, slice(*span)].clone(), None)


class ReducedLinear(nn.Module):
    """A layer whose inputs are divided over the ranks: the sum of all ranks' terms, then the bias."""

    def __init__(self, part: nn.Linear, bias: nn.Parameter | None, ranks: Ranks) -> None:
        super().__init__()
        self.part = part
        self.bias = bias
        self._group = ranks.group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's inputs `[..., part]` to all outputs `[..., out]`, the same on every rank."""
        out: torch.Tensor = self.part(x)
        dist.all_reduce(out, group=self._group)
        return out if self.bias is None else out + self.bias


class SplitNorm(nn.Module):
    """RMSNorm over channels that are divided over the ranks (MiniMax-M2 normalises all heads together).

    Args:
        copies: ranks that hold the same channels, which the sum of squares then counts so often.
    """

    def __init__(self, norm: Any, span: Span, copies: int, ranks: Ranks) -> None:
        super().__init__()
        self.channels = norm.weight.numel() * copies
        self.weight = nn.Parameter(norm.weight[slice(*span)].clone(), requires_grad=False)
        self.variance_epsilon: float = norm.variance_epsilon
        self._group = ranks.group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., part]` to the same; squares are summed in float32."""
        wide = x.float()
        squares = wide.pow(2).sum(-1, keepdim=True)
        dist.all_reduce(squares, group=self._group)
        wide = wide * torch.rsqrt(squares / self.channels + self.variance_epsilon)
        return self.weight * wide.to(x.dtype)


def _part_of_vocabulary(weight: torch.Tensor, ranks: Ranks) -> nn.Parameter:
    """This rank's rows, the last rank's padded with zeros to the number of the others."""
    rows = -(-weight.shape[0] // ranks.size)
    mine = weight[rows * ranks.rank : rows * (ranks.rank + 1)]
    part = weight.new_zeros(rows, weight.shape[1])
    part[: len(mine)] = mine
    return nn.Parameter(part, requires_grad=False)


class SplitEmbedding(nn.Module):
    """An embedding whose rows are divided over the ranks."""

    def __init__(self, embedding: nn.Embedding, ranks: Ranks) -> None:
        super().__init__()
        self.weight = _part_of_vocabulary(embedding.weight, ranks)
        self._first = ranks.rank * self.weight.shape[0]
        self._group = ranks.group

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids `[...]` to `[..., hidden]`, the same on every rank."""
        at = ids - self._first
        mine = (at >= 0) & (at < self.weight.shape[0])
        out = nn.functional.embedding(at.clamp(0, self.weight.shape[0] - 1), self.weight)
        out = out * mine[..., None]
        dist.all_reduce(out, group=self._group)
        return out


class SplitHead(nn.Module):
    """The language-model head with its rows divided over the ranks; `weight`: the embedding's, where tied."""

    def __init__(self, head: nn.Linear, ranks: Ranks, weight: nn.Parameter | None) -> None:
        super().__init__()
        self.vocab = head.out_features
        self.weight = _part_of_vocabulary(head.weight, ranks) if weight is None else weight
        self._size, self._group = ranks.size, ranks.group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, row, hidden]` to logits `[batch, row, vocab]`, the same on every rank."""
        part = nn.functional.linear(x, self.weight)
        parts = part.new_empty(self._size, *part.shape)
        dist.all_gather_into_tensor(parts.flatten(0, 1), part, group=self._group)
        return parts.permute(1, 2, 0, 3).flatten(2)[..., : self.vocab]


def all_reduce_output(module: nn.Module, ranks: Ranks) -> None:
    """Sum a module's output over the ranks, in place."""

    def reduce(_: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        assert isinstance(output, torch.Tensor), type(output)
        dist.all_reduce(output, group=ranks.group)
        return output

    module.register_forward_hook(reduce)
