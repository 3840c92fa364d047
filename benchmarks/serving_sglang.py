"""Decode throughput and token parity inside SGLang: its own backends and this project's plug-in, in turn.

    python -m benchmarks.serving_sglang --model qwen3-1.7b --sets 16x8192 16x16384 16x32000 64x8192 \
        --dense fa3,flashinfer --flows block_topk,quest --out benchmarks/results

Runs in SGLang's environment (docs/serving.md) on one GPU, or on several with --tp. Weights are SGLang's dummies:
only time means anything, and equal answers mean little unless --weights names a model. Engines take most of a GPU's
memory, so each arm has processes of its own, and `--rounds` interleaves the arms. Prompts are prefilled once an
engine and stay in the prefix cache; a step's time is the difference of two generations over the difference of their
lengths (--lengths; the host's jitter is divided by it, so short ones are noisy: the table shows the spread). P50 and
P95 are over the gaps between streamed tokens of every sequence.

Answers are compared with those of the fastest dense arm. SGLang's dummy weights answer much the same whatever is
attended; --normal-weights makes answers depend on it, and tokens route to many experts.
`--ahead N` starts the processes of the next N arms early and holds them off the GPU until their turn, `--random-kv`
fills prompts with random keys and values instead of computing them (benchmarks/serving_held.py). `of the floor` is
computed: the step that would be left if dense attention lost exactly the time of the bytes not read, at the
bandwidth given by --bandwidth (or a copy's, where it is known of the GPU), over the step measured. `--profile` also
records each arm's kernels at each shape, after its timing, and writes where a step's time goes
(benchmarks/serving_profile.py).

Every shape is written as soon as it is measured, and a run with the same options goes on where the one before it in the
same folder ended (`--anew`: from the start): arms whose shapes are all there are not started.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import needs, serving_held, serving_profile
from benchmarks.serving_shapes import (
    CPU_VARIABLES,
    GLM,
    MIXTURES,
    MODELS,
    NOTES,
    kv_bytes_per_token,
    write_config,
)
from benchmarks.serving_speedups import COPY_BANDWIDTH, Saved, density_since, table
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.serving.bundle import write_flow
from vortex_core.serving.client import EngineProcess
from vortex_core.serving.settings import Settings

STREAMED = 64  # new tokens of the generation whose answers are compared
PROFILED = 17  # new tokens of the generation whose kernels are recorded
# Some hosts must not use NVLink multicast; nothing here needs it.
QUIET = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}


def prompts(batch: int, length: int, vocabulary: int) -> list[list[int]]:
    """Seeded random token ids."""
    return [random.Random(1000 + i).choices(range(10, vocabulary), k=length) for i in range(batch)]


def measure(
    engine: EngineProcess, vocabulary: int, batch: int, context: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Step time at one shape, the gaps between streamed tokens, and those tokens."""
    few, many = args.lengths
    before = engine.status or {}
    ids = prompts(batch, context, vocabulary)
    prefill = engine.generate(ids, 1).seconds
    streamed = engine.stream(ids, STREAMED)  # also warms what this batch runs
    gaps = sorted(streamed.gaps[batch:])  # the first step of each may wait for prefills
    steps, cached = [], []
    for _ in range(args.repeats):
        short, long = engine.generate(ids, few), engine.generate(ids, many)
        steps.append((long.seconds - short.seconds) / (many - few) * 1e3)
        cached.append(min(short.cached))
    ms = statistics.median(steps)
    return {
        "batch": batch, "context": context, "ms_step": round(ms, 3), "tok_s": round(batch / ms * 1e3, 1),
        "all_ms": [round(step, 3) for step in steps], "cached_tokens": min(cached),
        "tpot_p50_ms": round(gaps[len(gaps) // 2] * 1e3, 3),
        "tpot_p95_ms": round(gaps[int(len(gaps) * 0.95)] * 1e3, 3),
        "prefill_s": round(prefill, 2), "density": density_since(before, engine.status or {}),
        "tokens": streamed.tokens,
    }  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One configuration at its shapes (batch, context). `settings` None is SGLang's own attention."""

    name: str
    options: dict[str, Any]
    settings: Settings | None
    sets: tuple[tuple[int, int], ...]


@dataclass
class Run:
    """One arm in one round. `gate`: the file that lets its processes on to the GPU. `before`: what an earlier call of
    this program found."""

    arm: Arm
    log: Path
    folder: Path
    gate: Path | None
    before: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the arm and the round."""
        return self.log.stem

    @property
    def left(self) -> list[tuple[int, int]]:
        """Shapes that were not measured."""
        there = {(row["batch"], row["context"]) for row in self.before.get("results", ())}
        return [shape for shape in self.arm.sets if shape not in there]

    def start(self, args: argparse.Namespace) -> EngineProcess:
        """The engine, once it is up."""
        variables = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", **QUIET}
        if args.device == "cpu":
            variables |= CPU_VARIABLES
        if self.gate is not None or args.random_kv or args.normal_weights:
            variables |= serving_held.install(
                self.folder, gate=self.gate, random_kv=args.random_kv, normal=args.normal_weights
            )
        gate = self.gate
        return EngineProcess(
            self.arm.options, self.arm.settings, variables=variables, start_limit=args.limit,
            held=None if gate is None else lambda: not gate.exists(),
        )  # fmt: skip


def profiled(engine: EngineProcess, arm: str, row: dict[str, Any], vocabulary: int, out: Path) -> str:
    """Record a generation's kernels at a row's shape; the trace goes beside the results. Returns a table."""
    batch, context = row["batch"], row["context"]
    folder = out / "traces" / f"{arm.replace(':', '-').replace(' ', '-')}-{batch}x{context}"
    ids = prompts(batch, context, vocabulary)
    engine.flush()
    engine.generate(ids, 1)
    traces = engine.profile(ids, PROFILED, folder.absolute())
    try:
        step = serving_profile.read(traces)
    except ValueError as error:
        return f"## {arm}, {batch} x {context:,}\n\nnot profiled: {error}\n"
    row["profile"] = {"period_ms": step.period_us / 1e3, "busy_ms": step.busy_us / 1e3,
                      "attention_ms": step.matching(serving_profile.ATTENTION) / 1e3}  # fmt: skip
    return serving_profile.page(arm, batch, context, step)


def await_file(path: Path | None) -> None:
    """Wait until the file is there, if one is named."""
    while path is not None and not path.exists():
        time.sleep(0.1)


Keep = Callable[[Run, dict[str, Any]], None]


def run_all(runs: list[Run], args: argparse.Namespace, keep: Keep) -> None:
    """Do the runs in turn; up to `--ahead` later ones are starting meanwhile, held at their gates."""
    with ThreadPoolExecutor(max_workers=args.ahead + 1) as pool:
        starting = [pool.submit(run.start, args) for run in runs[: args.ahead]]
        await_file(args.after)
        for at, run in enumerate(runs):
            if at + args.ahead < len(runs):
                starting.append(pool.submit(runs[at + args.ahead].start, args))
            if run.gate is not None:
                run.gate.touch()
            measured(run, starting[at], args, keep)


def measured(run: Run, starting: Future[EngineProcess], args: argparse.Namespace, keep: Keep) -> None:
    """Measure what is left of one run; `keep` is told what there is after every shape, and at a failure."""
    arm = run.arm
    found: dict[str, Any] = {"arm": arm.name, "results": [], **run.before}
    found.pop("failure", None)
    vocabulary = json.loads((Path(arm.options["model_path"]) / "config.json").read_text())["vocab_size"]
    began = time.perf_counter()
    try:
        with starting.result() as engine:
            found |= engine.facts | {"waited_s": round(time.perf_counter() - began, 1)}
            print(f"{arm.name}: up, waited {found['waited_s']} s", flush=True)
            try:
                last, new = None, []
                for batch, context in run.left:
                    if last not in (None, context):
                        engine.flush()
                    last = context
                    row = measure(engine, vocabulary, batch, context, args)
                    new.append(row)
                    found["results"].append(row)
                    found["status"] = engine.status
                    keep(run, found)
                    shown = {k: v for k, v in row.items() if k != "tokens"}
                    print(f"{arm.name}: {json.dumps(shown)}", flush=True)
                if args.profile:  # after all timing: it may cost the engine
                    for row in new:
                        page = profiled(engine, arm.name, row, vocabulary, args.out)
                        found.setdefault("pages", []).append(page)
            finally:
                found["status"] = engine.status
                run.log.write_bytes(engine.log.read_bytes())
    except VortexError as error:
        found["failure"] = str(error)
        print(f"{arm.name}: {error}", flush=True)
    keep(run, found)


def arms_of(args: argparse.Namespace, folder: Path) -> list[Arm]:
    """The arms of one round."""
    sets = shapes(args.sets)
    batches = sorted({batch for batch, _ in sets})
    limit = max(context for _, context in sets) + 1024
    options: dict[str, Any] = {
        "model_path": str(write_config(args.model, folder, limit)), "skip_tokenizer_init": True,
        "load_format": "dummy", "grammar_backend": "none", "sampling_backend": "pytorch", "random_seed": 0,
        "log_level": "info", "page_size": args.page, "context_length": limit, "tp_size": args.tp,
        "max_running_requests": max(batches), "watchdog_timeout": 1200, "decode_log_interval": 64,
        "mem_fraction_static": args.memory, "disable_prefill_cuda_graph": True,
    }  # fmt: skip
    if args.weights:
        options |= {"model_path": str(args.weights), "load_format": "auto"}
    if args.device == "cpu":
        options |= {"device": "cpu", "dtype": "float32", "disable_cuda_graph": True, "max_total_tokens": 8192}
        del options["mem_fraction_static"], options["disable_prefill_cuda_graph"]
    else:
        options["cuda_graph_bs_decode"] = batches  # others would only lengthen the start
    if args.model == GLM:
        options |= {"chunked_prefill_size": 32768, "max_prefill_tokens": 32768}
    if args.tp > 1:  # NCCL alone, as not every host allows the others; the same for all arms
        options |= {"disable_custom_all_reduce": True, "enforce_disable_flashinfer_allreduce_fusion": True}
    if args.kv_dtype:
        options["kv_cache_dtype"] = args.kv_dtype
    found = []
    for name, _, only in (word.partition("@") for word in filter(None, args.dense.split(","))):
        own = {"attention_backend": name}
        if args.prefill and name != args.prefill:
            own = {"prefill_attention_backend": args.prefill, "decode_attention_backend": name}
        found.append(Arm(f"dense:{name}", options | own, None, shapes([only]) if only else sets))
    flows = [(f, f, args.budget) for f in filter(None, args.flows.split(","))]
    if args.parity:
        flows += [("dense", "dense", args.budget), ("block_topk everything", "block_topk", str(limit))]
    for label, flow, budget in flows:
        traced = library.resolve(flow).with_knobs(page_size=args.page, budget=budget)
        bundle = traced.flow
        path = str(write_flow(bundle, folder / f"{bundle.key}.json"))
        settings = Settings(path, args.prefill, crossover=args.crossover)
        found.append(Arm(f"vortex:{label}", options | {"attention_backend": "vortex"}, settings, sets))
    return found


def shapes(pairs: list[str]) -> tuple[tuple[int, int], ...]:
    """`BATCHxCONTEXT` as numbers: equal contexts together, the largest batch of each first, as it prefills for all."""
    read = (pair.split("x") for pair in pairs)
    return tuple(sorted(((int(b), int(c)) for b, c in read), key=lambda s: (s[1], -s[0])))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", default="qwen3-1.7b", choices=MODELS)
    found.add_argument("--weights", type=Path, help="model directory to load instead of dummy weights")
    found.add_argument("--sets", nargs="+", default=["16x32000"], metavar="BATCHxCONTEXT")
    found.add_argument(
        "--dense", default="fa3", help="SGLang backends to compare with; NAME@SET: at that set only"
    )
    found.add_argument("--flows", default="block_topk,quest")
    found.add_argument("--budget", default="2048", help="tokens, or an expression")
    found.add_argument("--page", type=int, default=16)
    found.add_argument("--prefill", help="SGLang backend that prefills every arm")
    found.add_argument("--memory", type=float, default=0.86, help="--mem-fraction-static")
    found.add_argument("--tp", type=int, default=1)
    found.add_argument("--kv-dtype", help="--kv-cache-dtype of every arm, e.g. fp8_e4m3")
    found.add_argument("--rounds", type=int, default=1)
    found.add_argument("--repeats", type=int, default=2)
    found.add_argument(
        "--lengths", type=int, nargs=2, default=(33, 161), help="new tokens of the two generations"
    )
    found.add_argument(
        "--crossover",
        help="BATCHxTOKENS,... below which flows attend to everything, or off; as measured on the machine by default",
    )
    found.add_argument("--parity", action="store_true", help="also arms that attend to everything")
    found.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    found.add_argument(
        "--limit", type=float, default=900, help="seconds an engine may take to start, once it may"
    )
    found.add_argument("--ahead", type=int, default=0, help="arms whose processes start before their turn")
    found.add_argument(
        "--after", type=Path, metavar="FILE", help="leave the GPU alone until this file is there"
    )
    found.add_argument("--profile", action="store_true", help="also where a step's time goes, by kernel")
    found.add_argument("--random-kv", action="store_true", help="prompts of random K and V, not computed")
    found.add_argument(
        "--normal-weights", action="store_true", help="drawn as for training, not SGLang's dummies"
    )
    found.add_argument(
        "--bandwidth", type=float, help="bytes/s, for a sparse step's floor; known of some GPUs"
    )
    found.add_argument("--anew", action="store_true", help="measure again what is there")
    found.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return found


def main() -> int:
    """Run every arm `--rounds` times, in turn; write `serving_sglang.json` and `.md`. 1 if an arm failed."""
    command_line = parser()
    args = command_line.parse_args()
    if args.profile and args.device == "cpu":
        command_line.error("--profile records GPU kernels; leave it out with --device cpu")
    needs.sglang(command_line)
    if args.device == "cuda":
        needs.gpus(command_line, args.tp)
    args.bandwidth = args.bandwidth or COPY_BANDWIDTH.get(device_name(args))
    args.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        planned = arms_of(args, folder)
        runs = []
        for round_ in range(args.rounds):
            for arm in planned if round_ % 2 == 0 else planned[::-1]:
                name = f"{arm.name.replace(':', '-').replace(' ', '-')}-{round_}"
                gate = folder / f"{name}.gate" if args.ahead else None
                log = args.out / f"serving_sglang-{name}.log"
                runs.append(Run(arm, log, folder / f"{name}.site", gate, journal.of(log.stem)))
        saved = saved_bytes(args, planned[0])

        def keep(run: Run, found: dict[str, Any]) -> None:
            journal.keep(run.name, found)
            write(args, journal.arms, saved)

        run_all([run for run in runs if run.left], args, keep)
        print(write(args, journal.arms, saved))
    return int(any("failure" in arm for arm in journal.arms))


class Journal:
    """What arms found, whole, beside the results: `serving_sglang_arms.json`."""

    def __init__(self, args: argparse.Namespace) -> None:
        free = (
            "out",
            "anew",
            "sets",
            "dense",
            "flows",
            "rounds",
            "ahead",
            "after",
            "limit",
            "profile",
            "bandwidth",
        )
        options = {name: str(value) for name, value in vars(args).items() if name not in free}
        # Room for the longest sequence is part of every captured step.
        options["longest"] = str(max(context for _, context in shapes(args.sets)))
        self._path = args.out / "serving_sglang_arms.json"
        self._data: dict[str, Any] = {"options": options, "device": device_name(args), "runs": {}}
        if not args.anew and self._path.exists():
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if all(found.get(name) == self._data[name] for name in ("options", "device")):
                self._data = found

    @property
    def arms(self) -> list[dict[str, Any]]:
        """Of all runs, in the order in which they first had a result."""
        return list(self._data["runs"].values())

    def of(self, run: str) -> dict[str, Any]:
        """What there is of a run."""
        return dict(self._data["runs"].get(run, {}))

    def keep(self, run: str, found: dict[str, Any]) -> None:
        """Take what a run has found so far in place of what it had."""
        self._data["runs"][run] = found
        self._path.write_text(json.dumps(self._data) + "\n", encoding="utf-8")


def write(args: argparse.Namespace, arms: list[dict[str, Any]], saved: Saved) -> str:
    """`serving_sglang.json` and `.md` of what there is; the table."""
    rows, text = table(arms, saved, meaningful=not args.random_kv)
    data = {
        "model": args.model, "device": device_name(args), "versions": versions(arms), "tp": args.tp,
        "note": note(args), "random_kv": args.random_kv, "bandwidth": args.bandwidth, "rows": rows,
        "failures": {a["arm"]: a["failure"] for a in arms if "failure" in a},
        "start_s": {a["arm"]: a.get("start_s") for a in arms},
    }  # fmt: skip
    (args.out / "serving_sglang.json").write_text(json.dumps(data, indent=2) + "\n")
    head = f"{args.model}, {data['device']} x {args.tp}, page {args.page}; {data['note']}"
    (args.out / "serving_sglang.md").write_text(f"{head}\n\n{text}\n")
    pages = [page for arm in arms for page in arm.get("pages", ())]
    if pages:
        (args.out / "serving_sglang_kernels.md").write_text("\n".join([f"{head}\n", *pages]))
    return text


def saved_bytes(args: argparse.Namespace, arm: Arm) -> Saved:
    """What dense attention reads of a token."""
    config = json.loads((Path(arm.options["model_path"]) / "config.json").read_text())
    element = 1 if (args.kv_dtype or "").startswith("fp8") else 2
    layers = int(config["num_hidden_layers"])
    return Saved(kv_bytes_per_token(config, element, args.tp), layers, args.bandwidth, sum(args.lengths) / 2)


def note(args: argparse.Namespace) -> str:
    """What to keep in mind beside the figures."""
    if args.weights:
        notes = [f"weights from {args.weights.name}"]
    elif args.normal_weights:
        notes = ["random weights: N(0, 0.02^2), norms 1", *NOTES.get(args.model, ())]
    else:
        notes = ["dummy weights", *NOTES.get(args.model, ())]
        if args.model in MIXTURES:
            notes.append("they route to few experts: absolute tok/s is optimistic, speed-ups are overstated")
    return "; ".join([*notes, "random keys and values"] if args.random_kv else notes)


def device_name(args: argparse.Namespace) -> str:
    """The GPU, or the CPU of a trial run."""
    import torch

    return torch.cuda.get_device_name() if args.device == "cuda" and torch.cuda.is_available() else "CPU"


def versions(arms: list[dict[str, Any]]) -> dict[str, str]:
    """Of what ran."""
    import torch
    import triton

    found = {"torch": torch.__version__, "triton": triton.__version__}
    return found | {"sglang": next((a["sglang"] for a in arms if "sglang" in a), "did not start")}


if __name__ == "__main__":
    raise SystemExit(main())
