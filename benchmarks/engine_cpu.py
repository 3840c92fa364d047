"""Decode speed of the embedded engine on this CPU: dense against transformers' generate, sparse against dense.

    python benchmarks/engine_cpu.py [--quick] [--json]

Every ratio is taken between neighbours in one process: rounds visit all contenders in turn, each round starting
with another one, and the interval is a bootstrap over rounds. Ratios of CPU time stand beside those of wall time:
they still mean something where other processes share the cores. The floor of a step is the bytes it must read
over the bandwidth that a plain sum reaches. Writes benchmarks/results/engine_cpu.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortex_core.engine.cores import wait_passively

if TYPE_CHECKING:
    from vortex_core.engine import Engine, Prompt
    from vortex_core.ir.knobs import Knobs

HERE = Path(__file__).parent
HF = "transformers"
DENSE = "dense"


@dataclass
class Contender:
    """One way to decode, at one context and batch."""

    name: str
    context: int
    batch: int
    floor_ms: float
    density: float = 1.0
    rounds: list[float] = field(default_factory=list)  # median milliseconds a step, by round
    cpu_rounds: list[float] = field(default_factory=list)  # milliseconds of CPU a step, all threads, by round

    @property
    def milliseconds(self) -> float:
        """Median over rounds of the median step."""
        return statistics.median(self.rounds)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast `name` is as `base`, with a 95% bootstrap interval over paired rounds."""

    name: str
    base: str
    context: int
    batch: int
    clock: str  # wall or cpu
    value: float
    low: float
    high: float


def paired_ratio(fast: Contender, base: Contender, clock: str) -> Ratio:
    """Median over rounds of base/fast."""
    import numpy as np

    if clock == "wall":
        ratios = np.array(base.rounds) / np.array(fast.rounds)
    else:
        ratios = np.array(base.cpu_rounds) / np.array(fast.cpu_rounds)
    draws = np.random.default_rng(0).integers(0, len(ratios), (4000, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), (0.025, 0.975))
    value = float(np.median(ratios))
    return Ratio(fast.name, base.name, fast.context, fast.batch, clock, value, float(low), float(high))


def read_bandwidth() -> float:
    """Bytes a second at which this process sums 256 MiB: the best of many tries."""
    import torch

    data = torch.ones(64 << 20)
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - started)
    return data.nbytes / best


class Transformers:
    """`generate` of the untouched model, its prompts prefilled beforehand."""

    def __init__(self, directory: str, dtype: Any) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, trust_remote_code=False
        ).eval()
        self.caches: list[Any] = []
        self.ids: Any = None

    def prefill(self, prompts: list[list[int]]) -> None:
        """Fill one cache a prompt with all tokens but the last."""
        import torch
        from transformers import DynamicCache

        self.ids = torch.tensor(prompts)
        self.caches = []
        with torch.inference_mode():
            for row in self.ids:
                cache = DynamicCache(config=self.model.config)
                self.model.model(input_ids=row[None, :-1], past_key_values=cache, use_cache=True)
                self.caches.append(cache)

    def steps(self, batch: int, count: int) -> tuple[list[float], float]:
        """Seconds between the tokens of one `generate` call on the first prompts, and CPU seconds a token."""
        import torch
        from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

        cache = DynamicCache(config=self.model.config)  # a copy: generate appends to it
        for i in range(self.model.config.num_hidden_layers):
            layers = [c.layers[i] for c in self.caches[:batch]]
            cache.update(torch.cat([x.keys for x in layers]), torch.cat([x.values for x in layers]), i)
        ids = self.ids[:batch]
        stamps: list[tuple[float, float]] = []

        class Stamp(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
            def __call__(self, _: Any, scores: Any) -> Any:
                stamps.append((time.perf_counter(), time.process_time()))
                return scores

        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=count + 1,
            min_new_tokens=count + 1,
            do_sample=False,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([Stamp()]),
        )
        return [b[0] - a[0] for a, b in pairwise(stamps)], (stamps[-1][1] - stamps[0][1]) / count


def engine_steps(engine: Engine, prompts: list[Prompt], count: int) -> tuple[list[float], float, float]:
    """Seconds of each step after the first, CPU seconds a step (forking included), and the density."""
    started = time.process_time()
    result = engine.decode(prompts, max_new_tokens=count + 1)
    cpu = (time.process_time() - started) / (count + 1)
    return result.step_seconds[1:], cpu, result.density


def floor_ms(engine: Engine, batch: int, tokens: float, bandwidth: float, state_bytes: float) -> float:
    """Milliseconds to read the weights once, `tokens` of K and V a sequence, and the page states."""
    spec, size = engine.spec, engine.dtype.itemsize
    weights = spec.weight_bytes_read_per_step(batch) / spec.weight_bytes() * spec.parameters * size
    kv = batch * tokens * 2 * spec.layers * spec.kv_heads * spec.head_dim * size
    return 1e3 * (weights + kv + batch * state_bytes) / bandwidth


def measure(
    engine: Engine,
    reference: Transformers,
    args: argparse.Namespace,
    bandwidth: float,
    say: Callable[[str], None],
) -> tuple[list[Contender], list[Ratio], dict[str, Any]]:
    """All contenders at every context and batch."""
    from vortex_core import library

    flows = {name: library.load(name) for name in args.flows}
    knobs: dict[str, Knobs] = {
        name: flow.knobs.with_(page_size=args.page_size, budget=str(args.budget))
        for name, flow in flows.items()
    }
    contenders: list[Contender] = []
    ratios: list[Ratio] = []
    swaps: dict[str, Any] = {}
    for context in args.contexts:
        token_ids = [prompt_ids(engine, context, seed) for seed in range(max(args.batches))]
        started = time.perf_counter()
        prompts = [engine.prefill(ids) for ids in token_ids]
        prefill = context * len(prompts) / (time.perf_counter() - started)
        say(f"context {context}: prefill {prefill:.0f} tokens/s")
        reference.prefill(token_ids)
        for batch in args.batches:
            here = [Contender(name, context, batch, 0.0) for name in (HF, DENSE, *flows)]
            for number in range(args.rounds):
                for c in here[number % len(here) :] + here[: number % len(here)]:
                    if c.name == HF:
                        seconds, cpu = reference.steps(batch, args.steps)
                        c.floor_ms = floor_ms(engine, batch, context, bandwidth, 0)
                    else:
                        flow = flows.get(c.name)
                        report = engine.load_flow(flow.program if flow else None, knobs.get(c.name))
                        swaps[c.name] = asdict(report)
                        seconds, cpu, c.density = engine_steps(engine, prompts[:batch], args.steps)
                        states = report.state_bytes / engine.cache.pool.slots * context
                        c.floor_ms = floor_ms(engine, batch, c.density * context, bandwidth, states)
                    c.rounds.append(1e3 * statistics.median(seconds))
                    c.cpu_rounds.append(1e3 * cpu)
                times = ", ".join(f"{c.name} {c.rounds[-1]:.1f} ms" for c in here)
                say(f"context {context} batch {batch} round {number + 1}/{args.rounds}: {times}")
            contenders += here
            for clock in ("wall", "cpu"):
                ratios.append(paired_ratio(here[1], here[0], clock))
                ratios += [paired_ratio(c, here[1], clock) for c in here[2:]]
        for prompt in prompts:
            engine.release(prompt)
    return contenders, ratios, swaps


def prompt_ids(engine: Engine, length: int, seed: int) -> list[int]:
    """Random tokens: speed does not depend on them, and prefixes are not shared."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(100, engine.spec.vocab, (length,), generator=generator).tolist()


def machine() -> dict[str, Any]:
    """What ran this."""
    import torch
    import transformers

    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return {
        "cpu": names[0].split(":")[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load_average_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def to_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    m, s = report["machine"], report["settings"]
    lines = [
        "# Decode speed of the embedded engine on a CPU",
        "",
        (
            f"`python benchmarks/engine_cpu.py`, {m['date']}, commit {m['commit']}. {m['cpu']}, {m['cores']} cores, "
            f"{m['threads']} threads, load average {m['load_average_at_start']:.1f} at the start; torch {m['torch']}, "
            f"transformers {m['transformers']}. Model {s['model']} in {s['dtype']}; sparse: {s['budget']} tokens in "
            f"pages of {s['page_size']}. Median step of {s['rounds']} interleaved rounds of {s['steps']} steps. "
            f"Floor: bytes a step must read at the measured {report['bandwidth'] / 1e9:.1f} GB/s."
        ),
        "",
        "| context | batch | | ms/step | CPU ms/step | tokens/s | floor ms | of the floor's speed | density |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for c in report["contenders"]:
        ms, cpu = statistics.median(c["rounds"]), statistics.median(c["cpu_rounds"])
        lines.append(
            f"| {c['context']} | {c['batch']} | {c['name']} | {ms:.1f} | {cpu:.1f} | {1e3 * c['batch'] / ms:.1f} "
            f"| {c['floor_ms']:.1f} | {c['floor_ms'] / ms:.0%} | {c['density']:.3f} |"
        )
    lines += [
        "",
        "| context | batch | speedup | clock | ratio | 95% interval |",
        "|---:|---:|---|---|---:|---|",
    ]
    for r in report["ratios"]:
        lines.append(
            f"| {r['context']} | {r['batch']} | {r['name']} over {r['base']} | {r['clock']} | {r['value']:.2f} "
            f"| {r['low']:.2f} to {r['high']:.2f} |"
        )
    lines += ["", "| hot swap | ms | state bytes |", "|---|---:|---:|"]
    lines += [f"| {n} | {1e3 * v['seconds']:.0f} | {v['state_bytes']} |" for n, v in report["swaps"].items()]
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", default="smollm2-135m")
    found.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    found.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096])
    found.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    found.add_argument("--flows", nargs="+", default=["streaming", "block_topk", "quest"])
    found.add_argument("--budget", type=int, default=256, help="tokens a sparse step attends")
    found.add_argument("--page-size", type=int, default=16)
    found.add_argument("--steps", type=int, default=12, help="timed steps in a round")
    found.add_argument("--rounds", type=int, default=7)
    found.add_argument("--threads", type=int, default=None)
    found.add_argument("--quick", action="store_true", help="one context and batch, three rounds")
    found.add_argument("--json", action="store_true", help="print the report as JSON")
    found.add_argument("--out", type=Path, default=HERE / "results", help="folder for engine_cpu.{json,md}")
    return found


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    args = parser().parse_args(argv)
    if args.quick:
        args.contexts, args.batches, args.rounds = [4096], [1], 3

    assert wait_passively(), "torch was imported too early"
    import torch
    import transformers

    from vortex_core.engine import Engine
    from vortex_core.engine.models.weights import resolve_model

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    dtype = getattr(torch, args.dtype)
    capacity = max(args.contexts) * (max(args.batches) + 1) + 4096
    engine = Engine.from_model(args.model, max_tokens=capacity, dtype=dtype, threads=args.threads)
    reference = Transformers(str(resolve_model(args.model).directory), dtype)
    bandwidth = read_bandwidth()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    about = machine()
    contenders, ratios, swaps = measure(engine, reference, args, bandwidth, say)
    report = {
        "machine": about,
        "settings": {k: v for k, v in vars(args).items() if k not in ("out", "json", "quick")},
        "bandwidth": bandwidth,
        "contenders": [asdict(c) for c in contenders],
        "ratios": [asdict(r) for r in ratios],
        "swaps": swaps,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "engine_cpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "engine_cpu.md").write_text(to_markdown(report))
    print(json.dumps(report, indent=1) if args.json else to_markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
