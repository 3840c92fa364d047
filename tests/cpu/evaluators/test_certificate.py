"""Certificates of items of one's own, over the model that ships."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from evaluators.certify import rate_bound
from search.commands.certify import certify_items

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
    return found.to_json()


def test_what_loses_nothing_is_promised_what_the_items_allow(mine: Path) -> None:
    found = certified("dense", mine)
    assert found["lost"] == found["gained"] == 0 and found["dense_right"] == ITEMS
    assert found["bound"] == rate_bound(0, ITEMS)
    assert "probability 0.9" in str(found["words"])
