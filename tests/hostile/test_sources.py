"""Our own sources: no call that runs what it reads, wherever it is added."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("vortex_core", "evaluators", "agents", "search", "benchmarks", "examples")


def _calls() -> Iterator[tuple[str, str, dict[str, object]]]:
    """Every call: where, the name called, its keywords' constants."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    given = {k.arg or "**": getattr(k.value, "value", None) for k in node.keywords}
                    yield where, ast.unparse(node.func), given


def test_nothing_that_is_read_runs() -> None:
    found = []
    for where, name, given in _calls():
        last = name.rpartition(".")[2]
        if (
            (
                last == "from_pretrained"
                and name.startswith("Auto")
                and given.get("trust_remote_code") is not False
            )
            or given.get("trust_remote_code") not in (None, False)
            or (name == "torch.load" and given.get("weights_only") is not True)
            or (name in ("np.load", "numpy.load") and given.get("allow_pickle") is not False)
            or name in ("pickle.load", "pickle.loads", "marshal.load", "marshal.loads", "yaml.unsafe_load")
            or (name == "yaml.load" and "Loader" not in given)
            or given.get("shell") is True
            or name == "os.system"
        ):
            found.append(f"{where}: {name}")
    assert not found
