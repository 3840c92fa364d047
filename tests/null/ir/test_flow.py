"""The one value for a flow: identity, knobs, and that nothing is taken on trust when it is read."""

from __future__ import annotations

import json

import pytest

from search.executors.workers import received, sent
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow, flow_key

QUEST = library.load("quest").flow


def test_the_key_is_of_program_and_knobs_and_of_nothing_else():
    assert QUEST.key == flow_key(QUEST.program, QUEST.knobs) == library.load("quest").key
    assert QUEST.with_knobs(budget="64").key != QUEST.key
    assert QUEST.with_knobs(budget="64").ir_hash == QUEST.ir_hash
    renamed = Flow("other", QUEST.program, QUEST.knobs, "words", "elsewhere")
    assert (renamed.key, renamed.ir_hash) == (QUEST.key, QUEST.ir_hash)


@pytest.mark.parametrize("name", library.names())
def test_json_brings_back_the_same_candidate(name: str):
    flow = library.load(name).flow
    again = Flow.from_json(json.loads(json.dumps(flow.to_json())))
    assert again == flow
    assert (again.key, again.doc, again.origin) == (flow.key, flow.doc, f"library:{name}")


def test_a_traced_flow_is_a_flow():
    traced = library.load("quest")
    assert isinstance(traced, Flow)
    assert traced.flow == QUEST
    assert traced.with_knobs(page_size=64).source == traced.source


def test_a_malformed_program_is_refused_with_a_code():
    with pytest.raises(VortexError):
        Flow.from_json(QUEST.to_json() | {"program": {"format": 1}})


def test_a_worker_that_reads_another_program_says_so():
    assert received(sent(QUEST)) == QUEST
    with pytest.raises(VortexError) as refused:
        received(sent(QUEST) | {"key": "0" * 16})
    assert refused.value.code == "VV100"
