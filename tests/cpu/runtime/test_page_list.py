"""What a kv head reads of the lists of its query heads."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vortex_core.page_list import PageList

LISTS = st.lists(st.sets(st.integers(0, 9), max_size=6), min_size=6, max_size=6)


@given(LISTS, st.integers(1, 4), st.integers(0, 9))
def test_what_query_heads_share_is_read_once(pages: list[set[int]], missing: int, padding: int) -> None:
    """Two kv heads of three query heads; padding may be the id of a page that is listed, or that none lists."""
    ids = torch.full((1, 6, 7), padding, dtype=torch.int32)
    lengths = torch.zeros(1, 6, dtype=torch.int32)
    for row, listed in enumerate(pages):
        ids[0, row, : len(listed)] = torch.tensor(sorted(listed), dtype=torch.int32)
        lengths[0, row] = max(0, 8 * len(listed) - missing)
    found = PageList(ids, lengths, 8)
    assert found.read_by(2).tolist() == [[len(set.union(*pages[:3])), len(set.union(*pages[3:]))]]
    assert found.read_by(6).tolist() == [[len(p) for p in pages]]
