"""Forty-four flows of a language model that had seen the agents' prompt and nothing else of the project.

Written in one sitting before any was tried (`benchmarks/results/first_try.md` has the prompt's date and figures);
37 were legal then. What is refused is counted, and what one repair from the error alone made of it stands beside.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.null.flow.test_first_try import wrong

FOLDER = Path(__file__).parent / "second_try"
FLOWS = sorted(FOLDER.glob("p*.py"))
REFUSED = {
    "p19_learned_proj": "VF065",  # learned values that come with no flow
    "p26_hadamard_bits": "VF026",  # every channel with every other, for each token
    "p40_alternating": "VF016",  # a range of one less than the page
}


def test_nine_of_ten_are_legal_at_the_first_try_and_all_after_one_repair() -> None:
    assert len(FLOWS) >= 40
    assert len(REFUSED) * 10 <= len(FLOWS)
    assert {path.stem for path in (FOLDER / "repaired").glob("*.py")} == set(REFUSED)


@pytest.mark.parametrize("path", FLOWS, ids=lambda p: p.stem)
def test_second_try(path: Path) -> None:
    error = wrong(path.read_text())
    assert (error.code if error else None) == REFUSED.get(path.stem), error


@pytest.mark.parametrize("name", REFUSED)
def test_one_repair_is_enough(name: str) -> None:
    assert wrong((FOLDER / "repaired" / f"{name}.py").read_text()) is None
