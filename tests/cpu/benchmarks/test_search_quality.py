"""The benchmark of the search: a run that was cut goes on as if it had not been."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import search_quality
from benchmarks.search_quality import Run, Search, search
from evaluators.plan import EvaluationPlan, load_plan
from evaluators.screen import AttentionRecording, Screener, ScreenScore
from evaluators.worker import EvaluationWorker
from search.campaign.archive import Verdict
from vortex_core.ir.flow import Flow
from vortex_core.sandbox.jail import run

MODEL = "retrieval-gqa"
SCORED = '''
from vortex_core import ops, register, vFlow

@register("tried")
class Tried(vFlow):
    """Mean keys."""

    def create_cache(self, page):
        return {{"mean": page.state(dim=page.head_dim)}}

    def forward_cache(self, page):
        return {{"mean": page.k.mean("token")}}

    def forward_indexer(self, q, cache):
        return ops.topk((q * cache["mean"]).sum("dim"){pooled})
'''


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = load_plan("skills").model_dump(mode="json")
    raw["accuracy"]["tasks"] = [raw["accuracy"]["tasks"][0] | {"items": 4, "context": 512}]
    screen = {"retrieval_items": 2, "passages": 0, "steps": 1, "at": 1, "most_tokens": 600}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VORTEX_CACHE", str(tmp_path_factory.mktemp("cache")))
        plan = EvaluationPlan.model_validate(raw | {"screen": screen})
        made = EvaluationWorker(MODEL, plan, device="cpu", threads=1).screen_file(0)
    assert made is not None
    return made


def ran(monkeypatch: pytest.MonkeyPatch, programs: int, afresh: bool, **job: Any) -> tuple[Run, int]:
    """A run, and how many programs it screened."""
    screened = 0
    real = Screener.score

    def score(self: Screener, flow: Flow, *, own: bool = True) -> ScreenScore:
        nonlocal screened
        screened += 1
        return real(self, flow, own=own)

    if afresh:
        monkeypatch.setattr(search_quality, "_under_way", {})
    monkeypatch.setattr(search_quality, "_again", lambda *given: 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(Screener, "score", score)
        found = search({**job, "programs": programs, "ends": time.time() + 100})
    assert found is not None
    return found, screened


def test_a_run_that_was_cut_drafts_again_and_screens_nothing_twice(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job: dict[str, Any] = {
        "strategy": "evolve", "seed": 1, "recording": str(recording), "other": [], "model": MODEL, "layers": 2,
        "device": "cpu", "by": "output", "keep": 2,
    }  # fmt: skip
    whole, first = ran(monkeypatch, 12, True, measured=str(tmp_path / "whole.jsonl"), **job)
    assert first >= 12 + len(search_quality.LIBRARY)
    best = list(whole.best)
    assert len(best) == 12 and best == sorted(best)

    cut = tmp_path / "cut.jsonl"
    _, some = ran(monkeypatch, 5, True, measured=str(cut), **job)
    with cut.open("a") as log:
        log.write('["half a li')  # the process died here
    again, more = ran(monkeypatch, 12, True, measured=str(cut), **job)
    assert again.best == best and again.source == whole.source
    assert some + more == first
    assert cut.read_text() == (tmp_path / "whole.jsonl").read_text()

    further, none = ran(
        monkeypatch, 12, False, measured=str(cut), **job
    )  # in the same process nothing is repeated
    assert further.best == best and none == 0

    with pytest.raises(ValueError, match="give another --out"):
        ran(monkeypatch, 12, True, measured=str(cut), **{**job, "layers": 3})


def test_who_reads_more_pages_than_the_budget_allows_is_not_kept(recording: Path, tmp_path: Path) -> None:
    """Query heads that select apart may read half as many again, and then lead by the error of the output."""
    job: dict[str, Any] = {
        "strategy": "random", "seed": 1, "recording": str(recording), "other": [], "model": MODEL, "layers": 2,
        "device": "cpu", "by": "output", "keep": 2, "measured": str(tmp_path / "measured.jsonl"),
    }  # fmt: skip
    found = Search(job, Screener(AttentionRecording.load(recording), budgets=("0.3 * length",), layers=2))
    flows = {
        name: run(SCORED.format(pooled=pooled), "x.py").flow.with_knobs(**search_quality.KNOBS)
        for name, pooled in (("together", '.mean("head")'), ("apart", ""))
    }
    told = {name: found._measured(None, flow) for name, flow in flows.items()}
    assert told["together"] is not None and told["together"].verdict is Verdict.PROVEN
    assert told["apart"] is not None and told["apart"].verdict is Verdict.FAILED
