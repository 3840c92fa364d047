"""Flows written for vortex_torch: the same program by hash, or a reason."""

from __future__ import annotations

import pytest

from vortex_core import library
from vortex_core.dialects import convert
from vortex_core.dialects.vortex_torch.write import write
from vortex_core.errors import VortexError

SAID = ("block_topk", "centered_block_topk", "gqa_block_topk", "lserve_centroid", "quest")


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("budget", ["512", "max(256, length / 16)"])
def test_what_is_written_is_the_same_program(name: str, budget: str) -> None:
    flow = library.load(name).with_knobs(budget=budget).flow
    written = write(flow)
    found = convert(written.source, written.settings)
    assert found.ir_hash == flow.ir_hash
    assert [found.knobs.pages(n) for n in (100, 5000, 200_000)] == [
        flow.knobs.pages(n) for n in (100, 5000, 200_000)
    ]
    assert "vortex_core" not in written.source


@pytest.mark.parametrize(
    ("name", "why"),
    [("h2o", "page states are of one"), ("kascade", "not reused"), ("nsa", "no operator for div"),
     ("moba", "every query head"), ("streaming", "no operator for position")],
)  # fmt: skip
def test_the_rest_comes_with_its_reason(name: str, why: str) -> None:
    with pytest.raises(VortexError, match=why) as error:
        write(library.load(name).flow)
    assert error.value.code == "VF081"


def test_a_budget_it_cannot_say_is_refused() -> None:
    with pytest.raises(VortexError, match="budget"):
        write(library.load("quest").with_knobs(budget="64 + layer").flow)
