"""The jail: hostile or broken source ends in one catalogued error, and nothing gets out."""

from __future__ import annotations

import time

import pytest

from tests import sample_flows
from vortex_core.errors import VortexError
from vortex_core.sandbox import jail, kernel
from vortex_core.sandbox.load import trace_file, trace_source
from vortex_core.sandbox.proof import prove

BODY = sample_flows.HEADER + "    def forward_indexer(self, q, cache):\n        "
HOSTILE = {
    "import os": "VF002",
    "import socket": "VF002",
    "from vortex_core import errors": "VF002",
    "open('/etc/passwd')": "VF002",
    "().__class__.__bases__": "VF002",
    "x = eval('1')": "VF002",
    "try:\n    pass\nexcept Exception:\n    pass": "VF002",
    "x = (": "VF001",
    "x = 1": "VF003",
    BODY + "return 1 / 0": "VF005",
    BODY + "return q": "VF040",
    BODY + "return ops.topk(q.sum('dimx'))": "VF010",
    BODY + "return ops.topk(q.sum('dim'))": "VF041",
    BODY + "return ops.topkk(q)": "VF024",
    BODY + "return ops.topk(q.summ('dim'))": "VF023",
    BODY + "return ops.topk(cache['x'])": "VF030",
    BODY + "return ops.topk(ops.position()) if q else None": "VF020",
}


@pytest.mark.parametrize("source", list(HOSTILE))
def test_hostile_source_is_one_catalogued_error(source: str) -> None:
    with pytest.raises(VortexError) as caught:
        trace_source(source, "flow.py")
    assert caught.value.code == HOSTILE[source]
    assert caught.value.remedy


def test_the_users_line_is_shown() -> None:
    with pytest.raises(VortexError) as caught:
        trace_source(BODY + "x = q.exp()\n        return ops.topk(x.sum('dimx'))", "flow.py")
    assert caught.value.location is not None
    assert caught.value.location.line == 6
    assert "dimx" in caught.value.location.text


def test_an_endless_loop_is_killed_in_time() -> None:
    start = time.monotonic()
    with pytest.raises(VortexError, match="VF006"):
        trace_source(BODY + "while True: pass", deadline=1.0)
    assert time.monotonic() - start < 5


def test_endless_allocation_is_stopped() -> None:
    with pytest.raises(VortexError, match=r"VF007|VF008"):
        trace_source(BODY + "x = [0]\n        while True: x = x + x", deadline=20.0)


def test_a_locked_child_tries_everything_and_nothing_works() -> None:
    proof = prove()
    assert kernel.FILTER in proof.walls
    assert not proof.opened


def test_jailed_and_trusted_tracing_agree() -> None:
    source = sample_flows.load("quest").source
    assert trace_source(source).key == jail.run(source, "quest.py").key


def test_an_unreadable_file_says_so() -> None:
    with pytest.raises(VortexError, match="VF000"):
        trace_file("/nowhere/flow.py")
