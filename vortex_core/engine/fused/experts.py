"""Sparse layers whose decode step is five launches beside the shared expert: routing (two), two products, their sum.

transformers runs chosen experts through a grouped product that sorts tokens, in two dozen launches a layer; that is
the right way for a prompt, and prompts still go there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vortex_core.engine.fused.expert_kernels import MOST_PAIRS, route, run_experts


@dataclass(frozen=True)
class Routing:
    """How a class of sparse layers scores its experts; see `expert_kernels.route`.

    Attributes:
        sigmoid: of each logit, else a softmax over experts.
        wide: logits are float32 products.
        normalise: None where the configuration's `norm_topk_prob` says it.
        scaled: shares are multiplied by the configuration's `routed_scaling_factor`.
    """

    sigmoid: bool
    wide: bool
    normalise: bool | None
    scaled: bool


ROUTINGS: dict[str, Routing] = {
    "Glm4MoeLiteMoE": Routing(sigmoid=True, wide=True, normalise=None, scaled=True),
    "MiniMaxM2SparseMoeBlock": Routing(sigmoid=True, wide=False, normalise=True, scaled=False),
    "Qwen3MoeSparseMoeBlock": Routing(sigmoid=False, wide=False, normalise=None, scaled=False),
}


def fits_experts(block: Any) -> bool:
    """A known class, with gated experts packed as transformers packs them and no groups of experts."""
    if type(block).__name__ not in ROUTINGS or not hasattr(block.gate, "weight"):
        return False
    experts = block.experts
    packed = all(isinstance(getattr(experts, n, None), nn.Parameter) for n in ("gate_up_proj", "down_proj"))
    silu = type(getattr(experts, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
    return packed and silu and getattr(experts.config, "n_group", 1) in (None, 1)


class FusedExperts(nn.Module):
    """Takes the place of a sparse layer, with its weights and its hooks.

    Attributes:
        seen: where it is a list, each pass appends the experts it chose, `[token, top]`.
    """

    seen: list[torch.Tensor] | None = None

    def __init__(self, block: Any) -> None:
        super().__init__()
        config = block.experts.config
        how = ROUTINGS[type(block).__name__]
        self.gate_weight: nn.Parameter = block.gate.weight
        self.experts = block.experts
        self.shared_experts = getattr(block, "shared_experts", None)
        bias = getattr(block.gate, "e_score_correction_bias", None)
        self.bias = getattr(block, "e_score_correction_bias", None) if bias is None else bias
        self.top: int = config.num_experts_per_tok
        self.sigmoid, self.wide = how.sigmoid, how.wide
        self.normalise: bool = config.norm_topk_prob if how.normalise is None else how.normalise
        self.scale: float = config.routed_scaling_factor if how.scaled else 1.0
        for hook in block._forward_hooks.values():  # the sum over tensor-parallel ranks
            self.register_forward_hook(hook)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, row, hidden]` to the same."""
        tokens = x.reshape(-1, x.shape[-1])
        ids, shares = route(
            tokens, self.gate_weight, self.bias, top=self.top, sigmoid=self.sigmoid,
            normalise=self.normalise, scale=self.scale, wide=self.wide,
        )  # fmt: skip
        if self.seen is not None:
            self.seen.append(ids)
        shared = None if self.shared_experts is None else self.shared_experts(x).view_as(tokens)
        if 0 < ids.numel() <= MOST_PAIRS:
            gate_up, down = self.experts.gate_up_proj, self.experts.down_proj
            return run_experts(tokens, gate_up, down, ids, shares, shared).view_as(x)
        weights = shares if self.sigmoid else shares.to(x.dtype)
        out: torch.Tensor = self.experts(tokens, ids.long(), weights)
        return (out if shared is None else out + shared).view_as(x)
