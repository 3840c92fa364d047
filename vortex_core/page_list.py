"""Page lists: the physical pages that each row of a decode step attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PageList:
    """What the rows of one decode step attend to: backends select one, attention reads it.

    A row is a sequence (`heads` 1), one of its kv heads, or one of its query heads, as the selection is shared.

    Attributes:
        page_ids: int32 `[batch, heads, columns]`, physical pages in logical order, so the sequence's last page, the
            only one that may be partial, is last; entries past a row's count are padding (any valid page). The
            head stride is 0 where heads share one list.
        lengths: int32 `[batch, heads]`, tokens along the list (all pages full but the last); 0 for an idle row.
        page_size: tokens per page.
        left_out: of a flow with a residual, fp32 `[batch, q_head, page]`: natural log weights of the complete logical
            pages; those of listed pages have no meaning.
    """

    page_ids: Tensor
    lengths: Tensor
    page_size: int
    left_out: Tensor | None = None

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.page_ids.shape[0]

    @property
    def heads(self) -> int:
        """Lists of a sequence."""
        return self.page_ids.shape[1]

    @property
    def columns(self) -> int:
        """The most pages of a list."""
        return self.page_ids.shape[2]

    @property
    def counts(self) -> Tensor:
        """int32 `[batch, heads]`, pages listed."""
        return (self.lengths + (self.page_size - 1)) // self.page_size

    def read_by(self, kv_heads: int) -> Tensor:
        """Integers `[batch, rows]`, pages read: of query heads that share a kv head, the union of their lists."""
        if self.heads <= kv_heads:
            return self.counts
        place = self.counts.new_ones(self.columns).cumsum(0) - 1  # made on the device: a step does not wait
        ids = self.page_ids.masked_fill(place >= self.counts.unsqueeze(-1), -1)
        ids = ids.unflatten(1, (kv_heads, -1)).flatten(2).sort(-1).values
        return (ids[..., 1:] != ids[..., :-1]).sum(-1) + (ids[..., 0] >= 0)

    def shared_by(self, heads: int) -> PageList:
        """The same lists for `heads` rows a sequence: of one list, each row's; no copy."""
        batch, _, columns = self.page_ids.shape
        return PageList(
            self.page_ids.expand(batch, heads, columns), self.lengths.expand(batch, heads), self.page_size
        )

    def rows(self, index: Tensor | slice) -> PageList:
        """The lists of some sequences."""
        return PageList(self.page_ids[index], self.lengths[index], self.page_size)


def one_list_a_sequence(page_ids: Tensor, lengths: Tensor, page_size: int) -> PageList:
    """Lists that all heads of a sequence share: page_ids `[batch, columns]`, lengths `[batch]`."""
    return PageList(page_ids.unsqueeze(1), lengths.unsqueeze(1), page_size)


def one_list_a_head(page_ids: Tensor, lengths: Tensor, heads: int, page_size: int) -> PageList:
    """Lists of `heads` rows a sequence: page_ids `[batch * heads, columns]`, lengths `[batch * heads]`."""
    shape = (len(page_ids) // heads, heads)
    return PageList(page_ids.unflatten(0, shape), lengths.unflatten(0, shape), page_size)
