"""Text of a growing list of tokens, piece by piece, and the stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"  # what a tokenizer writes for a character whose last bytes are missing


class TextStream:
    """Turns a sequence's tokens into text as they come.

    A token's text depends on its neighbours (spaces, characters of several tokens), so each piece is what a short
    window decodes to with the new token, less what it decodes to without. Text that may yet become a stop
    string is held back.

    Attributes:
        text: all so far, up to a stop string.
        stopped: whether one came.
    """

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = [s for s in stop_strings if s]
        self._tokens: list[int] = []
        self._begin = 0  # of the window
        self._decoded = 0  # tokens whose text is in `text`
        self._shown = 0  # characters given out

    def add(self, token: int, *, last: bool = False) -> str:
        """Text that can be shown now. `last`: nothing follows, hold nothing back."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._begin : self._decoded])
        after = self._decode(self._tokens[self._begin :])
        if last or not after.endswith(_UNFINISHED):
            searched = max(0, len(self.text) - max(map(len, self._stops), default=0))
            self.text += after[len(before) :]
            self._begin, self._decoded = self._decoded, len(self._tokens)
            self._stop(searched)
        hold = 0 if last or self.stopped else max((self._may_begin(s) for s in self._stops), default=0)
        end = len(self.text) - hold
        piece = self.text[self._shown : end] if end > self._shown else ""
        self._shown += len(piece)
        return piece

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def _stop(self, searched: int) -> None:
        """Cut the text at the first stop string."""
        found = [at for s in self._stops if (at := self.text.find(s, searched)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = True

    def _may_begin(self, stop: str) -> int:
        """Characters at the end of the text that are the beginning of a stop string."""
        longest = min(len(stop) - 1, len(self.text))
        return next((n for n in range(longest, 0, -1) if self.text.endswith(stop[:n])), 0)
