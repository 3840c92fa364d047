"""What tuning of launch configurations gains on a GPU, by flow and shape.

    python -m benchmarks.tuning --out benchmarks/results

Each case is `vortex-search tune`: candidates must compute what the default does, and the default stays unless one is
faster by the margin every time. The result is stored, and the flow compiled again must run with it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import needs
from vortex_core import library
from vortex_core.compiler.triton.backend import TritonBackend
from vortex_core.compiler.triton.tuning.results import this_machine
from vortex_core.compiler.triton.tuning.tune import Result, tune
from vortex_core.errors import VortexError
from vortex_core.specs import load_model

CASES = (
    "block_topk:qwen3-8b:16x32768,quest:qwen3-8b:16x32768,block_topk:qwen3-8b:1x32768,"
    "quest:qwen3-8b:1x32768,snapkv:qwen3-8b:16x32768,rope_weighted_block_topk:glm-4.7-flash:32x32768"
)


def run(case: str, page: int, budget: int, seconds: float) -> tuple[dict[str, Any], Result]:
    """Tune one case; its row and the whole result."""
    name, model, shape = case.split(":")
    batch, context = map(int, shape.split("x"))
    traced = library.load(name).with_knobs(page_size=page, budget=str(budget))
    geometry = load_model(model).geometry()
    started = time.perf_counter()
    found = tune(
        traced.program, traced.knobs, geometry, batch=batch, context=context, seconds=seconds,
        report=lambda trial: None,
    )  # fmt: skip
    found.store()
    flow = TritonBackend().compile(traced.program, traced.knobs, geometry)
    read = flow.attention_config(batch, context // page, torch.bfloat16)
    assert read == found.tuned.config.attention, "the stored result is not what the flow runs with"
    outcomes = [trial.outcome.partition(":")[0] for trial in found.trials]
    row = {
        "case": case,
        "step_us": found.tuned.step_us,
        "gain": found.tuned.gain,
        "config": found.tuned.config.to_json(),
        "tried": sum(trial.us is not None for trial in found.trials),
        "rejected": [t.outcome for t in found.trials if t.outcome.startswith("rejected")],
        "untried": outcomes.count("no time left"),
        "seconds": time.perf_counter() - started,
    }
    return row, found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    found.add_argument("--cases", default=CASES, help="flow:model:BATCHxCONTEXT, comma-separated")
    found.add_argument("--page", type=int, default=16)
    found.add_argument("--budget", type=int, default=2048)
    found.add_argument("--seconds", type=float, default=25.0, help="for each case")
    return found


def main() -> None:
    """Tune every case; print a line each and write `tuning.json`."""
    command_line = parser()
    args = command_line.parse_args()
    needs.gpus(command_line)
    machine = this_machine()
    if machine is None:
        command_line.error("TRITON_INTERPRET is set: interpreted kernels have no time to tune")
    document: dict[str, Any] = {"machine": vars(machine), "cases": []}
    failed = False
    args.out.mkdir(parents=True, exist_ok=True)
    for case in args.cases.split(","):
        try:
            row, found = run(case, args.page, args.budget, args.seconds)
            document["cases"].append({**row, "result": found.to_json()})
            print("ROW", json.dumps(row), flush=True)
        except (VortexError, RuntimeError, AssertionError) as error:  # the other cases stand for themselves
            failed = True
            document["cases"].append({"case": case, "error": str(error)})
            print("FAILED", case, type(error).__name__, error, flush=True)
        torch.cuda.empty_cache()
        (args.out / "tuning.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if failed:
        command_line.exit(1)


if __name__ == "__main__":
    main()
