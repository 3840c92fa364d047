"""The study of fresh authors: their prompt, and the count of what they wrote."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.first_try import prompt, score

from .conftest import ANSWER, FLOW

WRONG = FLOW.replace('.sum("dim")', '.sum("dime")')
STRANGE = FLOW.replace("ops.topk(", "ops.best(")


def test_the_prompt_is_that_of_a_first_ask() -> None:
    text = prompt(3, "default")
    assert text.startswith("<!-- system -->\n\nYou design sparse attention")
    user = text[text.index("<!-- user -->") :]
    for words in ("16 items", "at 1024 tokens", "screen_own_output", "Ask 1 of this campaign"):
        assert words in user
    assert prompt(4, "default") != text, "another direction for another author"


def test_first_tries_are_counted_by_code_before_and_after_a_repair(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(FLOW)
    (tmp_path / "b.md").write_text(ANSWER)
    (tmp_path / "c.py").write_text(WRONG)
    (tmp_path / "d.py").write_text(STRANGE)
    (tmp_path / "e.md").write_text("IDEA: none.\n\nI cannot.")
    before = score(tmp_path, write_errors=True)
    assert (before.programs, before.legal) == (5, 2)
    assert before.codes.total() == 3
    assert before.codes["VF003"] == 1, "an answer without a program is a refused one"
    told = json.loads((tmp_path / "d.error.json").read_text())
    assert told["code"] in before.codes
    (tmp_path / "d.repair.md").write_text(ANSWER)
    (tmp_path / "e.repair.md").write_text("IDEA: still none.")
    after = score(tmp_path)
    assert (after.programs, after.legal) == (5, 2), "repairs are no first tries"
    assert (before.mended, before.repaired) == (1, 1), "a name that is nearly right is mended by its error"
    assert (after.mended, after.repaired) == (1, 2)
    assert "repair refused: VF003" in str(after)
    assert f"{after.legal + after.repaired} of 5 after one repair" in str(after)


def test_a_repair_by_edits_is_made_in_the_first_try(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(STRANGE)
    (tmp_path / "a.repair.md").write_text(
        'IDEA: the right name.\n<<<<<<< SEARCH\n        return ops.best((q * cache["mean"]).sum("dim").max("head"))\n'
        '=======\n        return ops.topk((q * cache["mean"]).sum("dim").max("head"))\n>>>>>>> REPLACE\n'
    )
    assert score(tmp_path).repaired == 1
