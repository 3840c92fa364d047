"""The pages of docs/extending are executed: what they show works, with the files that they say and no more."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from vortex_core.specs import GpuSpec, ModelSpec

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "extending"
FENCE = re.compile(
    r'^```(\w+) title="([^"]+)"(?: before="((?:[^"\\]|\\.)+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL
)
PLUGINS = ("task", "stage", "strategy", "proposer", "backend")


@dataclass(frozen=True)
class Block:
    """One file, or part of one, that a page shows.

    Attributes:
        title: its path.
        before: where it goes into an existing file: in front of the only line that begins so.
    """

    language: str
    title: str
    before: str
    text: str


def blocks(page: str) -> list[Block]:
    found = FENCE.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))
    return [Block(kind, title, before.replace('\\"', '"'), text) for kind, title, before, text in found]


def install(page: str, folder: Path) -> list[Block]:
    """Write what a page shows as a distribution with its entry points, as pip would put it on the path."""
    shown = blocks(page)
    for block in shown:
        if block.language == "python":
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text)
    info = folder / f"my_{page}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: my-{page}\nVersion: 1.0\n")
    (project,) = [tomllib.loads(b.text) for b in shown if b.title == "pyproject.toml"]
    lines = []
    for group, points in project["project"]["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {place}" for name, place in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return shown


def run_tests(file: Path) -> int:
    """Run the tests of a module that need no fixture; returns how many ran."""
    spec = importlib.util.spec_from_file_location(f"shown_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ran = 0
    for name, found in vars(module).items():
        if name.startswith("Test") and found.__module__ == module.__name__:
            for test, _ in inspect.getmembers(found, inspect.isfunction):
                if test.startswith("test_"):
                    getattr(found(), test)()
                    ran += 1
        elif name.startswith("test_"):
            found()
            ran += 1
    return ran


@pytest.mark.parametrize("page", PLUGINS)
def test_a_plug_in_is_one_file_and_one_entry_point(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    shown = install(page, tmp_path)
    importlib.invalidate_caches()
    python = [block.title for block in shown if block.language == "python"]
    tests = [title for title in python if title.startswith("tests/")]
    assert len(python) - len(tests) == 1, "one file, beside its test"
    assert sum(run_tests(tmp_path / title) for title in tests) >= 5
    for block in shown:
        if block.language == "yaml":
            (tmp_path / block.title).write_text(block.text)
            from evaluators.plan import load_plan

            assert load_plan(str(tmp_path / block.title)).name == "lean"


def test_an_operator_is_three_files_and_a_test(tmp_path: Path) -> None:
    for package in ("vortex_core", "configs", "evaluators"):
        shutil.copytree(
            ROOT / package,
            tmp_path / package,
            ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "haystack", "held"),
        )
    edits = [block for block in blocks("operator") if block.before]
    for block in edits:
        path = tmp_path / block.title
        text = path.read_text(encoding="utf-8")
        assert text.count("\n" + block.before) == 1, f"{block.title}: {block.before!r} stands there once"
        path.write_text(text.replace("\n" + block.before, "\n" + block.text + block.before))
    assert len({block.title for block in edits}) == len(edits) == 3
    (check,) = [block for block in blocks("operator") if block.title == "check.py"]
    (tmp_path / "check.py").write_text(check.text)
    done = subprocess.run(
        [sys.executable, "check.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_model_and_a_gpu_are_one_file_each() -> None:
    shown = {block.title: yaml.safe_load(block.text) for block in blocks("model_and_hardware")}
    gpu = GpuSpec.model_validate(shown.pop("configs/hardware/l40s.yaml"))
    model = ModelSpec.model_validate(shown.pop("configs/models/qwen2.5-7b.yaml"))
    assert not shown
    assert not gpu.bandwidth_is_measured
    assert gpu.kv_capacity_tokens(model) > 0


def test_every_page_is_in_the_table() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\(([a-z_]+\.md)\)", index)) == pages
    assert pages == {f"{page}.md" for page in (*PLUGINS, "operator", "model_and_hardware")}
