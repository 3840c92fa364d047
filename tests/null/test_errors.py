"""Every error code of the project: declared once, raised where it is declared to be, and documented."""

from __future__ import annotations

import ast
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from agents.errors import ProposerError
from search.commands import error_page
from vortex_core.errors import VortexError, declare

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"V[A-Z]\d{3}")
DECLARING = {"declare", "_declare", "_mistake"}


def calls_of(source: str) -> Iterator[tuple[str, str, bool, int]]:
    """Code strings of a text: (code, function called with it or "", whether it comes first or by name, line)."""
    inside: set[int] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keyed = [k.value for k in node.keywords]  # e.g. the codes that a registry is to raise
        for value in [*node.args, *keyed]:
            if (
                isinstance(value, ast.Constant)
                and isinstance(value.value, str)
                and CODE.fullmatch(value.value)
            ):
                inside.add(id(value))
                yield value.value, name, value in node.args[:1] or value in keyed, value.lineno
    for node in ast.walk(tree):
        # A default for a parameter named `code` is how an error class names its own.
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            inside |= {id(default) for default in node.args.defaults}
        if isinstance(node, ast.Expr):  # a docstring
            inside.add(id(node.value))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in inside:
            continue
        # Prose may name a code; a string without a blank that holds one is there to be compared with.
        if re.search(rf"\b{CODE.pattern}\b", node.value) and not re.search(r"\s", node.value):
            yield node.value, "", False, node.lineno


@cache  # seconds of parsing, which every process that collects tests would spend
def found_in_the_project() -> list[tuple[str, str, bool, str]]:
    return [
        (code, call, first, f"{file.relative_to(ROOT)}:{line}")
        for folder in ("vortex_core", "agents", "evaluators", "search", "benchmarks")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for code, call, first, line in calls_of(file.read_text(encoding="utf-8"))
        if not {"testing", "simulation"} & {file.stem, file.parent.name}  # made-up failures for suites
    ]


CODES = error_page.catalogue()


def test_every_code_is_declared_in_one_place():
    times = Counter(code for code, call, _, _ in found_in_the_project() if call in DECLARING)
    assert set(times) == set(CODES)
    assert [code for code, n in times.items() if n > 1] == []


def test_every_code_raised_is_declared_and_raised_where_it_belongs():
    raised = [
        (code, where)
        for code, call, first, where in found_in_the_project()
        if first and call not in DECLARING
    ]
    assert len(raised) > 60, "the scan is broken"
    assert [f"{where} raises {code}" for code, where in raised if code not in CODES] == []
    strangers = [
        f"{where} raises {code}, which belongs to {CODES[code].home}"
        for code, where in raised
        if not f"{where.split(':')[0]}/".startswith(f"{CODES[code].home}/")
    ]
    assert strangers == []  # a code that is raised from two layers means two things


def test_nothing_is_decided_by_the_text_of_a_code():
    assert [f"{where}: {code!r}" for code, call, first, where in found_in_the_project() if not first] == []


def test_no_two_codes_mean_the_same():
    titles = Counter(code.title for code in CODES.values())
    assert [title for title, n in titles.items() if n > 1] == []


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ('raise VortexError("VE001", "x")', ("VE001", "VortexError", True)),
        ('Registry("backend", {}, code="VE001")', ("VE001", "Registry", True)),
        ('if error.code == "VE001": pass', ("VE001", "", False)),
        ('RETRY = {"VE001"}', ("VE001", "", False)),
        ('_X = re.compile("VS003|VE001")', ("VS003|VE001", "", False)),
    ],
)
def test_the_scan_sees_how_codes_are_used(source: str, seen: tuple[str, str, bool]):
    assert [found[:3] for found in calls_of(source)] == [seen]


def test_a_code_cannot_be_declared_twice():
    with pytest.raises(AssertionError, match="VE010 is declared twice"):
        declare("VE010", "another meaning", "x", "user", home="search")


def test_a_code_says_whose_fault_an_error_is_and_the_place_that_raises_it_may_know_better():
    found = VortexError("VE019", "states need 9 GiB")
    assert (found.fault, found.retryable) == ("candidate", False)
    found = VortexError("VE019", "states need 9 GiB", fault="infrastructure", retryable=True)
    assert (found.fault, found.retryable) == ("infrastructure", True)
    assert VortexError("ZZ001", "of a plug-in").fault == "infrastructure"
    assert ProposerError("VA012", "slow down").retryable
    assert not ProposerError("VA018", "no such model").retryable


@pytest.mark.parametrize("code", ["VF001", "VE010", "VE050", "VV105", "VA012", "VA030", "VS008"])
def test_fault_and_retry_cross_processes_and_come_from_the_registry_for_older_json(code: str):
    error = VortexError(code, "m", "r", fault="budget", retryable=True)
    again = VortexError.from_json(error.to_json())
    assert (again.fault, again.retryable, str(again)) == ("budget", True, str(error))
    old = {"code": code, "message": "m", "remedy": "r", "location": None}
    again = VortexError.from_json(old)
    assert (again.fault, again.retryable) == (CODES[code].fault, CODES[code].retryable)


def test_an_infrastructure_error_says_where_in_our_code_it_was_raised():
    from vortex_core.specs import load_model

    with pytest.raises(VortexError) as caught:
        load_model("no such model")
    assert re.fullmatch(r"vortex_core/specs\.py:\d+ in load_model", caught.value.place)
    assert (
        "place" not in caught.value.to_json()
    )  # the user's fault: our line numbers are none of their business
    caught.value.fault = "infrastructure"
    data = caught.value.to_json()
    assert data["place"] == caught.value.place
    assert VortexError.from_json(data).place == caught.value.place


def test_the_page_of_all_errors_is_up_to_date():
    text = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    assert text == error_page.page(), "run: python -m search.commands.error_page --write docs"
    assert all(f"{code.code}" in text and code.title in text for code in CODES.values())


def test_the_page_is_written_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert error_page.main(["--write", str(tmp_path)]) == 0
    assert (tmp_path / "errors.md").read_text(encoding="utf-8") == error_page.page()
    assert error_page.main(["--wrong"]) == 2
    assert error_page.main([]) == 0
    assert capsys.readouterr().out == error_page.page()


def test_an_error_comes_out_of_another_process_as_it_went_in():
    first = VortexError("VM001", "a fact", "do this", log="here.log")
    first.further = (ProposerError("VA024", "another", "do that"),)
    again = pickle.loads(pickle.dumps(first))
    assert (type(again), str(again), again.to_json()) == (VortexError, str(first), first.to_json())
    assert type(again.further[0]) is ProposerError
