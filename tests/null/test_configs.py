"""Every configuration file validates, and every key it may hold is read by some code."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from evaluators.stages.registry import STAGES
from vortex_core.configs import ConfigFolder, Layer
from vortex_core.errors import VortexError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
PACKAGES = ("vortex_core", "agents", "evaluators", "search")

# The pydantic model of each folder's files.
SCHEMAS = {
    "models": "vortex_core.specs:ModelSpec",
    "hardware": "vortex_core.specs:GpuSpec",
    "evaluation": "evaluators.plan:EvaluationPlan",
    "campaigns": "search.config:CampaignConfig",
    "proposers": "search.config:ProposerConfig",
}

FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.y*ml"))


def _schema(folder: str) -> type[BaseModel]:
    module, name = SCHEMAS[folder].split(":")
    schema = getattr(importlib.import_module(module), name)
    assert issubclass(schema, BaseModel)
    return schema


def _models_within(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):  # list[X], X | None, Annotated[X, ...]
        yield from _models_within(argument)


def keys_of(schema: type[BaseModel], seen: set[type[BaseModel]] | None = None) -> Iterator[tuple[str, str]]:
    """`(class name, key)` of a configuration model and of all models nested in it."""
    seen = set() if seen is None else seen
    if schema in seen:
        return
    seen.add(schema)
    for key, field in schema.model_fields.items():
        yield schema.__name__, key
        for nested in _models_within(field.annotation):
            yield from keys_of(nested, seen)


def attributes_read(source: str) -> set[str]:
    """Names that a text reads as attributes (`x.name`)."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.fixture(scope="module")
def read_somewhere() -> set[str]:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return set().union(*(attributes_read(file.read_text(encoding="utf-8")) for file in files))


def test_there_are_configurations():
    assert {"models", "hardware"} <= {path.parts[0] for path in FILES}


def _read(path: Path, *over: Layer) -> BaseModel:
    """A file with all that it extends."""
    folder = ConfigFolder(path.parts[0], "configuration", unknown="VX001", invalid="VX002")
    return folder.load(path.stem, _schema(path.parts[0]), over=over)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_it_validates(path: Path):
    assert path.suffix == ".yaml", "one suffix for all"
    folder = path.parts[0]
    assert folder in SCHEMAS, f"no schema is known for configs/{folder}"
    spec = _read(path)
    if "name" in type(spec).model_fields:
        assert spec.name == path.stem  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_misspelt_key_is_an_error(path: Path):
    with pytest.raises(VortexError, match="no_such_key"):
        _read(path, Layer("test", {"no_such_key": 1}))


@pytest.mark.parametrize("folder", sorted({path.parts[0] for path in FILES}))
def test_every_key_is_read(folder: str, read_somewhere: set[str]):
    ignored = [f"{owner}.{key}" for owner, key in keys_of(_schema(folder)) if key not in read_somewhere]
    assert not ignored, "keys that nothing reads"


def test_every_key_of_a_stages_section_is_read(read_somewhere: set[str]):
    sections = [STAGES.get(name).settings for name in STAGES.names()]
    keys = [found for schema in sections if schema is not None for found in keys_of(schema)]
    assert ("RecallSettings", "min_recall") in keys
    assert not [f"{owner}.{key}" for owner, key in keys if key not in read_somewhere]


def test_the_scans_see_nested_models_and_only_reads():
    class Inner(BaseModel):
        deep: int

    class Outer(BaseModel):
        many: tuple[Inner, ...] | None

    assert list(keys_of(Outer)) == [("Outer", "many"), ("Inner", "deep")]
    assert attributes_read("x.written = y.read") == {"read"}
