"""The shapes of a model's attention: what programs, kernels, costs and engines are sized by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """The shapes of a model that a program is compiled for.

    Attributes:
        layers: number of decoder layers.
        kv_heads: kv heads (1 for MLA).
        group: query heads per kv head.
        head_dim: channels of a key (MLA: kv_lora + rope).
        rope_dim: rotary channels, the last of `head_dim` (equal to `head_dim` for plain RoPE models).
        value_dim: channels of a value (MLA: kv_lora).
        rotary: radians that each rotary pair turns a token, channels `i` and `i + len(rotary)` of the rotated ones
            being a pair; empty where they are not known. Fewer than `rope_dim / 2` where heads rotate in part.
    """

    layers: int
    kv_heads: int
    group: int
    head_dim: int
    rope_dim: int
    value_dim: int
    rotary: tuple[float, ...] = ()

    @property
    def frequencies(self) -> list[float]:
        """Radians that each channel of a key turns a token; 0 for those that do not. Needs `rotary`."""
        turned = [*self.rotary, *self.rotary]
        still = [0.0] * (self.head_dim - len(turned))
        return still + turned if self.is_mla else turned + still

    @property
    def is_mla(self) -> bool:
        """Whether K is a latent that also holds V."""
        return self.rope_dim < self.head_dim and self.value_dim < self.head_dim

    @property
    def q_heads(self) -> int:
        """Query heads of the model."""
        return self.kv_heads * self.group

    def symbols(self, page_size: int) -> dict[str, int]:
        """Values of the extent symbols that do not depend on the sequence (all of `ir.types.SYMBOLS` but `P`)."""
        return {
            "G": self.group,
            "D": self.head_dim,
            "N": self.head_dim - self.rope_dim,
            "R": self.rope_dim,
            "S": page_size,
        }
