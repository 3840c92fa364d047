"""A campaign of real programs and made-up figures: what a language model would be asked in it, kind by kind.

`python -m tests.null.agents.stub_campaign FOLDER` writes the prompts down to be read.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.base import CHANGES, FailedAttempt, Proposal, ProposalRequest, Proposer, RequestKind
from agents.ensemble import EnsembleProposer
from agents.errors import ProposerError
from agents.grammar.proposer import GrammarProposer
from agents.prompting import user_prompt
from evaluators.plan import load_plan
from evaluators.results import Failure, Metric, StageResult
from search.campaign.campaign import Campaign
from search.campaign.conditions import language
from search.campaign.session import load_library
from search.config import CampaignConfig, load_campaign
from search.log import events as ev
from search.log.files import ContentStore
from search.log.run import Run
from search.log.state import CampaignState
from search.log.store import MemoryEventStore
from search.simulation import SimulatedExecutor
from vortex_core.errors import VortexError
from vortex_core.ir.cost import kv_row_bytes, state_bytes_per_token
from vortex_core.ir.flow import Flow
from vortex_core.sandbox.jail import run as trace_here
from vortex_core.specs import load_model

MODEL = load_model("smollm2-135m")
_TASKS = ("needle_multikey@1024", "needle_single@1024")


class StubExecutor(SimulatedExecutor):
    """Traces programs as they are; figures come from the state bytes and the hash, in the form of the real stages."""

    async def trace(self, source: str) -> Flow:
        """See `Executor`."""
        return trace_here(source, "flow.py").flow

    async def measure(self, stage: str, flow: Flow, seed: int) -> StageResult:
        """See `SimulatedExecutor`."""
        await asyncio.sleep(0)
        draw = [int(c, 16) / 15 for c in flow.ir_hash[:12]]
        geometry = MODEL.geometry()
        share = state_bytes_per_token(flow.program, flow.knobs, geometry) / kv_row_bytes(
            geometry, flow.knobs.kv_bytes
        )
        beyond = min(0.98, 0.4 + 3 * min(share, 0.1) + 0.3 * draw[0])
        if stage in ("screen", "full_screen"):
            return _screen(stage, beyond, share, draw)
        if stage == "static":
            return StageResult(stage, True, info={"planned_density": {"1024": 0.1875}, "states": ["s0"]})
        if stage == "modelled":
            return StageResult(stage, True, _speed(share), info=_MODELLED)
        if stage == "holdout":
            return StageResult(stage, True, {"accuracy": Metric(0.8, 0.6, 0.9, n=16)}, {"needle": [1.0] * 16})
        lost = 0 if flow.program.selects_everything else round(16 * (1 - beyond) * (0.5 + draw[1]))
        return _answers(stage, lost)


def _speed(share: float) -> dict[str, Metric]:
    speed = 1 / (0.35 + share)
    return {
        "modelled_speedup_h200": Metric(speed, unit="x", how="modelled"),
        "modelled_speedup_b200": Metric(speed * 0.9, unit="x", how="modelled"),
        "modelled_tps_h200": Metric(9000 * speed, unit="tokens/s", how="modelled"),
    }


_POINT = {"batch": 64, "weight": 1.0, "speedup": 1.9, "step_ms": 1.3, "bound_by": "states", "density": 0.1875}
_MODELLED = {
    "model": "smollm2-135m",
    "gpus": {name: {"1024": _POINT} for name in ("h200", "b200")},
    "bottleneck": "states",
    "roofline": {
        "update": "3.01 us (update 0.05 MB)",
        "score": "5.2 us (state 4.1 MB, query 0.2 MB)",
        "attend": "4.1 us (kv 3.1 MB)",
        "merge": "3 us",
    },
}


def _screen(stage: str, beyond: float, share: float, draw: list[float]) -> StageResult:
    layers = (3, 19) if stage == "screen" else (3, 9, 19, 27)
    metrics = {
        "screen_beyond": Metric(
            beyond - 0.02, beyond - 0.06, beyond + 0.02, unit="of what hindsight adds", n=3
        ),
        "screen_own_beyond": Metric(beyond, beyond - 0.04, beyond + 0.04, unit="of what hindsight adds", n=3),
        "screen_own_output": Metric(
            0.945 + 0.05 * beyond, 0.943 + 0.05 * beyond, 0.947 + 0.05 * beyond, unit="of squared length", n=3
        ),
        "screen_output_error": Metric(0.055 - 0.05 * beyond, higher_is_better=False, how="recorded"),
        "density": Metric(0.21, higher_is_better=False, how="recorded"),
        "state_share": Metric(share, unit="of KV bytes", higher_is_better=False, how="modelled"),
    }
    info = {
        "attention-0123456789abcdef": {
            "beyond_by_layer": {str(n): round(beyond - 0.1 * draw[i], 3) for i, n in enumerate(layers)},
            "worst_heads": [{"layer": n, "q_head": 4, "beyond": 0.3} for n in layers],
        }
    }
    recorded = {n: replace(m, how="recorded") if n.startswith("screen") else m for n, m in metrics.items()}
    return StageResult(stage, True, recorded | _speed(share), info=info)


def _answers(stage: str, lost: int) -> StageResult:
    right, delta = (14 - min(14, lost)) / 16, -min(14, lost) / 16
    metrics = {
        "accuracy": Metric(right, max(0.0, right - 0.2), min(1.0, right + 0.1), n=16),
        "accuracy_delta": Metric(delta, delta - 0.15, delta + 0.15, n=16),
        "accuracy_density": Metric(0.2, unit="of pages", higher_is_better=False, n=16),
        "density": Metric(0.19, unit="of pages", higher_is_better=False, n=32),
        "perplexity_ratio": Metric(1 + 0.01 * lost, 0.98, 1.1 + 0.01 * lost, higher_is_better=False, n=32),
    }
    item = {"task": _TASKS[0], "depth": 0.4, "distractors": 2, "wanted": "7316", "said": "7361. The"}
    info = {
        "tasks": {task: {"accuracy": right, "dense": 0.875, "n": 8} for task in _TASKS},
        "worst_task": _TASKS[0],
        "lost": lost,
        "lost_items": [item] * min(lost, 3),
        "margin": 0.1,
    }
    passed = delta >= -0.3
    error = VortexError(
        "VV105", f"accuracy {right:.3f} against 0.875 of dense (margin 0.1)", "sharpen the score"
    )
    failure = None if passed else Failure.of(error)
    return StageResult(stage, passed, metrics, {"needle": [1.0] * 16}, info=info, failure=failure)


@dataclass
class Asked:
    """A request as a language model got it, with how many found programs had answered or been screened then."""

    request: ProposalRequest
    text: str


class Reader(Proposer):
    """Keeps what a language model would be asked, and has the grammar answer.

    Args:
        mute: numbers of its asks that get no answer in time.

    Attributes:
        files: of the campaign that it was played in.
    """

    changes = CHANGES
    files: ContentStore

    def __init__(self, mute: tuple[int, ...] = ()) -> None:
        self.name = "reader"
        self.asked: list[Asked] = []
        self.grammar = GrammarProposer()
        self.mute = mute

    async def propose(self, request: ProposalRequest) -> Proposal:
        """See `Proposer`."""
        self.asked.append(Asked(request, user_prompt(request)))
        if len(self.asked) in self.mute:
            raise ProposerError("VA015", "reader: no answer within 600 s", "ask again")
        kind: RequestKind = request.kind if request.kind in ("seed", "crossover") else "mutate"
        answer = await self.grammar.propose(replace(request, kind=kind))
        return replace(answer, kind=request.kind, proposer=self.name)


def settings(**changes: Any) -> CampaignConfig:
    """The default campaign, smaller."""
    base = load_campaign("default").model_dump(mode="json")
    base["screen"] |= {"programs": 40, "full": 4, "answers": 2}
    base["limits"] |= {"seconds": None, "candidates": 30}
    base["arms"] = [
        {"name": "model", "strategy": {"kind": "evolve", "start": 4}, "share": 1, "proposer": "reader"}
    ]
    base["finals"] |= {"second": None}
    return CampaignConfig.model_validate(base | changes)


def play(
    folder: Path, config: CampaignConfig | None = None, mute: tuple[int, ...] = ()
) -> tuple[Reader, CampaignState]:
    """Run the stub campaign to its end."""
    config, reader = config or settings(), Reader(mute)
    store = MemoryEventStore(clock=iter(range(10**9)).__next__)
    reader.files = ContentStore(store.texts, folder / "files")
    campaign = Campaign(
        Run("stub", folder, store, reader.files),
        config,
        StubExecutor(),
        {arm.name: EnsembleProposer([reader]) for arm in config.arms},
        seed=1,
        model=MODEL.model_dump(mode="json"),
        library=load_library,
        watch=lambda record, state: None,
    )
    plan = load_plan(config.evaluation).model_dump(mode="json")
    state = asyncio.run(
        campaign.run_to_end(ev.CampaignStarted("stub", {}, plan, {}, {}), ev.SessionStarted(1, {}))
    )
    return reader, state


BROKEN = FailedAttempt(
    "from vortex_core import ops, vFlow\n",
    {
        "code": "VF012",
        "message": "no dim 'token'",
        "remedy": "sum over head or dim",
        "location": {"line": 14},
    },
)


def by_kind(asked: list[Asked], kind: RequestKind, at: int) -> str:
    """The prompt of a kind, with what was known at the `at`th ask that had a parent (two for a crossover)."""
    wanted = 2 if kind == "crossover" else 1
    later = [a.request for a in asked[at:] if len(a.request.parents) >= wanted]
    found = later[0]
    parents = {"seed": (), "repair": ()}.get(kind, found.parents[:wanted])
    return user_prompt(
        replace(found, kind=kind, parents=parents, failed=BROKEN if kind == "repair" else None)
    )


def main() -> int:
    """See the module."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    reader, _ = play(folder / "run", mute=(12, 13))
    (folder / "language.md").write_text(language())
    kinds: tuple[RequestKind, ...] = ("seed", "crossover", "repair", *CHANGES)
    (folder / "0_seed.md").write_text(reader.asked[0].text)
    for stage, at in (("1", 5), ("2", 30)):
        for kind in kinds:
            (folder / f"{stage}_{kind}.md").write_text(by_kind(reader.asked, kind, at))
    for n, asked in enumerate(reader.asked):
        (folder / f"ask_{n + 1:03}_{asked.request.kind}.md").write_text(asked.text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
