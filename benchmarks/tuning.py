"""What tuning of launch configurations gains on a GPU, by flow and shape.

    python -m benchmarks.tuning --out benchmarks/results
    python -m benchmarks.tuning --sweep

Each case is `vortex-search tune`: candidates must compute what the default does, and the default stays unless one is
faster by the margin every time. The result is stored, and the flow compiled again must run with it.

`--sweep` times attention alone over the lists of one selection under every cut that fits (`benchmarks/tuning_cuts.py`),
to choose defaults by (`vortex_core/kernels/decode/config.py`): nothing is stored. `--dry` checks cuts of small shapes
under Triton's interpreter and times nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks import needs
from benchmarks.kernels_timing import Report, copy_bandwidth, null_chain_time
from benchmarks.tuning_cuts import Sweep, sweep
from vortex_core import library
from vortex_core.compiler.triton.backend import TritonBackend
from vortex_core.compiler.triton.tuning.case import TuneCase
from vortex_core.compiler.triton.tuning.results import this_machine
from vortex_core.compiler.triton.tuning.tune import Result, tune
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.specs import load_model

CASES = (
    "block_topk:qwen3-8b:16x32768,quest:qwen3-8b:16x32768,block_topk:qwen3-8b:1x32768,"
    "quest:qwen3-8b:1x32768,snapkv:qwen3-8b:16x32768,rope_weighted_block_topk:glm-4.7-flash:32x32768"
)
SWEPT = (
    "block_topk:12/2:16x30720:16/256,block_topk:12/2:16x30720:16/512,block_topk:12/2:16x30720:16/1024,"
    "block_topk:12/2:16x30720:16/2048,block_topk:16/8:16x32768:64/2048"
)


@dataclass(frozen=True)
class Case:
    """`flow:model:BATCHxCONTEXT[:PAGE/BUDGET]`; `model` is a name or QUERY/KV heads of 128 channels."""

    flow: str
    model: str
    batch: int
    context: int
    page: int
    budget: int

    @classmethod
    def read(cls, text: str, page: int, budget: int) -> Case:
        """Raises `ValueError` for another text."""
        name, model, shape, *own = text.split(":")
        batch, context = map(int, shape.split("x"))
        if own:
            page, budget = map(int, own[0].split("/"))
        return cls(name, model, batch, context, page, budget)

    @property
    def geometry(self) -> Geometry:
        if "/" not in self.model:
            return load_model(self.model).geometry()
        q_heads, kv_heads = map(int, self.model.split("/"))
        return Geometry(1, kv_heads, q_heads // kv_heads, 128, 128, 128)

    def made(self, device: torch.device) -> TuneCase:
        """Its tensors."""
        traced = library.load(self.flow).with_knobs(page_size=self.page, budget=str(self.budget))
        return TuneCase(traced.program, traced.knobs, self.geometry, self.batch, self.context, device)


def run(text: str, page: int, budget: int, seconds: float) -> tuple[dict[str, Any], Result]:
    """Tune one case; its row and the whole result."""
    case = Case.read(text, page, budget)
    batch, context, geometry = case.batch, case.context, case.geometry
    traced = library.load(case.flow).with_knobs(page_size=case.page, budget=str(case.budget))
    started = time.perf_counter()
    found = tune(
        traced.program, traced.knobs, geometry, batch=batch, context=context, seconds=seconds,
        report=lambda trial: None,
    )  # fmt: skip
    found.store()
    flow = TritonBackend().compile(traced.program, traced.knobs, geometry)
    read = flow.attention_config(batch, context // case.page, torch.bfloat16)
    assert read == found.tuned.config.attention, "the stored result is not what the flow runs with"
    outcomes = [trial.outcome.partition(":")[0] for trial in found.trials]
    row = {
        "case": text,
        "step_us": found.tuned.step_us,
        "gain": found.tuned.gain,
        "config": found.tuned.config.to_json(),
        "tried": sum(trial.us is not None for trial in found.trials),
        "rejected": [t.outcome for t in found.trials if t.outcome.startswith("rejected")],
        "untried": outcomes.count("no time left"),
        "seconds": time.perf_counter() - started,
    }
    return row, found


def swept(args: argparse.Namespace) -> None:
    """All cuts of attention in every case; `tuning_sweep.json` and `.md`, whole after each."""
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    report = Report(torch.cuda.get_device_name(), versions, copy_bandwidth())
    report.add("setting", null_us=null_chain_time(1))
    for text in (args.cases or SWEPT).split(","):
        started, case = time.perf_counter(), Case.read(text, args.page, args.budget)
        sweep(report, case.made(torch.device("cuda")), asdict(case))
        print(f"  {time.perf_counter() - started:.0f} s", flush=True)
        torch.cuda.empty_cache()
        report.write(args.out, "tuning_sweep")


def dry(args: argparse.Namespace) -> None:
    """Cuts of small shapes, checked and not timed."""
    for text in (args.cases or SWEPT).split(","):
        case = Case.read(text, args.page, args.budget)
        heads = "4/2" if "/" in case.model else case.model
        small = replace(case, model=heads, batch=2, context=12 * case.page, budget=5 * case.page)
        rows = Sweep(small.made(torch.device("cpu")), workers=4).rows(((16, 4), (32, 4)), timed=False)
        wrong = [row for row in rows if row["refused"]]
        print(text, f"{len(rows)} cuts", "correct" if not wrong else f"WRONG {wrong}", flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    found.add_argument(
        "--cases", help="flow:model:BATCHxCONTEXT[:PAGE/BUDGET], comma-separated; model: or QUERY/KV heads"
    )
    found.add_argument("--page", type=int, default=16)
    found.add_argument("--budget", type=int, default=2048)
    found.add_argument("--seconds", type=float, default=25.0, help="for each case")
    found.add_argument("--sweep", action="store_true", help="attention alone under every cut; stores nothing")
    found.add_argument("--dry", action="store_true", help="check cuts of small shapes under the interpreter")
    return found


def main() -> None:
    """Tune every case; print a line each and write `tuning.json`."""
    command_line = parser()
    args = command_line.parse_args()
    if args.dry:
        if os.environ.get("TRITON_INTERPRET") != "1":
            command_line.error("--dry needs TRITON_INTERPRET=1 in the environment")
        dry(args)
        return
    needs.gpus(command_line)
    if args.sweep:
        swept(args)
        return
    machine = this_machine()
    if machine is None:
        command_line.error("TRITON_INTERPRET is set: interpreted kernels have no time to tune")
    document: dict[str, Any] = {"machine": vars(machine), "cases": []}
    failed = False
    args.out.mkdir(parents=True, exist_ok=True)
    for case in (args.cases or CASES).split(","):
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
