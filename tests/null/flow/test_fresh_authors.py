"""Flows of language models that had seen the agents' prompt and nothing else of the project, each author a fresh one.

Written in one sitting before any was tried (`benchmarks/results/first_try.md` has the prompts' dates and figures): 37
of the second author's 44 were legal then, 43 of the third's. What is refused is counted, and what one repair from the
error alone made of it stands beside.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.null.flow.test_first_try import wrong

HERE = Path(__file__).parent
REFUSED = {
    "second_try": {
        "p19_learned_proj": "VF065",  # learned values that come with no flow
        "p26_hadamard_bits": "VF026",  # every channel with every other, for each token
        "p40_alternating": "VF016",  # a range of one less than the page
    },
    "third_try": {"p01_slow_half_centroid": "VF026"},  # half of the channels from all, for every query head
}
FLOWS = sorted(path for author in REFUSED for path in (HERE / author).glob("p*.py"))


@pytest.mark.parametrize("author", REFUSED)
def test_nine_of_ten_are_legal_at_the_first_try_and_all_after_one_repair(author: str) -> None:
    count = len(list((HERE / author).glob("p*.py")))
    assert count >= 40
    assert len(REFUSED[author]) * 10 <= count
    assert {path.stem for path in (HERE / author / "repaired").glob("*.py")} == set(REFUSED[author])


@pytest.mark.parametrize("path", FLOWS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_first_try_of_a_fresh_author(path: Path) -> None:
    error = wrong(path.read_text())
    assert (error.code if error else None) == REFUSED[path.parent.name].get(path.stem), error


@pytest.mark.parametrize(("author", "name"), [(a, n) for a, names in REFUSED.items() for n in names])
def test_one_repair_is_enough(author: str, name: str) -> None:
    assert wrong((HERE / author / "repaired" / f"{name}.py").read_text()) is None
