"""Leading directions of a page's rows: orthogonal iteration on their Gram matrix, which stays in registers.

The definition is `vortex_core.ir.definitions.principal`; the steps, the start and what counts as nothing are its own.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _cube(x):
    return x * x % 1019 * x % 1019


@triton.jit
def _times(gram, q, DOT: tl.constexpr):
    if DOT:
        return tl.dot(gram, q, input_precision="ieee")
    return tl.sum(gram[:, :, None] * q[None, :, :], axis=1)


@triton.jit
def principal_weights(
    gram,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    LEAST: tl.constexpr,
):
    """`W[row, direction]`, `[SIZE, WIDTH]`, so that the leading directions of the rows x are W'x.

    `gram`: `[SIZE, SIZE]`, 0 beyond `ROWS`. Directions beyond `RANK`, or of less than `LEAST` of the energy, are 0.
    A matrix product sums over at least 16.
    """
    dot: tl.constexpr = SIZE >= 16
    row = tl.arange(0, SIZE)[:, None]
    direction = tl.arange(0, WIDTH)[None, :]
    energy = tl.sum(tl.sum(tl.where(row == tl.arange(0, SIZE)[None, :], gram, 0.0), axis=1), axis=0)
    share = tl.where(energy > 0, 1.0 / tl.where(energy > 0, energy, 1.0), 0.0)
    gram = gram * share
    mixed = _cube(((row + 1) * 421 + 248) % 1019)
    mixed = _cube((mixed + (direction + 1) * 617 + 37) % 1019)
    q = (_cube((mixed + 101) % 1019) - 509).to(tl.float32) / 509
    q = tl.where((direction < RANK) & (row < ROWS), q, 0.0)
    for _ in range(STEPS):
        q = _times(gram, q, dot)
        for n in range(RANK):
            here = direction == n
            column = tl.sum(tl.where(here, q, 0.0), axis=1)
            square = tl.sum(column * column, axis=0)
            kept = square > LEAST * LEAST
            column = column * tl.where(kept, 1.0 / tl.sqrt(tl.where(kept, square, 1.0)), 0.0)
            along = tl.sum(column[:, None] * q, axis=0)
            rest = tl.where(direction > n, q - column[:, None] * along[None, :], q)
            q = tl.where(here, column[:, None], rest)
    image = _times(gram, q, dot)
    for n in range(RANK):
        here = direction == n
        column = tl.sum(tl.where(here, q, 0.0), axis=1)
        its_image = tl.sum(tl.where(here, image, 0.0), axis=1)
        square = tl.sum(column * its_image, axis=0)
        kept = square > LEAST
        scale = tl.where(kept, 1.0 / tl.sqrt(tl.where(kept, square, 1.0)), 0.0)
        column, its_image = column * scale, its_image * scale
        along = tl.sum(column[:, None] * image, axis=0)
        after = direction > n
        rest = tl.where(after, q - column[:, None] * along[None, :], q)
        image = tl.where(after, image - its_image[:, None] * along[None, :], image)
        q = tl.where(here, column[:, None], rest)
    return q * tl.sqrt(share)
