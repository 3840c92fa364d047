from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from evaluators.prompt_store import PromptStore
from vortex_core.engine import Engine

IDS = [(7 * i * i + 3) % 256 for i in range(300)]


@pytest.fixture
def store(tmp_path: Path) -> PromptStore:
    return PromptStore(tmp_path / "prefill", "w", 1 << 30)


def _forget_everything(engine: Engine) -> None:
    """Evict idle blocks, so that nothing is shared by content."""
    blocks = engine.cache.blocks
    engine.cache.blocks.release(blocks.allocate(blocks.available))


def test_a_stored_prompt_decodes_as_the_computed_one(engine: Engine, store: PromptStore) -> None:
    engine.load_flow(None)
    computed = store.prefill(engine, IDS)
    expected = engine.decode([computed], max_new_tokens=6)
    engine.release(computed)
    _forget_everything(engine)
    engine.cache.pool.k.fill_(float("nan"))
    engine.cache.pool.v.fill_(0)
    stored = store.prefill(engine, IDS)
    assert stored.prefill_seconds == 0
    engine.cache.pool.k.nan_to_num_(0)
    found = engine.decode([stored], max_new_tokens=6)
    assert found.tokens == expected.tokens
    assert found.logprobs[0] == pytest.approx(expected.logprobs[0], abs=1e-4)
    engine.release(stored)
    engine.check_integrity()


def test_a_pinned_prompt_is_not_read_again(engine: Engine, store: PromptStore) -> None:
    first = store.prefill(engine, IDS[:200])
    for path in store.folder.iterdir():
        path.unlink()
    assert store.prefill(engine, IDS[:200]) is first
    engine.release(first)
    engine.release(first)


def test_damaged_files_are_computed_again(
    engine: Engine, store: PromptStore, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = store.prefill(engine, IDS[:150])
    engine.release(prompt)
    (path,) = store.folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    _forget_everything(engine)
    with caplog.at_level(logging.WARNING):
        prompt = store.prefill(engine, IDS[:150])
    assert "computing it again" in caplog.text
    assert prompt.prefill_seconds > 0
    engine.release(prompt)
    assert path.stat().st_size > 100


def test_other_weights_are_other_files(engine: Engine, store: PromptStore) -> None:
    other = PromptStore(store.folder, "other weights", 1 << 30)
    for s in (store, other):
        engine.release(s.prefill(engine, IDS[:140]))
    assert len(list(store.folder.glob("*.safetensors"))) == 2


def test_the_oldest_go_when_space_is_short(engine: Engine, store: PromptStore) -> None:
    engine.release(store.prefill(engine, IDS[:256]))
    (path,) = store.folder.glob("*.safetensors")
    small = PromptStore(store.folder, "w", 2 * path.stat().st_size + 1000)
    for start in range(1, 5):
        engine.release(small.prefill(engine, IDS[start : start + 256]))
    kept = list(store.folder.glob("*"))
    assert len(kept) == 2
    assert path not in kept


def test_a_folder_that_cannot_be_written_costs_no_run(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = PromptStore(tmp_path / "file", "w", 1 << 30)
    with caplog.at_level(logging.WARNING):
        prompt = store.prefill(engine, IDS[:160])
        store.write_json("x", {})
    assert prompt.length == 160
    engine.release(prompt)
    assert "cannot keep" in caplog.text
    assert store.read_json("x") is None


def test_documents_round_trip(store: PromptStore) -> None:
    assert store.read_json("dense") is None
    store.write_json("dense", {"a": [1.5]})
    assert store.read_json("dense") == {"a": [1.5]}
    assert PromptStore(store.folder, "other", 1).read_json("dense") is None


def test_a_set_larger_than_the_limit_keeps_a_part_of_itself(engine: Engine, store: PromptStore) -> None:
    engine.release(store.prefill(engine, IDS[:256]))
    (path,) = store.folder.glob("*.safetensors")
    size = path.stat().st_size
    sets = [[(7 * i + start) % 251 for i in range(256)] for start in range(5)]
    small = PromptStore(store.folder, "w", 3 * size + 1000)
    for ids in sets:
        engine.release(small.prefill(engine, ids))
    kept = set(store.folder.glob("*"))
    again = PromptStore(store.folder, "w", 3 * size + 1000)  # the next process reads what this one kept
    for ids in sets:
        engine.release(again.prefill(engine, ids))
    assert set(store.folder.glob("*")) == kept
    assert len(kept) == 3


def test_half_a_prompt_already_shared_is_completed(engine: Engine, store: PromptStore) -> None:
    engine.load_flow(None)
    whole = store.prefill(engine, IDS)
    expected = engine.decode([whole], max_new_tokens=4).tokens
    engine.release(whole)
    _forget_everything(engine)
    part = engine.prefill(IDS[:140])  # shares its first block of 128
    whole = store.prefill(engine, IDS)
    assert whole.blocks[0] == part.blocks[0]
    assert engine.decode([whole], max_new_tokens=4).tokens == expected
    for prompt in (part, whole):
        engine.release(prompt)
    assert torch.isfinite(engine.cache.pool.v).all()
