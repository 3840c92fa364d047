"""What the operators compute, on torch tensors with any number of leading batch axes.

Each definition is `math(t, args, axes, attrs)`: `t` is the torch module, so that importing the IR costs no
torch; `args` are aligned to a common rank (missing dimensions have size 1); `axes` maps the input's dimension
names to negative axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Attrs = Mapping[str, Any]
Axes = Mapping[str, int]
Math = Callable[[Any, Sequence[Any], Axes, Attrs], Any]


def sign(t: Any, x: Any) -> Any:
    """-1 below 0, else 1 (NaN, too)."""
    return 1 - 2 * (x < 0).to(x.dtype)


def divide(t: Any, x: Any, y: Any) -> Any:
    """x / y. Adding 0 turns -0 into 0, so that 1 / -(a - b) does not hang on how the difference was
    rounded."""
    return x / (y + 0.0)


def _axes(axes: Axes, attrs: Attrs) -> tuple[int, ...]:
    return tuple(axes[d] for d in attrs["dims"])


def total(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    """Sum over dims."""
    return args[0].sum(_axes(axes, attrs))


def mean(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    """Mean over dims."""
    return args[0].mean(_axes(axes, attrs))


def largest_of(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    """Maximum over dims; NaN wins."""
    return t.amax(args[0], _axes(axes, attrs))


def smallest_of(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    """Minimum over dims; NaN wins."""
    return t.amin(args[0], _axes(axes, attrs))


def conv(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    """Centred convolution, zero outside."""
    x = args[0].movedim(axes[attrs["dim"]], -1)
    weights = attrs["weights"]
    half = len(weights) // 2
    padded = t.nn.functional.pad(x, (half, half))
    n = x.shape[-1]
    found = sum(w * padded[..., i : i + n] for i, w in enumerate(weights))
    return found.movedim(-1, axes[attrs["dim"]])


def pool(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    """Centred maximum; NaN wins."""
    x = args[0].movedim(axes[attrs["dim"]], -1)
    half = attrs["size"] // 2
    padded = t.nn.functional.pad(x, (half, half), value=float("-inf"))
    n = x.shape[-1]
    best = padded[..., :n]
    for i in range(1, attrs["size"]):
        best = t.maximum(best, padded[..., i : i + n])
    return best.movedim(-1, axes[attrs["dim"]])


def largest(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    """Mask of the k largest: ties to the lower index, NaN last."""
    x = args[0].movedim(axes[attrs["dim"]], -1)
    x = t.where(t.isnan(x), -t.inf, x)
    order = t.sort(x, dim=-1, descending=True, stable=True).indices
    mask = t.zeros_like(x, dtype=t.bool).scatter(-1, order[..., : attrs["k"]], True)
    return mask.movedim(-1, axes[attrs["dim"]])


STEPS = 4  # of orthogonal iteration: the energy of the best directions within a hundredth on keys
NEGLIGIBLE = (
    1e-6  # share of the rows' energy below which a direction is none: what fp32 sees of a Gram matrix
)


def start(rows: int, rank: int) -> list[list[float]]:
    """Where orthogonal iteration starts, `[rows, rank]`: numbers from -1 to 1, of full rank, unrelated to any input."""

    def cube(x: int) -> int:
        return x * x % 1019 * x % 1019

    def number(i: int, j: int) -> float:
        mixed = cube(((i + 1) * 421 + 248) % 1019)
        mixed = cube((mixed + (j + 1) * 617 + 37) % 1019)
        return (cube((mixed + 101) % 1019) - 509) / 509

    return [[number(i, j) for j in range(rank)] for i in range(rows)]


def principal(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    """Leading directions of the rows `over` along `dim`, `[..., rank, dim]`.

    With G the rows' Gram matrix by their energy, Q starts at fixed numbers and becomes Gram-Schmidt(G Q) a fixed
    number of times: a smooth function of the rows where eigenvalues meet, unlike eigenvectors. Then Q is made
    orthonormal under G, so that the directions Q'x are. A column whose share of the energy is negligible becomes 0.
    """
    x = args[0].movedim((axes[attrs["over"]], axes[attrs["dim"]]), (-2, -1))
    energy = (x * x).sum((-2, -1))[..., None, None]
    x = x / t.where(energy > 0, energy, 1.0).sqrt()
    gram = x @ x.transpose(-1, -2)
    q = t.tensor(start(x.shape[-2], attrs["rank"]), dtype=x.dtype, device=x.device).expand(
        *x.shape[:-1], attrs["rank"]
    )
    for _ in range(STEPS):
        q = gram @ q
        q = _orthonormal(t, q, q, NEGLIGIBLE**2)
    return _orthonormal(t, q, gram @ q, NEGLIGIBLE).transpose(-1, -2) @ x


def _orthonormal(t: Any, q: Any, image: Any, least: float) -> Any:
    """Modified Gram-Schmidt of the columns of `q` under the inner product whose image of `q` is given; columns of a
    squared norm of at most `least` become 0."""
    done = []
    for _ in range(q.shape[-1]):
        square = (q[..., :1] * image[..., :1]).sum(-2, keepdim=True)
        kept = square > least
        scale = t.where(kept, 1 / t.where(kept, square, 1.0).sqrt(), 0.0)
        column, its_image = q[..., :1] * scale, image[..., :1] * scale
        done.append(column)
        along = (column * image[..., 1:]).sum(-2, keepdim=True)
        q, image = q[..., 1:] - column * along, image[..., 1:] - its_image * along
    return t.cat(done, -1)


def torch_dtype(t: Any, name: str) -> Any:
    """Torch dtype of a storage dtype name."""
    return {
        "fp32": t.float32,
        "bf16": t.bfloat16,
        "fp16": t.float16,
        "fp8_e4m3": t.float8_e4m3fn,
        "fp8_e5m2": t.float8_e5m2,
    }[name]


def cast(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    """Rounded to a storage dtype."""
    return round_to(t, args[0], attrs["dtype"])


def round_to(t: Any, x: Any, dtype: str) -> Any:
    """`x` rounded to a storage dtype and back; values beyond its range saturate. fp32, in which backends
    compute, is the identity."""
    if dtype == "fp32":
        return x
    kind = torch_dtype(t, dtype)
    top = t.finfo(kind).max
    return x.clamp(-top, top).to(kind).to(x.dtype)


def narrow(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    """A range of a dimension; the caller resolves its ends to the attributes `start_` and `stop_`."""
    return args[0].narrow(axes[attrs["dim"]], attrs["start_"], attrs["stop_"] - attrs["start_"])
