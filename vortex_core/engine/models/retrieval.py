"""A retrieval task small enough to train a model for: look up a key in a long text of noise.

A text is noise tokens with pairs `key value` hidden in it, then questions `? key`, each answered by its value.
Keys, values and noise are disjoint sets of tokens, keys differ within a text, and both are drawn anew for every
text: nothing can be memorised, and chance is one in `VALUES`. With many pairs every question has distractors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vortex_core.engine.engine import Engine

BOS, EOS, ASK = 0, 1, 2
KEYS = 160
VALUES = 160
FIRST_KEY = 3
FIRST_VALUE = FIRST_KEY + KEYS
FIRST_NOISE = FIRST_VALUE + VALUES
VOCAB = 512


@dataclass(frozen=True)
class Texts:
    """A batch of equally long texts.

    Attributes:
        ids: int64 `[batch, token]`, questions and answers included.
        positions: int64 `[batch, token]`; with gaps where they were asked for.
        answers: int64 `[question]`, indices of the answered keys in a text; the answer is the next token.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    answers: torch.Tensor


def make_texts(
    batch: int,
    length: int,
    pairs: int,
    questions: int,
    generator: torch.Generator,
    *,
    reach: int | None = None,
) -> Texts:
    """Random texts of `length` tokens.

    Args:
        reach: spread positions over so many: a few jumps in the noise, so that a model that trains on short
            texts meets long distances (in the spirit of arXiv 2305.16843). Pairs stay together.
    """
    room = length - 1 - 3 * questions
    assert 2 * pairs <= room, "the pairs leave no room"
    ids = torch.randint(FIRST_NOISE, VOCAB, (batch, length), generator=generator)
    ids[:, 0] = BOS
    # Where pairs begin: `pairs` of the `room - pairs` places that are left when each takes one token more.
    places = torch.rand(batch, room - pairs, generator=generator).argsort(1)[:, :pairs].sort(1).values
    places = 1 + places + torch.arange(pairs)
    keys = FIRST_KEY + torch.rand(batch, KEYS, generator=generator).argsort(1)[:, :pairs]
    values = FIRST_VALUE + torch.randint(VALUES, (batch, pairs), generator=generator)
    ids.scatter_(1, places, keys).scatter_(1, places + 1, values)
    asked = torch.randint(pairs, (batch, questions), generator=generator)  # a pair may be asked for twice
    start = length - 3 * questions
    ids[:, start::3] = ASK
    ids[:, start + 1 :: 3] = keys.gather(1, asked)
    ids[:, start + 2 :: 3] = values.gather(1, asked)
    positions = torch.arange(length).expand(batch, -1)
    if reach is not None:
        positions = positions + _jumps(places, length, reach - length, generator)
    return Texts(ids, positions, torch.arange(start + 1, length, 3))


def _jumps(places: torch.Tensor, length: int, total: int, generator: torch.Generator) -> torch.Tensor:
    """What to add to positions, `[batch, token]`: it grows before pairs only, by `total` at most."""
    batch, pairs = places.shape
    cuts = torch.rand(batch, pairs + 1, generator=generator).sort(1).values
    sizes = (cuts.diff(dim=1, prepend=torch.zeros(batch, 1)) * total).long()
    added = torch.zeros(batch, length, dtype=torch.int64)
    added.scatter_(1, places, sizes[:, :pairs])
    return added.cumsum(1)


def retrieval_accuracy(
    engine: Engine, *, length: int, pairs: int, items: int, seed: int, batch: int = 16
) -> float:
    """Share of questions that the engine answers rightly with its loaded flow; one question a text."""
    generator = torch.Generator().manual_seed(seed)
    right = 0
    for start in range(0, items, batch):
        count = min(batch, items - start)
        texts = make_texts(count, length, pairs, 1, generator)
        prompts = [engine.prefill(ids[:-1].tolist()) for ids in texts.ids]
        found = engine.decode(prompts, max_new_tokens=1).tokens
        right += sum(tokens[0] == int(ids[-1]) for tokens, ids in zip(found, texts.ids, strict=True))
        for prompt in prompts:
            engine.release(prompt)
    return right / items


def tokenizer_words() -> list[str]:
    """The word of each token id."""
    special = ["<bos>", "<eos>", "?"]
    keys = [f"k{i}" for i in range(KEYS)]
    values = [f"v{i}" for i in range(VALUES)]
    return [*special, *keys, *values, *(f"n{i}" for i in range(VOCAB - FIRST_NOISE))]


def save_tokenizer(directory: Path) -> None:
    """Write a tokenizer of these words, separated by spaces, in transformers' layout."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = tokenizer_words()
    inner: Any = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<eos>"))
    inner.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>")
    made.save_pretrained(directory)


def loss_of(model: Any, texts: Texts) -> tuple[torch.Tensor, float]:
    """Cross-entropy of the answers, and the share that is right, over all questions of a batch."""
    hidden = model.model(input_ids=texts.ids, position_ids=texts.positions, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, texts.answers]).float()
    wanted = texts.ids[:, texts.answers + 1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    return loss, float((logits.argmax(-1) == wanted).float().mean())


def table(rows: Sequence[tuple[str, float, float]]) -> str:
    """`(flow, density, accuracy)` as text."""
    lines = [f"{'flow':28} {'density':>8} {'accuracy':>9}"]
    lines += [f"{name:28} {density:8.2f} {accuracy:9.3f}" for name, density, accuracy in rows]
    return "\n".join(lines)
