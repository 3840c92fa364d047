"""Recall of every library flow on the attention of a real model: python -m benchmarks.recall

Dense attention is recorded once over real prompts (needle questions and speeches); each flow then selects on the
recorded queries and keys at 5, 10 and 20 percent of the context, and is scored by the attention mass on what it
selected. All flows share one page size and the same always-kept pages, so that rows differ by their score
alone; flows whose algorithm fixes another page size are measured with that one too. Writes
benchmarks/results/recall.json and recall.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evaluators.bench import attention_scale
from evaluators.recall import RecallScore, Recorder, Recording, measure_recall
from evaluators.tasks.needle import needle_item
from evaluators.tasks.perplexity import HeldText, HeldTextParameters
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.engine import Engine
from vortex_core.engine.kv.pool import KVPool
from vortex_core.flow.trace import Traced
from vortex_core.geometry import Geometry

RATIOS = (0.05, 0.1, 0.2)
PAGE = 16
KEEP_FIRST, KEEP_LAST = 1, 2
NEEDLES, SPEECHES = (2048, 4096), (2048, 3072)  # prompt lengths in tokens
STEPS = 8


@dataclass(frozen=True)
class Row:
    """One flow at one budget.

    Attributes:
        flow: library name.
        page: tokens per page.
        ratio: budget as a share of the context.
        recall: dense attention mass on the selected pages, mean over sparse layers, query heads, prompts and steps.
        relative: recall over that of the best pages of the same number, chosen with hindsight per kv head.
        beyond: the same for the mass outside the always-kept pages: 0 is as good as keeping those alone.
        worst_layer: smallest mean recall of a layer.
        needle, text: recall on the two kinds of prompts.
        density: selected pages of all pages.
        state_share: bytes of page states per byte of bf16 KV.
        seconds: to select for all prompts, layers and steps on this machine, page states included.
    """

    flow: str
    page: int
    ratio: float
    recall: float
    relative: float
    beyond: float
    worst_layer: float
    needle: float
    text: float
    density: float
    state_share: float
    seconds: float


def record(
    model: str,
    threads: int,
    steps: int,
    needles: tuple[int, ...] = NEEDLES,
    speeches: tuple[int, ...] = SPEECHES,
) -> tuple[Recording, dict[str, Any]]:
    """Dense attention of prompts of these lengths, the needles first; and what was recorded."""
    contexts = (*needles, *speeches)
    engine = Engine.from_model(model, max_tokens=sum(contexts) + 512 * len(contexts), threads=threads)
    tokenizer = engine.tokenizer
    ids = [
        needle_item(tokenizer, task="needle_multikey", context=n, seed=0, index=i, distractors=3).prompt
        for i, n in enumerate(needles)
    ]
    ids += [
        HeldText().item(tokenizer, HeldTextParameters(context=n, continuation=steps), 0, i).prompt
        for i, n in enumerate(speeches)
    ]
    started = time.perf_counter()
    prompts = [engine.prefill(tokens) for tokens in ids]
    prefilled = time.perf_counter() - started
    recorder = Recorder(engine.geometry, steps, attention_scale(engine))
    engine.load_flow(None)
    # Greedy continuations, so that the queries of a needle prompt are those of its answer.
    result = engine.decode(prompts, max_new_tokens=steps, recorder=recorder)
    about = {
        "model": model,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "needles": list(needles),
        "speeches": list(speeches),
        "steps": steps,
        "prefill_seconds": round(prefilled, 1),
        "answers": [tokenizer.decode(t) for t in result.tokens[: len(needles)]],
    }
    return recorder.finish(), about


def kept(
    path: Path | None, make: Callable[[], tuple[Recording, dict[str, Any]]]
) -> tuple[Recording, dict[str, Any]]:
    """A recording from its file, or a new one, kept in that file."""
    if path is not None and path.exists():
        with torch.serialization.safe_globals([Recording, KVPool, Geometry]):  # and nothing else is unpickled
            found: tuple[Recording, dict[str, Any]] = torch.load(path, weights_only=True)
    else:
        found = make()
        if path is not None:
            torch.save(found, path)
    print(f"recorded: {found[1]}", flush=True)
    return found


def settings(traced: Traced, ratio: float, page: int) -> Traced:
    """The flow at one budget, with common pages; its own reuse of selections stays, and the dense layers it reads."""
    return traced.with_knobs(
        page_size=page,
        budget=f"{ratio:g} * length",
        keep_first=KEEP_FIRST,
        keep_last=KEEP_LAST,
        dense_layers=traced.knobs.dense_layers if traced.program.reads_dense_mass else (),
    )


def measure(
    flow: Traced, ratio: float, page: int, recording: Recording, kept: dict[int, torch.Tensor]
) -> Row:
    """One row. `kept`: mass on the always-kept pages alone, by page size, `[layer, q_head, prompt]`."""
    traced = settings(flow, ratio, page)
    compiled = backends.get("torch").compile(traced.program, traced.knobs, recording.geometry)
    started = time.perf_counter()
    score = measure_recall(compiled, recording)
    seconds = time.perf_counter() - started
    sparse = torch.tensor([i for i in range(recording.geometry.layers) if i not in traced.knobs.dense_layers])
    score = RecallScore(score.recall[sparse], score.oracle[sparse], score.density[sparse])
    floor = kept[page][sparse]
    room = (score.oracle - floor).mean()
    g = recording.geometry
    states = compiled.new_states(1, torch.device("cpu")).bytes_per_page()
    kv_bytes = page * g.kv_heads * (g.head_dim + g.value_dim) * 2
    return Row(
        flow.name,
        page,
        ratio,
        recall=float(score.recall.mean()),
        relative=float(score.recall.mean() / score.oracle.mean()),
        beyond=float((score.recall - floor).mean() / room) if room > 1e-6 else 1.0,
        worst_layer=float(score.recall.mean((1, 2)).min()),
        needle=float(score.recall[..., : len(NEEDLES)].mean()),
        text=float(score.recall[..., len(NEEDLES) :].mean()),
        density=float(score.density.mean()),
        state_share=states / kv_bytes,
        seconds=round(seconds, 2),
    )


def kept_mass(recording: Recording, page: int) -> torch.Tensor:
    """Mass on the always-kept pages, through the streaming flow at the smallest budget there is."""
    traced = settings(library.load("streaming"), 0.0, page)
    compiled = backends.get("torch").compile(traced.program, traced.knobs, recording.geometry)
    return measure_recall(compiled, recording).recall


def table(rows: list[Row], ratio: float) -> list[str]:
    """A markdown table of one budget, best first."""
    heads = [
        "flow",
        "page",
        "recall",
        "of oracle",
        "beyond kept",
        "worst layer",
        "needle",
        "text",
        "density",
        "state/KV",
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for r in sorted((r for r in rows if r.ratio == ratio), key=lambda r: -r.recall):
        numbers = (r.recall, r.relative, r.beyond, r.worst_layer, r.needle, r.text, r.density, r.state_share)
        lines.append(f"| {r.flow} | {r.page} | {' | '.join(f'{x:.3f}' for x in numbers)} |")
    return lines


_REPORT = """# Recall of the library on real attention

Measured; made by `python -m benchmarks.recall`. Model {model} ({dtype}), {layers} layers; needle questions of
{needles} tokens and speeches of {speeches} tokens, {steps} decode steps each, all layers and query heads.

Always kept, inside every budget: the first {first} and the last {last} pages. They alone hold {kept:.3f} of the
mass at page {page}.

- **recall**: share of dense attention mass on the selected pages.
- **of oracle**: recall over that of the best pages of the same number, chosen with hindsight per kv head.
- **beyond kept**: the same for the mass outside the always-kept pages; 0 is no better than those alone.
- **density**: selected pages of all. A variable count (twilight) or overlapping streams (shadowkv, whose two shares
  are rounded up) make it differ from the budget.
- **state/KV**: bytes of page states per byte of bf16 KV.

tidaldecode, delta and omnikv select by what a dense layer before attends to: those layers stay dense, and figures
are of the others.

{calibrated}One model and {prompts} prompts: differences of a few thousandths are noise, and recall is not accuracy.
"""


def markdown(rows: list[Row], about: dict[str, Any]) -> str:
    """The report."""
    facts = about | {
        "needles": ", ".join(map(str, about["needles"])),
        "speeches": ", ".join(map(str, about["speeches"])),
        "prompts": len(about["needles"]) + len(about["speeches"]),
        "kept": about["kept"][str(PAGE)],
        "calibrated": "",
    }
    if names := about["calibrated"]:
        facts["calibrated"] = (
            f"{', '.join(names)}: with values from `python -m benchmarks.calibrate`, made from speeches that are not\n"
            "among the prompts.\n\n"
        )
    out = [_REPORT.format(first=KEEP_FIRST, last=KEEP_LAST, page=PAGE, **facts)]
    for ratio in RATIOS:
        out += [f"## Budget {ratio:.0%} of the context", "", *table(rows, ratio), ""]
    return "\n".join(out).rstrip() + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--model", default="smollm2-135m")
    found.add_argument("--flows", nargs="*", help="library names; all of them by default")
    found.add_argument("--files", nargs="*", type=Path, default=[], help="flow files, e.g. calibrated ones")
    found.add_argument("--threads", type=int, default=2)
    found.add_argument("--steps", type=int, default=STEPS)
    found.add_argument("--recording", type=Path, help="file that keeps the recording between runs")
    found.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return found


def main() -> None:
    """Record, measure, write."""
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    recording, about = kept(args.recording, lambda: record(args.model, args.threads, args.steps))
    flows = [library.resolve(name) for name in (args.flows or library.names())]
    flows += [library.resolve(str(path)) for path in args.files]
    cases = [(flow, PAGE) for flow in flows]
    cases += [(flow, flow.knobs.page_size) for flow in flows if flow.knobs.page_size != PAGE]
    always = {page: kept_mass(recording, page) for page in {p for _, p in cases} | {PAGE}}
    rows: list[Row] = []
    done: dict[tuple[str, float, int], Row] = {}  # equal candidates are measured once
    for flow, page in cases:
        for ratio in RATIOS:
            key = (settings(flow, ratio, page).key, ratio, page)
            if key not in done:
                done[key] = measure(flow, ratio, page, recording, always)
            r = replace(done[key], flow=flow.name)
            rows.append(r)
            print(
                f"{r.flow:22} page {page:3} {ratio:4.0%}  recall {r.recall:.3f}  of oracle {r.relative:.3f}  "
                f"beyond {r.beyond:+.3f}  density {r.density:.3f}  {r.seconds:6.1f} s",
                flush=True,
            )
    about |= {
        "layers": recording.geometry.layers,
        "calibrated": [path.stem for path in args.files],
        "kept": {str(page): float(mass.mean()) for page, mass in always.items()},
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    found = json.dumps({"about": about, "rows": [asdict(r) for r in rows]}, indent=1)
    (args.out / "recall.json").write_text(found + "\n")
    (args.out / "recall.md").write_text(markdown(rows, about))


if __name__ == "__main__":
    main()
