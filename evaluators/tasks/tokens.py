"""Tokenising of prompts: pieces are tokenised apart and joined as ids, so sizes come out exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from evaluators.tasks.base import Question

_MARK = "@@PASSAGE@@"


class Tokenizer(Protocol):
    """What tasks need of a transformers tokenizer."""

    chat_template: Any
    bos_token_id: int | None
    eos_token_id: int | None

    def __hash__(self) -> int: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Text of ids."""
        ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """A conversation as the model was trained to read it."""
        ...


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text, without special tokens of the tokenizer's own."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def frame(tokenizer: Tokenizer, before: str, after: str, answer_start: str) -> tuple[list[int], list[int]]:
    """Ids around a passage: a user turn `before + passage + after`, then the assistant's `answer_start`.

    Base models without a chat template get the same text with no turns.
    """
    if tokenizer.chat_template is None:
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return start + encode(tokenizer, before), encode(tokenizer, f"{after}\n{answer_start}")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": before + _MARK + after}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,  # read by templates of reasoning models, ignored by the rest
    )
    head, _, tail = str(text).partition(_MARK)
    return encode(tokenizer, head), encode(tokenizer, tail + answer_start)


def stop_tokens(tokenizer: Tokenizer, stops: Sequence[str]) -> tuple[int, ...]:
    """Ids at which decoding ends: the end of text, and the stop strings that are one token."""
    single = [ids[0] for text in stops if len(ids := encode(tokenizer, text)) == 1]
    return tuple(sorted({i for i in (tokenizer.eos_token_id, *single) if i is not None}))


def answer_tokens(tokenizer: Tokenizer, tokens: Sequence[int], question: Question) -> list[int]:
    """The tokens of an answer, its end among them; of a scripted question only those that the model chose."""
    if question.script:
        said = zip(tokens, question.script, strict=True)
        return [token for token, given in said if given is None]
    ends = set(stop_tokens(tokenizer, question.stops))
    kept = list(tokens[: question.max_new_tokens])
    return kept[: next((i for i, token in enumerate(kept) if token in ends), len(kept)) + 1]


def answer_text(tokenizer: Tokenizer, tokens: Sequence[int], question: Question) -> str:
    """What was answered: up to the question's first stop, and no more tokens than it gives.

    The decoding need not have stopped there: the text is the same as if it had.
    """
    kept = answer_tokens(tokenizer, tokens, question)
    text = tokenizer.decode(kept, skip_special_tokens=True)
    longer = [stop for stop in question.stops if len(encode(tokenizer, stop)) > 1]
    places = [at for stop in longer if (at := text.find(stop)) >= 0]
    return text[: min(places)] if places else text
