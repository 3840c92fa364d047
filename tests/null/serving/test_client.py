"""An engine in a process of its own: the protocol, with a stand-in for SGLang, and how failures are told."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

from vortex_core.errors import VortexError
from vortex_core.serving import entry_points
from vortex_core.serving.client import EngineProcess
from vortex_core.serving.settings import Settings

FAKE = """
import json, os, time
__version__ = "0.0-fake"

class Engine:
    def __init__(self, **options):
        time.sleep(options.get("slow", 0))
        if options.get("broken"):
            print("VE032: pages do not fit")
            os._exit(3)
        self.seen = set()
        status = os.environ.get("VORTEX_SERVING_STATUS")
        if status:
            open(status, "w").write(json.dumps({"flow": os.environ["VORTEX_SERVING_FLOW"]}))

    def generate(self, input_ids, sampling_params, stream=False):
        new = sampling_params["max_new_tokens"]
        if stream:
            return self.chunks(input_ids, new)
        cached = [len(x) if tuple(x) in self.seen else 0 for x in input_ids]
        self.seen |= {tuple(x) for x in input_ids}
        print("engines talk on stdout")
        return [
            {"output_ids": [x[-1]] * new, "meta_info": {"cached_tokens": c}}
            for x, c in zip(input_ids, cached)
        ]

    def chunks(self, input_ids, new):
        for count in sorted({1, max(1, new - 2), new}):  # the last two arrive together
            for index, x in enumerate(input_ids):
                time.sleep(0.01)
                yield {"index": index, "output_ids": [x[-1]] * count, "meta_info": {"completion_tokens": count}}

    def flush_cache(self):
        self.seen.clear()

    def shutdown(self):
        pass
"""


@pytest.fixture
def fake(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sglang.py").write_text(FAKE)
    return {"PYTHONPATH": str(tmp_path)}


def test_an_engine_answers_batches(fake: dict[str, str]) -> None:
    with EngineProcess({}, Settings("quest"), python=sys.executable, variables=fake) as engine:
        first = engine.generate([[1, 2], [3]], 3)
        assert first.tokens == [[2, 2, 2], [3, 3, 3]]
        assert first.cached == [0, 0]
        assert engine.generate([[1, 2]], 1).cached == [2]
        streamed = engine.stream([[1, 2], [3]], 5)
        assert streamed.tokens == [[2] * 5, [3] * 5]
        assert len(streamed.gaps) == 2 * 4
        assert all(gap >= 0.009 for gap in streamed.gaps)
        engine.flush()
        assert engine.generate([[1, 2]], 1).cached == [0]
        assert engine.status == {"flow": "quest"}
        assert engine.facts["sglang"] == "0.0-fake"
        log = engine.log
    assert not log.exists()


def test_dense_engines_report_nothing(fake: dict[str, str]) -> None:
    with EngineProcess({}, python=sys.executable, variables=fake) as engine:
        assert engine.status is None


def test_a_dead_engine_shows_its_last_words(fake: dict[str, str]) -> None:
    with pytest.raises(VortexError, match="VE032: pages do not fit") as caught:
        EngineProcess({"broken": True}, python=sys.executable, variables=fake)
    assert caught.value.code == "VE038"


def test_time_held_does_not_count_as_a_slow_start(fake: dict[str, str]) -> None:
    with pytest.raises(VortexError, match="no answer"):
        EngineProcess({"slow": 30}, python=sys.executable, variables=fake, start_limit=0.5)
    held = iter([True] * 2 + [False] * 100)  # asked once a second, far longer than the limit
    options = {"slow": 2.5}
    EngineProcess(
        options, python=sys.executable, variables=fake, start_limit=1.5, held=lambda: next(held)
    ).close()


def test_an_uninstalled_tree_is_found_by_plugin_discovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry_points, "entry_points", lambda group: ())
    first = entry_points.plugin_path(tmp_path)["PYTHONPATH"].split(os.pathsep)[0]
    (found,) = importlib.metadata.distributions(path=[first])
    (plugin,) = found.entry_points.select(group=entry_points.GROUP)
    assert (plugin.name, plugin.value) == ("vortex", "vortex_core.serving.sglang.plugin:register")
    assert found.name == "vortex-search"
