r"""The cost model beside measurements: python -m benchmarks.modelled --model smollm2-135m --out benchmarks/results

Times library flows against dense attention through the evaluators' stage `decode`, models the same steps on the same
GPU, and states the model's error: of speed-ups as it stands, and of step times after its parts (bytes of weights and
KV, of states and scores, launches) were fitted to one half of the programs and asked about the other half.

    python -m benchmarks.modelled --model glm-4.7-flash --random-weights --contexts 4096,16384 --batch 16
    python -m benchmarks.modelled --run RUN --out runs/RUN

With `--run` the steps are those that a campaign has measured already: of its library flows and found programs.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from scipy.stats import spearmanr

from benchmarks import needs
from evaluators.device import device_kind
from evaluators.plan import EvaluationPlan, load_plan
from evaluators.results import StageResult
from evaluators.roofline import described_gpu
from evaluators.worker import EvaluationWorker
from search.log.run import open_run, read_state
from vortex_core import library
from vortex_core.engine.models.weights import describe_model
from vortex_core.errors import VortexError
from vortex_core.ir.flow import Flow
from vortex_core.ir.modelled import modelled_decode
from vortex_core.specs import GpuSpec, ModelSpec, load_gpu

FLOWS = (
    "block_topk,quest,streaming,nsa,value_energy,lserve_centroid,twilight,rocketkv,moba,infllm,tova,shadowkv"
)
# What a fitted step is the sum of; each is the model's own seconds, times one number for all programs.
PARTS = {
    "streams": ("weights", "kv"),
    "indexing": ("states", "other", "compute"),
    "launches": ("launches",),
    "layers": ("layers",),
}


@dataclass(frozen=True)
class Row:
    """One flow at one operating point; milliseconds of a step.

    Attributes:
        parts: the modelled step by `PARTS`.
        low, high: interval of the measured speed-up.
    """

    flow: str
    page_size: int
    budget: str
    context: int
    batch: int
    measured_ms: float
    modelled_ms: float
    measured: float
    low: float | None
    high: float | None
    modelled: float
    density: float
    parts: dict[str, float]


def plan_of(args: argparse.Namespace) -> EvaluationPlan:
    """The plan `gpu` with the operating points of the command line and its one stage; nothing is answered."""
    data = load_plan("gpu").model_dump(mode="json")
    data["decode"] |= {"contexts": args.contexts, "rounds": args.rounds, "batch": args.batch or "auto"}
    tasks = [{"task": "needle_single", "context": context, "items": 1} for context in args.contexts]
    data["accuracy"] |= {"tasks": tasks}
    data["perplexity"] |= {"context": min(args.contexts), "items": 1}
    return EvaluationPlan.model_validate(data | {"reads": None, "stages": ["decode"]})


def flows(args: argparse.Namespace) -> list[Flow]:
    """Every flow at every page size and budget."""
    return [
        library.load(name).with_knobs(page_size=page, budget=budget)
        for name in args.flows.split(",")
        for page in args.pages
        for budget in args.budgets.split(",")
    ]


def measure(worker: EvaluationWorker, flow: Flow, gpu: GpuSpec) -> list[Row]:
    """Both numbers at every operating point; none where the flow cannot run here."""
    result = worker.run("decode", flow)
    if not result.passed:
        assert result.failure is not None
        print(f"  {flow.name}: {result.failure.error['code']} {result.failure.error['message']}", flush=True)
        return []
    return rows_of(flow, result, worker.speed.engine.spec, gpu)


def of_run(
    name: str, gpu_name: str | None, model_name: str | None = None
) -> tuple[list[Row], ModelSpec, GpuSpec, dict[str, str]]:
    """What a campaign measured, its model, the GPU as modelled, and the versions that it ran with.

    Args:
        model_name: where the model lies that the run names by a folder of another machine.

    Raises:
        ValueError: the run says of no GPU that is described, or measured nothing.
    """
    with open_run(name, readonly=True) as run:
        state = read_state(run)
        started = state.started
        if started is None:
            raise ValueError(f"run {name} has not begun")
        model = describe_model(model_name or str(started.settings["model"]))
        device = next(iter(started.machine.get("gpus", ())), "")
        gpu = load_gpu(gpu_name) if gpu_name else described_gpu(device)
        if gpu is None:
            raise ValueError(
                f"{device or 'no GPU'} is not in configs/hardware: name what to model with --gpu"
            )
        rows = []
        for candidate in state.candidates.values():
            flow = candidate.flow(run.files)
            for result in candidate.stages("search"):
                if result.stage == "decode" and result.passed and not candidate.is_dense:
                    rows += rows_of(replace(flow, name=candidate.key), result, model, gpu)
    if not rows:
        raise ValueError(f"run {name} measured no step")
    return rows, model, gpu, dict(started.versions)


def rows_of(flow: Flow, result: StageResult, model: ModelSpec, gpu: GpuSpec) -> list[Row]:
    """What the stage `decode` measured beside the model, at every operating point."""
    found = []
    for context, point in result.info["points"].items():
        modelled = modelled_decode(flow.program, flow.knobs, model, gpu, point["batch"], int(context))
        speedup = result.metrics[f"decode_speedup@{context}"]
        found.append(
            Row(
                flow.name, flow.knobs.page_size, flow.knobs.budget, int(context), point["batch"],
                point["step_ms_p50"], modelled.seconds_per_step * 1e3, speedup.value, speedup.low, speedup.high,
                modelled.speedup, point["density"],
                {name: 1e3 * sum(modelled.parts[p] for p in parts) for name, parts in PARTS.items()},
            )
        )  # fmt: skip
    return found


def errors(ratios: Sequence[float]) -> dict[str, float]:
    """Of modelled over measured: the bias, the typical and the worst error, as factors."""
    logs = [math.log(r) for r in ratios]
    return {
        "bias": math.exp(statistics.fmean(logs)),
        "typical": math.exp(math.sqrt(statistics.fmean(x * x for x in logs))),
        "worst": math.exp(max(map(abs, logs))),
    }


def unseen(rows: Sequence[Row]) -> tuple[dict[str, float], dict[str, float]]:
    """Errors of fitted step times on programs that the fit has not seen (two halves, each predicted from the other),
    and the factors of a fit to all."""
    names = sorted({row.flow for row in rows})
    ratios = []
    for half in (0, 1):
        seen = [row for row in rows if names.index(row.flow) % 2 == half]
        others = [row for row in rows if names.index(row.flow) % 2 != half]
        if seen and others:
            factors = fit(seen)
            ratios += [_predicted(row, factors) / row.measured_ms for row in others]
    return (errors(ratios) if ratios else {}), dict(zip(PARTS, map(float, fit(rows)), strict=True))


def fit(rows: Sequence[Row]) -> np.ndarray:
    """One factor a part, none negative, least squares of relative errors."""
    table = np.array([[row.parts[part] / row.measured_ms for part in PARTS] for row in rows])
    factors: np.ndarray = nnls(table, np.ones(len(rows)))[0]
    return factors


def _predicted(row: Row, factors: np.ndarray) -> float:
    return max(1e-9, float(sum(f * row.parts[part] for f, part in zip(factors, PARTS, strict=True))))


def page(data: dict[str, Any]) -> str:
    """The result as Markdown."""
    raw, held = data["speedup_error"], data["unseen_error"]
    about = (
        f"{data['date']}. {data['model']}, {data['device']}, modelled as {data['gpu']}; torch {data['torch']}. "
        "Measured and modelled speed-ups over dense, each against its own dense step; intervals are Student's over "
        "rounds."
    )
    found = (
        f"Modelled over measured speed-up: bias {raw['bias']:.2f}x, typical error {raw['typical']:.2f}x, worst "
        f"{raw['worst']:.2f}x; rank correlation {data['rank_correlation']:.2f}."
    )
    lines = ["# The cost model beside measurements", "", about, "", f"`{data['command']}`", "", found]
    if held:
        factors = ", ".join(f"{name} {value:.2f}" for name, value in data["factors"].items())
        lines.append(
            f"Step times after a fit, on programs it has not seen: bias {held['bias']:.2f}x, typical "
            f"{held['typical']:.2f}x, worst {held['worst']:.2f}x. Factors of a fit to all: {factors}."
        )
    lines += [
        "",
        "| flow | page | budget | batch x context | density | step ms | modelled ms | measured | modelled |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in data["rows"]:
        span = "" if r["low"] is None else f" [{r['low']:.2f}, {r['high']:.2f}]"
        lines.append(
            f"| {r['flow']} | {r['page_size']} | {r['budget']} | {r['batch']} x {r['context']} | {r['density']:.3f} "
            f"| {r['measured_ms']:.3f} | {r['modelled_ms']:.3f} | {r['measured']:.2f}x{span} | {r['modelled']:.2f}x |"
        )
    return "\n".join([*lines, ""])


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", help="smollm2-135m by default; of a run, that of the run")
    found.add_argument("--random-weights", action="store_true")
    found.add_argument("--device", default="auto")
    found.add_argument("--run", help="a campaign whose measured steps to model, instead of measuring some")
    found.add_argument("--gpu", help="name in configs/hardware; by default the GPU that measures")
    found.add_argument("--flows", default=FLOWS)
    found.add_argument("--pages", type=_integers, default=[16, 64])
    found.add_argument("--budgets", default="512,2048")
    found.add_argument("--contexts", type=_integers, default=[2048, 7680])
    found.add_argument("--batch", type=int, help="by default what fits, 16 at most")
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return found


def main() -> None:
    """Measure, model, compare; write `modelled.json` and `.md`."""
    command_line = parser()
    args = command_line.parse_args()
    rows: list[Row] = []
    if args.run:
        try:
            rows, spec, gpu, versions = of_run(args.run, args.gpu, args.model)
        except (ValueError, VortexError) as error:
            command_line.error(str(error))
        device, with_torch = gpu.product, versions["torch"]
    else:
        if args.gpu is None:
            needs.gpus(command_line)
        worker = EvaluationWorker(
            args.model or "smollm2-135m",
            plan_of(args),
            device=args.device,
            random_weights=args.random_weights,
        )
        spec, with_torch = worker.speed.engine.spec, torch.__version__
        device = device_kind(worker.speed.engine.device)
        described = load_gpu(args.gpu) if args.gpu else described_gpu(device)
        if described is None:
            command_line.error(f"{device} is not in configs/hardware: name what to model with --gpu")
        gpu = described
        for flow in flows(args):
            for row in measure(worker, flow, gpu):
                rows.append(row)
                print(
                    f"{row.flow} page {row.page_size} budget {row.budget} {row.batch} x {row.context}: measured "
                    f"{row.measured:.2f}x, modelled {row.modelled:.2f}x",
                    flush=True,
                )
        if not rows:
            command_line.error("no flow could be measured")
    held, factors = unseen(rows)
    rank = (
        spearmanr([r.measured for r in rows], [r.modelled for r in rows]).statistic
        if len(rows) > 2
        else math.nan
    )
    data = {
        "date": time.strftime("%Y-%m-%d"), "model": spec.name, "device": device,
        "gpu": gpu.product, "torch": with_torch,
        "command": shlex.join(["python", "-m", "benchmarks.modelled", *sys.argv[1:]]),
        "speedup_error": errors([r.modelled / r.measured for r in rows]), "rank_correlation": float(rank),
        "unseen_error": held, "factors": factors, "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "modelled.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (args.out / "modelled.md").write_text(page(data), encoding="utf-8")
    print(page(data))


if __name__ == "__main__":
    main()
