"""Programs of a player beside the offline grammar's on the screen: best so far against evaluations.

`python -m benchmarks.player --recording FILE --out runs/player.json FOLDER...`: every program of the folders in order,
then the grammar (new programs, and changes of its best four) with as many evaluations and some seeds. Ranked by
attention mass beyond the kept pages, of the oracle's, at a tenth of the length; what keeps more state than `--state` of
the KV cache, or is refused, is an evaluation that brought nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.base import Parent, ProposalRequest
from agents.grammar.proposer import GrammarProposer
from evaluators.screen import AttentionRecording, Screener
from vortex_core.errors import VortexError
from vortex_core.ir.cost import state_bytes
from vortex_core.ir.flow import Flow
from vortex_core.sandbox.load import trace_source

_AT = "0.1 * length"
_BEST = 4


@dataclass(frozen=True)
class Outcome:
    """One evaluation: what was measured, or why nothing was."""

    name: str
    mass: float | None
    error: float | None = None
    logits: float | None = None
    state: float | None = None
    why: str = ""


class Judge:
    """Scores programs under the same knobs: pages of 16, one kept at the start and two at the end.

    Args:
        recording: of a model.
        most_state: bytes of page states at most, as a share of the keys' and values' in bf16.
    """

    def __init__(self, recording: AttentionRecording, most_state: float) -> None:
        self.screener = Screener(recording, budgets=(_AT,))
        self.geometry = recording.geometry
        self.most_state = most_state

    def flow(self, flow: Flow) -> Outcome:
        """What the screen finds."""
        try:
            alike = flow.with_knobs(
                page_size=16,
                keep_first=1,
                keep_last=2,
                budget="256",
                dense_layers=(),
                reuse_layers=1,
                reuse_steps=1,
            )
            sizes = self.geometry.symbols(16)
            kv = 16 * self.geometry.head_dim * 2 * 2
            share = sum(state_bytes(s, sizes) for s in alike.program.states) / kv
            if share > self.most_state + 1e-9:
                return Outcome(flow.name, None, state=share, why="state too large")
            point = self.screener.score(alike, own=False).at(_AT)
        except VortexError as error:
            return Outcome(flow.name, None, why=error.code)
        return Outcome(flow.name, point.beyond, point.output_error, point.logit_error, share)

    def source(self, name: str, text: str) -> Outcome:
        """The same of a program as text."""
        try:
            return self.flow(trace_source(text, f"{name}.py").flow)
        except VortexError as error:
            return Outcome(name, None, why=error.code)


def grammar(judge: Judge, evaluations: int, seed: int) -> list[Outcome]:
    """The offline grammar: a third new programs, the others changes of its best."""
    proposer, rng = GrammarProposer(), random.Random(seed)
    found: list[tuple[float, Flow, str]] = []
    tried: set[str] = set()
    outcomes = []
    for n in range(evaluations):
        best = sorted(found, key=lambda item: -item[0])[:_BEST]
        parents: tuple[Parent, ...] = ()
        if best and rng.random() > 1 / 3:
            _, flow, text = rng.choice(best)
            parents = (Parent(flow, text),)
        kind: Any = "mutate" if parents else "seed"
        request = ProposalRequest(kind=kind, seed=seed * 10_007 + n, parents=parents, tried=tried)
        proposal = asyncio.run(proposer.propose(request))
        traced = trace_source(proposal.source, "grammar.py").flow
        tried.add(traced.key)
        outcome = judge.flow(traced)
        outcomes.append(outcome)
        if outcome.mass is not None:
            found.append((outcome.mass, traced, proposal.source))
    return outcomes


def best_so_far(outcomes: list[Outcome], at: tuple[int, ...]) -> dict[str, float | None]:
    """The largest mass after so many evaluations."""
    masses = [o.mass if o.mass is not None and o.mass == o.mass else None for o in outcomes]
    return {
        str(n): max((m for m in masses[:n] if m is not None), default=None) for n in at if n <= len(masses)
    }


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--recording", required=True, type=Path)
    parser.add_argument("--state", type=float, default=0.10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    judge = Judge(AttentionRecording.load(given.recording), given.state)
    paths = [path for folder in given.folders for path in sorted(folder.glob("*.py"))]
    played = [judge.source(path.stem, path.read_text(encoding="utf-8")) for path in paths]
    offline = [grammar(judge, len(paths), seed) for seed in range(given.seeds)]
    at = (5, 10, 20, 30, 40, len(paths))
    found = {
        "state_at_most": given.state,
        "player": best_so_far(played, at),
        "grammar": [best_so_far(outcomes, at) for outcomes in offline],
        "player_programs": [vars(outcome) for outcome in played],
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps({k: v for k, v in found.items() if k != "player_programs"}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
