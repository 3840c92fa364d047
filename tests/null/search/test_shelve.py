"""The shelf of what was found: only what held goes there."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from search.campaign.archive import Archive
from search.campaign.finals import Finals
from search.commands.export import choose
from search.commands.shelve import held, shelve
from search.log import events as ev
from search.log.run import Run
from search.log.state import CampaignState
from tests.null.search.harness import STARTED, Harness
from tests.null.search.test_screened import screened
from vortex_core.errors import VortexError
from vortex_core.sandbox.load import trace_file
from vortex_core.specs import load_model

BEAT, LEVEL, LOST = "better", "inconclusive", "not better"


def peer(purpose: str, finding: str) -> dict[str, Any]:
    return {"purpose": purpose, "finding": finding, "words": f"{purpose}: {finding}"}


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([], "no library program"),
        ([("holdout", BEAT)], "no library program of its cost was asked beside it on a model"),
        ([("holdout", BEAT), ("second", LEVEL)], "not told apart"),
        ([("holdout", BEAT), ("holdout", LOST), ("second", BEAT)], "holdout: not better"),
        ([("holdout", BEAT), ("holdout", LEVEL), ("second", BEAT)], None),
    ],
)
def test_what_holds(found: list[tuple[str, str]], why: str | None):
    summary = {"peers": [peer(*f) for f in found]}
    if why is None:
        assert held(summary) == [p["words"] for p in summary["peers"]]
    else:
        with pytest.raises(VortexError, match=why) as caught:
            held(summary)
        assert caught.value.code == "VS053"


def test_the_shelf_holds_flow_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = partial(Finals, library_names=lambda: ["quest", "block_topk"])
    monkeypatch.setattr("search.campaign.campaign.Finals", names)
    harness = Harness(tmp_path, screened(finals={"peers": 2}))
    harness.model = load_model("smollm2-135m").model_dump(mode="json")
    state = harness.go()
    run = Run("sim", tmp_path, harness.store, harness.files)
    entry = choose(Archive(state, harness.config.objective), "sim", winner=True)
    shelf = tmp_path / "shelf"
    with pytest.raises(VortexError, match="VS053"):  # no second model was asked
        shelve(run, state, harness.config, entry, "a_find", shelf)
    assert not shelf.exists()
    assert state.finished is not None
    words = [peer("holdout", BEAT), peer("second", BEAT)]
    records = [r for r in harness.store.read() if not isinstance(r.event, ev.CampaignFinished)]
    state = CampaignState.fold(records)
    state.started = replace(state.started or STARTED, settings={"model": "smollm2-135m", "seed": 0})
    state.finished = ev.CampaignFinished("x", entry.candidate.key, {"peers": words})
    with pytest.raises(VortexError, match="VS010"):
        shelve(run, state, harness.config, entry, "../a", shelf)
    written = shelve(run, state, harness.config, entry, "a_find", shelf)
    assert sorted(p.name for p in written) == ["a_find.json", "a_find.py"]
    traced, card = trace_file(shelf / "a_find.py"), json.loads((shelf / "a_find.json").read_text())
    assert (traced.ir_hash, traced.key, traced.name) == (card["ir_hash"], card["key"], "a_find")
    assert card["held"] == ["holdout: better", "second: better"]
    assert card["tries"]["screened"] == state.screened_programs >= card["tries"]["answered"]
    with pytest.raises(VortexError, match="VS054"):
        shelve(run, state, harness.config, entry, "a_find", shelf)
