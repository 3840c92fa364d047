"""Sampling: cuts, seeds, independence of the batch."""

from __future__ import annotations

import pytest
import torch

from vortex_core.engine.decode.sampling import Sampler, Sampling, token_logprobs
from vortex_core.errors import VortexError


def _draws(sampling: Sampling, logits: torch.Tensor, n: int) -> torch.Tensor:
    sampler = Sampler([sampling])
    return torch.cat([sampler(logits[None]) for _ in range(n)])


def test_greedy_is_the_first_of_the_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    assert Sampler([Sampling(), Sampling()])(logits).tolist() == [1, 0]


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    counts = torch.bincount(_draws(Sampling(temperature=1.0, seed=3), logits, 4000), minlength=4) / 4000
    assert (counts - logits.exp()).abs().max() < 0.03
    hot = torch.bincount(_draws(Sampling(temperature=2.0, seed=3), logits, 4000), minlength=4) / 4000
    assert (hot - torch.softmax(logits / 2, -1)).abs().max() < 0.03


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(temperature=1.0, top_k=2), {3, 0}),
        (Sampling(temperature=1.0, top_p=0.5), {3}),  # 0.5 alone reaches 0.5
        (Sampling(temperature=1.0, top_p=0.51), {3, 0}),
        (Sampling(temperature=1.0, top_p=0.95, top_k=3), {3, 0, 2}),
        (Sampling(temperature=1.0, top_p=1e-6), {3}),
    ],
)
def test_cuts(sampling: Sampling, allowed: set[int]) -> None:
    logits = torch.tensor([0.3, 0.05, 0.15, 0.5]).log()
    assert set(_draws(sampling, logits, 300).tolist()) == allowed


def test_a_row_draws_the_same_alone_and_in_any_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 3, 50)  # steps, rows, vocab
    rows = [Sampling(temperature=1.0, seed=4), Sampling(), Sampling(temperature=0.7, top_p=0.9, seed=9)]
    together = Sampler(rows)
    drawn = torch.stack([together(step) for step in logits], 1)
    for i, row in enumerate(rows):
        alone = Sampler([row])
        assert [int(alone(step[i : i + 1])) for step in logits] == drawn[i].tolist()
    shrinking = Sampler(rows)
    shrinking(logits[0])
    shrinking.keep([2])
    assert int(shrinking(logits[1, 2:])) == drawn[2, 1]


def test_logprobs() -> None:
    logits = torch.randn(4, 30)
    tokens = torch.tensor([0, 7, 29, 3])
    expected = torch.log_softmax(logits.double(), -1)[range(4), tokens].float()
    torch.testing.assert_close(token_logprobs(logits, tokens), expected)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}])
def test_bad_parameters_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(VortexError, match=next(iter(wrong))) as caught:
        Sampling(**wrong)
    assert caught.value.code == "VE014"
