"""A prefilled prompt: its tokens, and the blocks that hold their keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False)
class Prompt:
    """Keys and values of all tokens but the last, pinned until released.

    The last token is left to the first decode step, so that even the first answer token comes from the flow.

    Attributes:
        token_ids: the whole prompt.
        blocks: physical blocks of the first `length - 1` tokens; full ones may be shared with other prompts.
        pins: calls of `prefill` not yet released.
        lent: whether a decoding sequence writes to the free end of the last block.
        prefill_seconds: time spent computing, 0 where everything was shared.
    """

    token_ids: tuple[int, ...]
    blocks: list[int] = field(default_factory=list, repr=False)
    pins: int = 1
    lent: bool = field(default=False, repr=False)
    prefill_seconds: float = 0.0

    @property
    def length(self) -> int:
        """Tokens, the last one included."""
        return len(self.token_ids)

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are in the pool."""
        return len(self.token_ids) - 1
