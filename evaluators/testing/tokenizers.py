"""Small tokenizers for tests: they need no files and lose nothing."""

from __future__ import annotations

import re
from typing import Any


class WordTokenizer:
    """Words with the space before them, single digits, single other characters. 0 begins a text, 1 ends one.

    Args:
        chat: whether it has a chat template.
    """

    bos_token_id: int | None = 0
    eos_token_id: int | None = 1

    def __init__(self, chat: bool = True) -> None:
        self.chat_template = "chat" if chat else None
        self.vocabulary: dict[str, int] = {}
        self.texts: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids; a piece that was never seen gets the next one."""
        ids = []
        for piece in re.findall(r" ?[A-Za-z]+|\d|[^A-Za-z\d]", text):
            if piece not in self.vocabulary:
                self.vocabulary[piece] = 2 + len(self.texts)
                self.texts.append(piece)
            ids.append(self.vocabulary[piece])
        return ids

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """The text again."""
        return "".join(self.texts[i - 2] for i in token_ids if i >= 2)

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> str:
        """One user turn, then the assistant's."""
        return f"<user>{conversation[0]['content']}</user>\n<assistant>"


class ByteTokenizer:
    """One token per byte; 256 begins a text, 257 ends one; no turns."""

    chat_template: Any = None
    bos_token_id = 256
    eos_token_id = 257

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Bytes."""
        return [256] * add_special_tokens + list(text.encode())

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """The text again; what is no UTF-8 is replaced."""
        return bytes(i for i in token_ids if i < 256).decode("utf-8", errors="replace")

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> str:
        """A base model has no turns."""
        raise AssertionError("a base model has no turns")
