"""Bytes of a recipe's page states, without writing its program: drafts by the hundred are made to fit by it."""

from __future__ import annotations

from agents.base import Room
from agents.grammar.recipe import INTEGERS, STEPS, Band, Recipe
from vortex_core.ir.program import SCALED
from vortex_core.ir.types import packed_bytes

_SCALE_BYTES = 2


def page_bytes(recipe: Recipe, room: Room) -> int | None:
    """Bytes that a page has per kv head; None where a band is no whole number of the model's channels."""
    total = 0
    for band in recipe.bands:
        start, wide = (n * room.channels for n in (band.low, band.high - band.low))
        if start % (2 * STEPS) or wide % (2 * STEPS):
            return None
        total += _band_bytes(band, wide // STEPS, room.tokens)
    if any(b.scaled for b in recipe.bands):
        total += _row(recipe.norm, room.tokens)
    return total


def fits_room(recipe: Recipe, room: Room) -> bool:
    """Whether its page states are within a campaign's bound."""
    taken = page_bytes(recipe.normal(), room)
    return taken is not None and taken <= room.bytes


def _band_bytes(band: Band, channels: int, tokens: int) -> int:
    small = _row(band.small, channels)
    if not band.by_token:
        return small * band.rows * (2 if band.coder == "extrema" else 1)
    total = 0 if band.centre == "none" else small
    if band.coder in INTEGERS:
        rows, width = (channels, tokens) if band.per_channel else (tokens, channels)
        return total + rows * _row(band.coder, width)
    total += _row("int8", tokens) if band.coder == "range" else small
    return total + band.planes * tokens * packed_bytes("bits", channels)


def _row(dtype: str, count: int) -> int:
    """Bytes of a row of numbers, its scale among them."""
    return packed_bytes(dtype, count) + (_SCALE_BYTES if dtype in SCALED else 0)
