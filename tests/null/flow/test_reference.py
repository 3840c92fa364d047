"""The language reference that agents receive is complete and small."""

from __future__ import annotations

from dataclasses import fields

from vortex_core.flow.reference import compact
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.opset import OPS


def test_it_names_every_knob_and_selection() -> None:
    text = compact()
    for knob in fields(Knobs):
        assert f"- {knob.name} = " in text
    for name, spec in OPS.items():
        if spec.group == "select":
            assert name in text


def test_it_fits_a_prompt() -> None:
    assert len(compact()) < 16_000
