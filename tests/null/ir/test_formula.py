"""Formula and sentence of a program: both from the IR, for every flow there is, and different where programs differ."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from search.report.dataflow import dataflow
from vortex_core import library
from vortex_core.flow.naming import state_labels
from vortex_core.ir.formula import formula
from vortex_core.ir.sentence import sentences

FLOWS = [*library.names(), *library.mla_names()]


def lines(name: str) -> list[str]:
    program = library.load(name).program
    return [line.text for line in formula(program, state_labels(program))]


def test_quest_reads_as_in_its_paper() -> None:
    program = library.load("quest").program
    assert [line.text for line in formula(program)] == [
        "s0[p,d] = min_t k[t,d]",
        "s1[p,d] = max_t k[t,d]",
        "S = top-k_p(max_h ∑_d max(s1[p,d] · q[h,d], s0[p,d] · q[h,d]))",
    ]
    assert (
        sentences(program)[0]
        == "For every completed page it keeps s0: the smallest value over tokens of the keys."
    )
    assert (
        "the largest value over query heads of the sum over channels of the larger of"
        in sentences(program)[-1]
    )


def test_means_and_differences_come_back() -> None:
    assert "mean_t k[t,d]" in lines("block_topk")[0]
    assert " − (max_p,r x1" in " ".join(lines("nsa")) and "/ √(D)" in " ".join(lines("nsa"))


@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_has_both_and_names_every_state(name: str) -> None:
    program = library.load(name).program
    labels = state_labels(program)
    found, said = formula(program, labels), sentences(program, labels)
    assert found[-1].text.startswith("S = ") and said[-1].startswith("Every decode step reads")
    for state in program.states:
        assert any(labels[state.name] in line.text for line in found)
        assert any(labels[state.name] in words for words in said)
    for line in found:
        ET.fromstring(line.mathml)
    drawn = dataflow(program, labels)
    assert bool(drawn) == (name != "adamas")  # a Hadamard matrix has more values than a picture shows
    if drawn:
        ET.fromstring(drawn)


def test_programs_that_differ_read_differently() -> None:
    texts = {name: "\n".join(lines(name)) for name in FLOWS}
    hashes = {name: library.load(name).ir_hash for name in FLOWS}
    for one in FLOWS:
        for other in FLOWS:
            assert (texts[one] == texts[other]) == (hashes[one] == hashes[other]), (one, other)


def test_names_are_escaped_in_mathml() -> None:
    program = library.load("quest").program
    hostile = {s.name: "<b>&" for s in program.states}
    for line in formula(program, hostile):
        assert "<b>" not in line.mathml
        ET.fromstring(line.mathml)
    assert "<b>" not in dataflow(program, hostile).replace("<b>&", "")
