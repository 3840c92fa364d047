"""Decode attention planned once for a model and a largest batch: shapes, configuration and scratch in one value."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vortex_core.geometry import Geometry
from vortex_core.kernels.decode.config import LISTED, DecodeConfig, decode_config
from vortex_core.kernels.decode.mla import mla_config, mla_rows
from vortex_core.kernels.decode.paged import LOG2_E, paged_decode, paged_decode_workspace
from vortex_core.kernels.decode.split import EVEN_TOKENS, SplitWorkspace
from vortex_core.page_list import PageList


@dataclass(frozen=True)
class PageMass:
    """Outputs from which each query head's attention mass on each listed page follows.

    Attributes:
        lse: fp32 `[batch, q_head]`, natural log-sum-exp of a head's scores.
        page_lse: fp32 `[row, query head of it, column]`, that of each page, in base 2.
        page_mass: fp32 `[row, column]`, summed over the query heads of a row; None: not wanted.
    """

    lse: Tensor
    page_lse: Tensor
    page_mass: Tensor | None

    def by_head(self) -> Tensor:
        """The softmax probability of each listed page, `[batch, q_head, column]`."""
        by_page = self.page_lse.view(*self.lse.shape, -1)
        return torch.exp2(by_page - self.lse[..., None] * LOG2_E)

    def by_head_in_place(self) -> Tensor:
        """The same in the memory of `page_lse`, for lists as wide as a page table; past a list's end it is anything."""
        by_page = self.page_lse.view(*self.lse.shape, -1)
        return by_page.sub_(self.lse[..., None] * LOG2_E).exp2_()


@dataclass(frozen=True)
class AttentionPlan:
    """Attention of decode steps of up to some number of sequences, one launch (and a merge) at a time, all layers.

    Attributes:
        geometry: the model.
        page_size: tokens per page of the lists and the cache.
        kv_dtype: storage of K and V.
        rows: lists a sequence, as the kernel reads them. A list that more heads share is read by each; MLA cuts its
            query heads into several rows where their accumulator would not fit in registers.
        even: whether lists are a selection's, of about one length each; otherwise they are all pages of a sequence.
        workspace: scratch of the largest batch.
        even_tokens: the longest lists of several sequences that are cut into equal pieces.
    """

    geometry: Geometry
    page_size: int
    kv_dtype: torch.dtype
    rows: int
    even: bool
    workspace: SplitWorkspace
    even_tokens: int = EVEN_TOKENS

    @classmethod
    def allocate(
        cls,
        geometry: Geometry,
        page_size: int,
        kv_dtype: torch.dtype,
        batch: int,
        device: torch.device,
        *,
        per_query_head: bool = False,
        even: bool = False,
    ) -> AttentionPlan:
        """A plan with scratch for steps of up to `batch` sequences.

        Args:
            per_query_head: whether each query head has a list of its own.
            even: see the attribute.
        """
        g = geometry
        rows = g.q_heads if per_query_head else mla_rows(g.q_heads) if g.is_mla else g.kv_heads
        # Launches of lists that are cut alike never have more workers than those that are not.
        configs = [_config(g, page_size, kv_dtype, n, rows, even=False) for n in (batch, 1)]
        widest = max(configs, key=lambda config: config.workers_per_sm)
        space = paged_decode_workspace(batch, rows, g.q_heads // rows, g.value_dim, device, widest)
        return cls(geometry, page_size, kv_dtype, rows, even, space)

    def sharing(self, page_size: int, *, even: bool) -> AttentionPlan:
        """A plan for other lists of as many rows, in the same scratch: launches of both never overlap."""
        return replace(self, page_size=page_size, even=even)

    def holding(self, longest_whole: int) -> AttentionPlan:
        """A plan for the same lists, some of which are all pages of sequences of up to so many tokens.

        They are cut as evenly as the others: a plan of tiles would cost the steps in which no sequence is so short.
        """
        return replace(self, even_tokens=max(EVEN_TOKENS, longest_whole))

    def config(self, batch: int, tokens: int = LISTED) -> DecodeConfig:
        """How a launch of `batch` sequences is cut where nothing better was measured for its lists.

        Args:
            tokens: of the longest list that there is room for.
        """
        g, size = self.geometry, self.page_size
        return _config(g, size, self.kv_dtype, batch, self.rows, even=self.even, tokens=tokens)

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pages: PageList,
        scale: float,
        *,
        config: DecodeConfig | None = None,
        out: Tensor | None = None,
        mass: PageMass | None = None,
        lse: Tensor | None = None,
    ) -> Tensor:
        """Attention of one query token a sequence over its listed pages.

        Args:
            q: `[batch, q_head, dim]`, rotated (MLA: absorbed).
            k, v: `[page, token, kv_head, dim]`, any strides with dim contiguous (MLA: `v` is the first channels of
                `k`).
            pages: the lists, one a sequence or one of each of `rows`.
            scale: what scores are multiplied by.
            config: how the launch is cut.
            out: where the result goes; by default it is allocated, in a captured graph from the graph's own pool.
            lse: filled with the natural log-sum-exp of each head's scores, fp32 `[batch, q_head]`; with `mass` it is
                there.
            mass: filled where page masses are asked for; sums over query heads cost one more launch.

        Returns:
            `[batch, q_head, value_dim]`.
        """
        g = self.geometry
        config = config or self.config(len(q), pages.columns * pages.page_size)
        page_lse = page_mass = None
        if mass is not None:
            lse, page_lse, page_mass = mass.lse, mass.page_lse, mass.page_mass
        return paged_decode(
            q, k, v, pages.shared_by(self.rows),
            workspace=self.workspace, config=config, sm_scale=scale,
            kv_repeat=self.rows // g.kv_heads, value_in_key=g.is_mla, even_tokens=self.even_tokens,
            out=out, lse=lse, page_lse=page_lse, page_mass=page_mass,
        )  # fmt: skip

    def page_mass(self, batch: int, columns: int, device: torch.device, *, summed: bool = True) -> PageMass:
        """Outputs for lists of up to `columns` pages; `summed`: with the sums over query heads."""
        rows, q_heads = batch * self.rows, self.geometry.q_heads
        return PageMass(
            torch.empty(batch, q_heads, device=device),
            torch.empty(rows, q_heads // self.rows, columns, device=device),
            torch.empty(rows, columns, device=device) if summed else None,
        )


def _config(
    g: Geometry,
    page_size: int,
    kv_dtype: torch.dtype,
    batch: int,
    rows: int,
    *,
    even: bool,
    tokens: int = LISTED,
) -> DecodeConfig:
    if g.is_mla:
        return mla_config(g.group, kv_dtype, page_size)
    group = g.q_heads // rows
    alone = batch == 1
    return decode_config(
        g.head_dim, group, kv_dtype, page_size, batch * rows, even=even, alone=alone, tokens=tokens
    )
