"""Text of growing token lists: characters of several tokens, stop strings across tokens."""

from __future__ import annotations

import pytest

from vortex_core.engine.text_stream import TextStream


class Bytes:
    """A token is a byte, as in the fallback of real tokenizers; incomplete characters decode to U+FFFD."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語", "👩‍🚀 ok", "ends with half"])
def test_pieces_make_the_text_and_show_no_broken_character(text: str) -> None:
    stream = TextStream(Bytes())
    data = list(text.encode())
    pieces = [stream.add(token, last=i == len(data) - 1) for i, token in enumerate(data)]
    assert "".join(pieces) == text == stream.text
    assert not any("\ufffd" in piece for piece in pieces)


def test_what_may_become_a_stop_string_is_held_back_until_it_cannot() -> None:
    stream = TextStream(Bytes(), ["abc", "zz"])
    assert [stream.add(ord(c)) for c in "xabab"] == ["x", "", "", "ab", ""]
    assert stream.add(ord("c")) == ""
    assert stream.stopped
    assert stream.text == "xab"


def test_the_end_shows_what_was_held_back() -> None:
    stream = TextStream(Bytes(), ["abc"])
    assert stream.add(ord("a")) == ""
    assert stream.add(ord("b"), last=True) == "ab"
    assert not stream.stopped


def test_the_first_of_several_stop_strings_counts() -> None:
    stream = TextStream(Bytes(), ["de", "c"])
    for c in "abc":
        stream.add(ord(c))
    assert stream.text == "ab"
