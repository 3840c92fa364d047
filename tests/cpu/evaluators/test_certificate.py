"""Certificates and lm-eval's command over the model that ships, on items of one's own."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from evaluators.certify import rate_bound
from search.campaign.archive import Archive
from search.commands import checksums
from search.commands.certify import certify_items
from search.commands.export import choose, export
from search.log.run import campaign_of, open_run, read_state
from tests.synthetic_runs import write_run
from vortex_core.errors import VortexError

ITEMS = 12


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Look-ups as a user would write them: pairs hidden in noise, then a key."""
    rng = random.Random(3)
    rows = []
    for _ in range(ITEMS):
        words = [f"n{rng.randrange(60)}" for _ in range(500)]
        keys, values = rng.sample(range(160), 16), [rng.randrange(160) for _ in range(16)]
        for at, key, value in zip(sorted(rng.sample(range(0, 498, 2), 16)), keys, values, strict=True):
            words[at : at + 2] = [f"k{key}", f"v{value}"]
        rows.append({"text": " ".join([*words, f"k{keys[5]}"]), "value": f"v{values[5]}"})
    path = tmp_path_factory.mktemp("items") / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def certified(target: str, items: Path, model: str | None = "retrieval-mla") -> dict[str, object]:
    seen: list[int] = []
    found = certify_items(
        target, items, model=model, prompt="{text}", answer="{value}", metric="contains", max_new_tokens=1,
        confidence=0.9, device="cpu", on_batch=seen.append,
    )  # fmt: skip
    assert seen[-1] == ITEMS
    return found


def test_what_loses_nothing_is_promised_what_the_items_allow(mine: Path) -> None:
    found = certified("dense", mine)
    assert found["lost"] == found["gained"] == 0 and found["dense_right"] == ITEMS
    assert found["bound"] == rate_bound(0, ITEMS)
    assert "probability 0.9" in str(found["words"])


def test_what_loses_is_promised_less(mine: Path) -> None:
    found = certified("streaming", mine)
    assert isinstance(found["lost"], int) and found["lost"] > 0
    assert found["bound"] == rate_bound(found["lost"], ITEMS)


def test_a_model_is_needed_and_items_too(mine: Path, tmp_path: Path) -> None:
    with pytest.raises(VortexError) as caught:
        certified("quest", mine, None)
    assert caught.value.code == "VS010"
    with pytest.raises(VortexError) as caught:
        certified("quest", tmp_path / "none.jsonl")
    assert caught.value.code == "VS010"


def test_lm_eval_finds_the_model_and_runs_the_flow() -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    import evaluators.lm_eval_plugin  # noqa: F401  registers it

    model: Any = get_model("vortex").create_from_arg_string(
        "model=retrieval-mla,flow=quest,budget=64,max_tokens=4096", {"device": "cpu", "batch_size": 2}
    )
    assert model.engine.ir_hash == model.flow.ir_hash != "dense"
    assert model.flow.knobs.budget == "64"
    request = Instance("loglikelihood", {}, ("k1 v2 n3 n4 k5 v6 n7 k1", " v2"), 0)
    ((score, greedy),) = model.loglikelihood([request])
    assert score > -1 and greedy
    assert model.get_model_info()["knobs"]["budget"] == "64"
    with pytest.raises(VortexError) as caught:
        get_model("vortex").create_from_arg_string("model=retrieval-mla,flow=quest,bugdet=64")
    assert caught.value.code == "VF061"


def test_a_run_and_an_export_keep_theirs(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_RUNS", str(tmp_path))
    write_run(tmp_path, "one", 6)
    found = certified("one", mine)
    with open_run("one", readonly=True, root=tmp_path) as run:
        state = read_state(run)
        config = campaign_of(state)
        entry = choose(Archive(state, config.objective), "one")
        assert found["kept"] == str(tmp_path / f"one/certificates/{entry.candidate.key}.json")
        out = export(run, state, config, entry, tmp_path / "out")
    carried = json.loads((out / "certificate.json").read_text())
    assert carried["bound"] == found["bound"] and carried["model"] == "retrieval-mla"
    again = certified(str(out), mine)
    assert str(again["words"]).count(entry.candidate.name) == 1, "its name is the card's, not the folder's"
    assert again["kept"] == str(out / "certificate.json") and again["key"] == entry.candidate.key
    assert json.loads((out / "certificate.json").read_text())["certified_at"] >= carried["certified_at"]
    assert checksums.disagreements(out) == []
