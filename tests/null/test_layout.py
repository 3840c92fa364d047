"""The import arrows of the house, enforced on every import statement, also those inside functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vortex_core", "agents", "evaluators", "search", "configs")

# Which modules of ours a package may import, by prefix. Others (torch, ray, ...) are not its business.
ARROWS = {
    "vortex_core": ("vortex_core", "configs"),
    "agents": (
        "agents",
        "configs",
        "vortex_core.errors",
        "vortex_core.flow",
        "vortex_core.ir",
        "vortex_core.configs",
        "vortex_core.files",  # what is handed in is a file of anybody
        "vortex_core.registry",
        "vortex_core.library",  # sources of published algorithms, shown to a model as examples
        "vortex_core.sandbox",  # the conformance suite traces what a proposer writes
        "vortex_core.specs",
    ),
    "evaluators": ("evaluators", "vortex_core", "configs"),
    "search": ("search", "agents", "evaluators", "vortex_core", "configs"),
    "configs": ("configs",),
}

# The floors inside vortex_core, from the ground up: a room imports from floors below its own, wherever in a file the
# import stands; rooms of one floor do not know each other. "" is the package itself, the language's facade.
FLOORS = (
    ("text",),  # every error shows foreign text
    ("errors",),
    ("codes", "device_errors", "files", "geometry", "page_list", "registry"),
    ("configs",),
    ("specs",),
    ("ir", "kernels"),
    ("compiler",),
    ("runtime",),
    ("flow",),
    ("",),
    ("sandbox.allowlist",),  # what a source may hold: each dialect gives its own list
    ("dialects",),
    ("sandbox",),
    ("library",),
    ("engine", "serving"),
)
# Upward on purpose, inside functions: (module, what it imports).
UPWARD = {
    ("vortex_core.errors", "vortex_core.codes"),  # listing all codes imports their catalogues
    ("vortex_core.errors", "vortex_core.ir.mistakes"),
    ("vortex_core.flow.reference", "vortex_core.library"),  # the page for agents ends with example flows
    ("vortex_core.dialects", "vortex_core.sandbox.load"),  # tracing another system's program needs the loader
}

# Programs are traced in a jail with little memory and time: the language must load without these.
HEAVY = ("torch", "pydantic", "transformers", "triton", "ray", "numpy")
LIGHT_PACKAGES = ("vortex_core.ir", "vortex_core.flow")


@dataclass(frozen=True)
class Import:
    """One imported module: where, its absolute name, and whether importing the file executes it."""

    module: str
    file: Path
    line: int
    target: str
    at_import: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.target}"


def _module_name(file: Path) -> str:
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_type_checking(node: ast.If) -> bool:
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_of(source: str, module: str, file: Path, *, is_package: bool) -> list[Import]:
    """Every import of a source text, relative ones made absolute."""
    found: list[Import] = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(module, file, node.lineno, alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            # `from package import submodule` names the submodule: "package.submodule" is judged.
            found.extend(Import(module, file, node.lineno, f"{base}.{a.name}", at_import) for a in node.names)
        deferred = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            guarded = isinstance(node, ast.If) and _is_type_checking(node) and child in node.body
            visit(child, at_import and not deferred and not guarded)

    visit(ast.parse(source, str(file)), True)
    return found


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def broken_arrows(imports: list[Import]) -> list[Import]:
    """Imports of our packages that their package may not make."""
    broken = []
    for item in imports:
        ours = any(_within(item.target, package) for package in PACKAGES)
        allowed = ARROWS[item.module.split(".")[0]]
        if ours and not any(_within(item.target, prefix) for prefix in allowed):
            broken.append(item)
    return broken


def room_of(module: str) -> str:
    """The room of a module of vortex_core; names of its facade belong to the package itself, the room ""."""
    known = {room for floor in FLOORS for room in floor}
    parts = module.split(".")[1:3]
    names = (".".join(parts[:n]) for n in (2, 1))
    return next((name for name in names if name in known), "")


def broken_floors(imports: list[Import]) -> list[Import]:
    """Imports inside vortex_core that climb, or look across a floor."""
    level = {room: n for n, floor in enumerate(FLOORS) for room in floor}
    broken = []
    for item in imports:
        if not (_within(item.module, "vortex_core") and _within(item.target, "vortex_core")):
            continue
        here, there = room_of(item.module), room_of(item.target)
        meant = any(item.module == module and _within(item.target, target) for module, target in UPWARD)
        if here != there and level[there] >= level[here] and not (meant and not item.at_import):
            broken.append(item)
    return broken


def _all_imports() -> list[Import]:
    found: list[Import] = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            is_package = file.name == "__init__.py"
            text = file.read_text(encoding="utf-8")
            found.extend(imports_of(text, _module_name(file), file, is_package=is_package))
    return found


def test_imports_follow_the_arrows():
    imports = _all_imports()
    assert len(imports) > 20, "no imports found: the scan is broken"
    assert not [str(item) for item in broken_arrows(imports)]


def test_rooms_of_vortex_core_import_from_floors_below():
    imports = _all_imports()
    assert not [str(item) for item in broken_floors(imports)]
    for module, target in UPWARD:
        used = any(item.module == module and _within(item.target, target) for item in imports)
        assert used, f"{module} no longer imports {target}: strike it from UPWARD"
    rooms = {path.stem for path in (ROOT / "vortex_core").iterdir() if path.suffix == ".py" or path.is_dir()}
    homeless = rooms - {"__init__", "__pycache__", "py"} - {room for floor in FLOORS for room in floor}
    assert not homeless, f"give {', '.join(sorted(homeless))} a floor in FLOORS"


def test_only_the_triton_backend_knows_its_flows():
    for item in _all_imports():
        inside = _within(item.module, "vortex_core.compiler.triton")
        assert inside or not _within(item.target, "vortex_core.compiler.triton.backend"), str(item)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vortex_core.ir.x", "from vortex_core.compiler.interface import LayerKV"),
        ("vortex_core.ir.x", "def f():\n    from vortex_core.compiler import backends"),
        ("vortex_core.engine.x", "from vortex_core.serving.decoder import FlowDecoder"),
        ("vortex_core.kernels.x", "from vortex_core.ir.knobs import Knobs"),
        ("vortex_core.compiler.x", "from vortex_core import ops"),
        ("vortex_core.errors", "from vortex_core.codes import UNKNOWN_MODEL"),
    ],
)
def test_a_climbing_import_is_caught(module: str, source: str):
    assert len(broken_floors(imports_of(source, module, ROOT / "x.py", is_package=False))) == 1


def test_the_language_imports_nothing_heavy():
    heavy = [
        str(item)
        for item in _all_imports()
        if item.at_import
        and item.file.name != "eager.py"  # for notebooks, on real tensors; nothing imports it
        and any(_within(item.module, package) for package in LIGHT_PACKAGES)
        and item.target.split(".")[0] in HEAVY
    ]
    assert not heavy


@pytest.mark.parametrize("module", [*LIGHT_PACKAGES, "vortex_core.specs", "vortex_core.errors"])
def test_importing_it_really_loads_no_torch(module: str):
    code = f"import {module}, sys; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vortex_core.engine.x", "import search"),
        ("vortex_core.engine.x", "def f():\n    from agents.base import Parent"),
        ("agents.x", "from evaluators import results"),
        ("agents.x", "from vortex_core import engine"),
        ("agents.x", "from vortex_core.compiler.interface import Geometry"),
        ("evaluators.x", "if True:\n    import agents.base as b"),
        ("evaluators.x", "from search.cli import main"),
        ("vortex_core.x", "from ..search import cli"),
    ],
)
def test_a_wrong_import_is_caught(module: str, source: str):
    assert len(broken_arrows(imports_of(source, module, ROOT / "x.py", is_package=False))) == 1


def test_type_checking_and_function_bodies_do_not_run_at_import():
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy\n"
        "def f():\n    import triton\n"
        "class C:\n    import ray\n"
    )
    found = imports_of(source, "vortex_core.ir.x", ROOT / "x.py", is_package=False)
    assert {item.target for item in found if item.at_import} == {"typing.TYPE_CHECKING", "numpy", "ray"}
    assert {item.target for item in found if not item.at_import} == {"torch", "triton"}
