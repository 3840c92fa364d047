"""`vortex-search convert`: what it prints is the program it read; every mistake has one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search.cli import main
from search.commands.convert import check, convert
from tests.null.dialects.programs import BUNDLED
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.sandbox.jail import run as trace

GOOD = BUNDLED["quest"]


def run(*arguments: str) -> int:
    """Exit status of a command line."""
    try:
        main(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "program.py"
    path.write_text(GOOD)
    return path


def document(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_the_printed_source_is_the_library_flow(program: Path, capsys: pytest.CaptureFixture[str]):
    assert run("convert", str(program)) == 0
    said = capsys.readouterr()
    assert trace(said.out, "printed.py").ir_hash == library.load("quest").ir_hash
    assert "vortex_torch" not in said.out
    assert library.load("quest").ir_hash in said.err


def test_settings_beside_the_file_or_named_become_knobs(program: Path, capsys: pytest.CaptureFixture[str]):
    program.with_suffix(".json").write_text('{"vortex_block_size": 32, "vortex_topk_val": 29}')
    other = program.with_name("other.json")
    other.write_text('{"vortex_block_size": 64}')
    assert run("convert", str(program), "--json") == 0
    beside = document(capsys)
    assert beside["knobs"]["page_size"] == 32
    assert trace(beside["source"], "x.py").key == beside["key"]
    assert run("convert", str(program), "--knobs", str(other), "--json") == 0
    assert document(capsys)["knobs"]["page_size"] == 64


def test_out_writes_a_flow_that_check_accepts(program: Path, capsys: pytest.CaptureFixture[str]):
    out = program.with_name("mine.py")
    assert run("convert", str(program), "--out", str(out)) == 0
    assert capsys.readouterr().out == ""
    assert run("check", str(out), "--json") == 0
    assert document(capsys)["ir_hash"] == library.load("quest").ir_hash


BAD = {
    "no such file": (None, [], "VF000"),
    "no python": ("from vortex_torch.flow import vFlow\nclass (", [], "VF001"),
    "a vFlow program": (library.source("quest"), [], "VF080"),
    "an unknown operator": (GOOD.replace("topK()", "topkk()").replace("topK,", "topkk,"), [], "VF080"),
    "a call without its place": (GOOD.replace("loc=loc, ", ""), [], "VF083"),
    "an import": ("import os\n" + GOOD, [], "VF002"),
    "no settings": (GOOD, ["--knobs", "missing.json"], "VF000"),
    "settings that are no JSON": (GOOD, ["--knobs", "program.py"], "VF087"),
    "out is the program": (GOOD, ["--out", "program.py"], "VS010"),
    "out is no file": (GOOD, ["--out", "."], "VS010"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_mistake_gets_one_message_and_writes_nothing(
    what: str, program: Path, capsys: pytest.CaptureFixture[str]
):
    text, arguments, code = BAD[what]
    if text is None:
        program.unlink()
    else:
        program.write_text(text)
    before = sorted(program.parent.iterdir())
    assert run("convert", "program.py", *arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith(code)
    assert "Traceback" not in said.err
    assert said.out == ""
    assert run("convert", "program.py", *arguments, "--json") == 2
    assert document(capsys)["error"]["code"] == code
    assert sorted(program.parent.iterdir()) == before
    assert text is None or program.read_text() == text


def test_a_source_that_means_something_else_is_not_written(program: Path):
    from dataclasses import replace

    flow = convert(program).flow
    with pytest.raises(VortexError, match="VS015"):
        check(replace(flow, source=flow.source.replace("ops.maximum", "ops.minimum")))


def test_help_teaches_with_an_example(capsys: pytest.CaptureFixture[str]):
    assert run("convert", "--help") == 0
    said = capsys.readouterr().out
    assert "Example" in said and "--json" in said
