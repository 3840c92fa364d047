"""From logits to the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from vortex_core.engine.errors import bad_sampling


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. The default is greedy.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: smallest set of most likely tokens whose probability reaches this (nucleus, arXiv 1904.09751).
        top_k: only this many of the most likely tokens; 0 means all.
        seed: the draws of a request depend on it and on nothing else in the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise bad_sampling("temperature", self.temperature, "it is a number from 0 up")
        if not 0.0 < self.top_p <= 1.0:
            raise bad_sampling("top_p", self.top_p, "it is above 0 and at most 1")
        if self.top_k < 0:
            raise bad_sampling("top_k", self.top_k, "it is a whole number from 0 up")

    def for_row(self, row: int) -> Sampling:
        """The same with a seed of its own for one row of a batch."""
        return replace(self, seed=self.seed + row)


GREEDY = Sampling()


class Sampler:
    """Chooses the next token of every row of a batch. `greedy`: whether all of them just take the likeliest."""

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self.rows = list(rows)
        # One generator per request, on the CPU: the same draws on every device and in every batch.
        self._generators = [torch.Generator().manual_seed(row.seed) for row in rows]
        self._set_up()

    def _set_up(self) -> None:
        self.greedy = all(row.temperature == 0.0 for row in self.rows)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self.rows = [self.rows[i] for i in rows]
        self._generators = [self._generators[i] for i in rows]
        self._set_up()

    def extend(self, rows: Sequence[Sampling]) -> None:
        """Add rows for sequences that join the batch."""
        self.rows += rows
        self._generators += [torch.Generator().manual_seed(row.seed) for row in rows]
        self._set_up()

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits`: float32 `[batch, vocab]`. Returns int64 `[batch]`."""
        greedy = logits.argmax(-1)
        if self.greedy:
            return greedy
        device = logits.device
        temperature = torch.tensor([row.temperature for row in self.rows], device=device)
        top_p = torch.tensor([row.top_p for row in self.rows], device=device)
        top_k = torch.tensor([row.top_k or logits.shape[-1] for row in self.rows], device=device)
        draws = torch.cat([torch.rand(1, generator=g) for g in self._generators]).to(device)

        scaled = logits / temperature.clamp_min(1e-6)[:, None]
        ordered, tokens = scaled.sort(stable=True, dim=-1, descending=True)
        rank = torch.arange(logits.shape[-1], device=device)
        probability = torch.softmax(ordered.masked_fill(rank >= top_k[:, None], float("-inf")), -1)
        before = probability.cumsum(-1) - probability
        probability = probability.masked_fill(before >= top_p[:, None], 0.0)
        cumulative = probability.cumsum(-1)
        index = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)
        # Rounding may carry the target up to the total: stay among the tokens that are left.
        index = index.minimum((probability > 0).sum(-1, keepdim=True) - 1)
        sampled = tokens.gather(-1, index)[:, 0]
        return torch.where(temperature == 0.0, greedy, sampled)


def choose(sampler: Sampler, logits: torch.Tensor, forced: Sequence[int | None] | None) -> torch.Tensor:
    """The sampler's tokens, replaced where `forced` names one; int64 `[batch]`."""
    if forced is not None and None not in forced and sampler.greedy:
        return torch.tensor(forced, device=logits.device)
    chosen = sampler(logits)  # also for forced rows: their later draws must not depend on it
    if forced is not None:
        known = torch.tensor([-1 if token is None else token for token in forced], device=logits.device)
        chosen = torch.where(known >= 0, known, chosen)
    return chosen


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of each row's token. `logits`: float32 `[batch, vocab]`; `tokens`: int64 `[batch]`."""
    return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
