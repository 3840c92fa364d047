"""The language's pages: generated ones are up to date, every code block of the hand-written one runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vortex_core.errors import VortexError
from vortex_core.flow import doc_tables, eager, reference
from vortex_core.sandbox.jail import run

ROOT = Path(__file__).resolve().parents[3]
LANGUAGE = (ROOT / "docs/language.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", LANGUAGE, re.DOTALL)


def test_the_operator_table_is_up_to_date() -> None:
    found = (ROOT / "docs/operators.md").read_text(encoding="utf-8")
    assert found == doc_tables.operators(), "run: python -m vortex_core.flow.reference --write docs"


def test_pages_are_written_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main(["--write", str(tmp_path)]) == 0
    assert (tmp_path / "operators.md").read_text(encoding="utf-8") == doc_tables.operators()
    assert reference.main(["--wrong"]) == 2
    assert reference.main([]) == 0
    assert "forward_indexer" in capsys.readouterr().out


@pytest.mark.parametrize(
    "number", [i for i, (kind, text) in enumerate(BLOCKS) if kind == "python" and "eager" not in text]
)
def test_flows_in_the_language_page_trace_without_warnings(number: int) -> None:
    traced = run(BLOCKS[number][1], "flow.py")
    assert traced.warnings == ()
    assert traced.doc


def test_the_eager_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "python" and "eager" in text]
    namespace: dict[str, object] = {}
    exec(compile(text, "notebook", "exec"), namespace)
    assert isinstance(namespace["found"], eager.Run)
    assert "vTensor(page)" in capsys.readouterr().out


def test_the_error_shown_is_the_error_given() -> None:
    (wrong,) = [text for kind, text in BLOCKS if kind == "error"]
    (shown,) = [text for kind, text in BLOCKS if kind == "text"]
    with pytest.raises(VortexError) as caught:
        run(wrong, "flow.py")
    assert str(caught.value) == shown.strip()


def test_knobs_shown_are_the_knobs_there_are() -> None:
    from dataclasses import fields

    from vortex_core.ir.knobs import Knobs

    (shown,) = re.findall(r"`knobs = (Knobs\(.*?\))`", LANGUAGE, re.DOTALL)
    made = eval(shown, {"Knobs": Knobs})
    assert made == Knobs(dense_layers=(0, 1))
    assert all(f"{f.name}=" in shown for f in fields(Knobs))
