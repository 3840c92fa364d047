"""An identity holds what a result depends on and nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluators import identity
from evaluators.identity import engine_facts, engine_identity, items_digest, model_digest
from evaluators.plan import EvaluationPlan
from evaluators.tasks.items import build_items
from tests.cpu.evaluators.conftest import PLAN, ByteTokenizer, tiny_model
from vortex_core.engine import Engine


def model_folder(folder: Path, weights: str = "model.safetensors") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("words")
    (folder / weights).write_bytes(b"1234")
    return folder


@pytest.mark.parametrize("weights", ["model.safetensors", "model-00002-of-00004.safetensors"])
def test_weights_count_by_content(tmp_path: Path, weights: str) -> None:
    folder, known = model_folder(tmp_path / "m", weights), tmp_path / "digests.json"
    before = model_digest(folder, known)
    assert model_digest(folder, known) == before
    path = folder / weights
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"4321")  # the same size
    os.utime(path, ns=times)  # and, for all that a program can set, the same age
    assert model_digest(folder, known) != before


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt"]
)
def test_tokenizer_template_and_dimensions_count(tmp_path: Path, file: str) -> None:
    folder = model_folder(tmp_path / "m")
    before = model_digest(folder)
    (folder / file).write_text("other")
    assert model_digest(folder) != before


def test_a_folders_name_does_not(tmp_path: Path) -> None:
    folder, known = model_folder(tmp_path / "m"), tmp_path / "digests.json"
    before = model_digest(folder, known)
    assert model_digest(folder.rename(tmp_path / "n"), known) == before


def test_weights_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, known = model_folder(tmp_path / "m"), tmp_path / "digests.json"
    before = model_digest(folder, known)

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(identity, "_content", refuse)
    assert model_digest(folder, known) == before


def test_engines_differ_by_dtype_device_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model(), ByteTokenizer(), max_tokens=256)
    half = Engine(tiny_model().to(torch.bfloat16), ByteTokenizer(), max_tokens=256)
    assert engine_identity(engine, "w") == engine_identity(engine, "w")
    assert len({engine_identity(e, w) for e in (engine, half) for w in ("w", "x")}) == 4
    before = engine_identity(engine, "w")
    for name, value in (("device_kind", lambda device: "NVIDIA H200"), ("version", lambda package: "99")):
        with monkeypatch.context() as patch:
            patch.setattr(identity, name, value)
            assert engine_identity(engine, "w") != before
    monkeypatch.setattr(identity, "ENGINE_REVISION", 1000)
    assert engine_identity(engine, "w") != before
    assert "name" not in engine_facts(engine)


def test_items_count_by_what_is_asked() -> None:
    tokenizer = ByteTokenizer()

    def digest(seed: int = 0, **changes: object) -> str:
        plan = EvaluationPlan.model_validate(PLAN | changes)
        return items_digest(build_items(plan, tokenizer, seed))

    before = digest()
    assert digest(name="renamed", deadlines={"accuracy": 3}) == before
    assert digest(seed=1) != before
    assert digest(perplexity=PLAN["perplexity"] | {"continuation": 4}) != before  # type: ignore[operator]
    items = build_items(EvaluationPlan.model_validate(PLAN), tokenizer, 0)
    for change in ({"stops": ("#",)}, {"metric": "exact"}, {"answers": ("0",)}, {"max_new_tokens": 1}):
        changed = {key: (replace(found[0], **change), *found[1:]) for key, found in items.needles.items()}
        assert items_digest(replace(items, needles=changed)) != before
