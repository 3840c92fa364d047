"""The text of a flow, cut into lines as Python counts them."""

from __future__ import annotations


def source_lines(source: str) -> list[str]:
    """Lines as Python counts them: only newlines end one."""
    return source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
