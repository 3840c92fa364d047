"""A program's hash is its name: the same in every process, under every Python, however its fields are ordered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.null.library import weights
from vortex_core import library
from vortex_core.ir.program import Program

ROOT = Path(__file__).resolve().parents[3]
FLOWS = [*library.names(), *library.mla_names()]
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
ELSEWHERE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from vortex_core import library
print(*(library.load(name).key for name in {FLOWS!r}))
"""


def elsewhere(python: str, seed: int) -> list[str]:
    """Keys of the library as another process finds them."""
    done = subprocess.run(
        [python, "-S", "-B", "-c", ELSEWHERE],
        env={"PYTHONHASHSEED": str(seed), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize("seed", [0, 12345])
def test_the_same_in_every_process(seed: int) -> None:
    assert elsewhere(sys.executable, seed) == [library.load(name).key for name in FLOWS]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_same_under_every_python(python: str) -> None:
    found = shutil.which(python)
    if found is None or subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"no {python} here")
    assert elsewhere(found, 1) == [library.load(name).key for name in FLOWS]


@pytest.mark.parametrize("name", ["quest", "h2o", "loki"])
def test_the_order_of_fields_does_not_matter(name: str) -> None:
    program = weights.load(name).original
    data = program.to_json()

    def backwards(value: object) -> object:
        if isinstance(value, dict):
            return {k: backwards(v) for k, v in reversed(value.items())}
        return [backwards(v) for v in value] if isinstance(value, list) else value

    again = Program.from_json(json.loads(json.dumps(backwards(data))))
    assert again.ir_hash == program.ir_hash
    states = Program(tuple(reversed(program.states)), program.cache, program.index, program.params)
    assert states.ir_hash == program.ir_hash


def test_learned_values_are_part_of_it() -> None:
    program = weights.load("loki").original
    (param,) = program.params
    data = program.to_json()
    data["params"][0]["data"] = "A" * 8 + data["params"][0]["data"][8:]
    other = Program.from_json(data)
    assert other.params[0].values != param.values
    assert other.ir_hash != program.ir_hash
