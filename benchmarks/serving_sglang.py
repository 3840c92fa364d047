"""Decode throughput and token parity inside SGLang: its own backends and this project's plug-in, in turn.

    python -m benchmarks.serving_sglang --model qwen3-1.7b --batches 16,64 --contexts 8192,16384,32000 \
        --dense fa3,flashinfer --flows block_topk,quest --out benchmarks/results

Runs in SGLang's environment (docs/serving.md) on one GPU, or on several with --tp. Weights are SGLang's dummies:
only time means anything, and equal answers mean little unless --weights names a model. Engines take most of a GPU's
memory, so each arm has processes of its own, and `--rounds` interleaves the arms. Prompts are prefilled once an
engine and stay in the prefix cache; a step's time is the difference of two generations over the difference of their
lengths, as in `t(LONG) - t(SHORT)`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.serving.bundle import FlowBundle
from vortex_core.serving.client import EngineProcess
from vortex_core.serving.settings import Settings

# Dimensions of the published models (configs/models says where from); weights are random.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "vocab_size": 256, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    },
    "qwen3-1.7b": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 2048,
        "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960, "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096,
        "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960, "tie_word_embeddings": False,
    },
}  # fmt: skip
QWEN_REST = {
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "torch_dtype": "bfloat16", "hidden_act": "silu",
    "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "use_cache": True, "sliding_window": None,
    "use_sliding_window": False, "attention_dropout": 0.0,
}  # fmt: skip
GLM_REST = {
    "architectures": ["Glm4MoeLiteForCausalLM"], "torch_dtype": "bfloat16", "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "num_nextn_predict_layers": 1,
}  # fmt: skip
RANDOM_ROUTING = (
    "random weights route to few experts: absolute tok/s is optimistic and speed-ups are overstated"
)
SHORT, LONG = 33, 161


def write_config(model: str, folder: Path, context: int) -> Path:
    """A model directory with a configuration and no weights."""
    if model == "glm-4.7-flash":
        from transformers import Glm4MoeLiteConfig

        config = {**Glm4MoeLiteConfig().to_dict(), **GLM_REST}
    else:
        config = {**QWEN_REST, **SHAPES[model]}
    config["max_position_embeddings"] = max(context, int(config["max_position_embeddings"]))
    path = folder / model
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def prompts(batch: int, length: int, vocabulary: int) -> list[list[int]]:
    """Seeded random token ids."""
    return [random.Random(1000 + i).choices(range(10, vocabulary), k=length) for i in range(batch)]


def measure(engine: EngineProcess, vocabulary: int, batch: int, context: int, repeats: int) -> dict[str, Any]:
    """Step time at one shape, and the tokens of a 64-token answer."""
    ids = prompts(batch, context, vocabulary)
    prefill = engine.generate(ids, 1).seconds
    tokens = engine.generate(ids, 64).tokens  # also warms what this batch runs
    steps, cached = [], []
    for _ in range(repeats):
        short, long = engine.generate(ids, SHORT), engine.generate(ids, LONG)
        steps.append((long.seconds - short.seconds) / (LONG - SHORT) * 1e3)
        cached.append(min(short.cached))
    ms = statistics.median(steps)
    return {
        "batch": batch, "context": context, "ms_step": round(ms, 3), "tok_s": round(batch / ms * 1e3, 1),
        "all_ms": [round(step, 3) for step in steps], "cached_tokens": min(cached),
        "prefill_s": round(prefill, 2), "tokens": tokens,
    }  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One configuration: `settings` None is SGLang's own attention."""

    name: str
    options: dict[str, Any]
    settings: Settings | None


def run_arm(arm: Arm, args: argparse.Namespace, sets: list[tuple[int, int]], log: Path) -> dict[str, Any]:
    """Run one arm in processes of its own; what it found before a failure is kept."""
    found: dict[str, Any] = {"arm": arm.name, "results": []}
    path = Path(arm.options["model_path"])
    vocabulary = json.loads((path / "config.json").read_text())["vocab_size"]
    variables = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    try:
        with EngineProcess(arm.options, arm.settings, variables=variables, start_limit=args.limit) as engine:
            found |= engine.facts
            print(f"{arm.name}: up in {engine.facts['start_s']} s", flush=True)
            try:
                last = None
                for batch, context in sets:
                    if last not in (None, context):
                        engine.flush()
                    last = context
                    row = measure(engine, vocabulary, batch, context, args.repeats)
                    found["results"].append(row)
                    shown = {k: v for k, v in row.items() if k != "tokens"}
                    print(f"{arm.name}: {json.dumps(shown)}", flush=True)
            finally:
                found["status"] = engine.status
                log.write_bytes(engine.log.read_bytes())
    except VortexError as error:
        found["failure"] = str(error)
        print(f"{arm.name}: {error}", flush=True)
    return found


def table(arms: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Medians over rounds by arm and shape, with the speed-up over the best dense arm, and token parity."""
    by: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for arm in arms:
        for r in arm["results"]:
            by.setdefault((arm["arm"], r["batch"], r["context"]), []).append(r)
    medians = {key: statistics.median(r["ms_step"] for r in rows) for key, rows in by.items()}
    status = {arm["arm"]: arm.get("status") for arm in arms}
    rows = []
    for (name, batch, context), found in by.items():
        dense = {k: v for k, v in medians.items() if k[0].startswith("dense:") and k[1:] == (batch, context)}
        best = min(dense, key=lambda k: dense[k]) if dense else None
        same = None
        if best is not None and not name.startswith("dense:"):
            pairs = zip(found[0]["tokens"], by[best][0]["tokens"], strict=True)
            same = sum(a == b for a, b in pairs)
        ran = status[name] or {}
        rows.append({
            "arm": name, "batch": batch, "context": context, "ms_step": round(medians[name, batch, context], 3),
            "tok_s": round(batch / medians[name, batch, context] * 1e3, 1),
            "all_ms": [ms for r in found for ms in r["all_ms"]], "rounds": len(found),
            "speedup": None if best is None else round(dense[best] / medians[name, batch, context], 3),
            "best_dense": None if best is None else best[0],
            "answers_equal_to_dense": same, "density": ran.get("density"), "ir_hash": ran.get("ir_hash"),
        })  # fmt: skip
    lines = ["| arm | batch | context | ms a step | tok/s | over best dense | answers as dense | density |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in sorted(rows, key=lambda r: (r["batch"], r["context"], r["arm"])):
        density = "" if r["density"] is None else f"{r['density']:.3f}"
        same = "" if r["answers_equal_to_dense"] is None else f"{r['answers_equal_to_dense']}/{r['batch']}"
        lines.append(
            f"| {r['arm']} | {r['batch']} | {r['context']:,} | {r['ms_step']:.2f} | {r['tok_s']:,.0f} "
            f"| {r['speedup'] or ''} | {same} | {density} |"
        )
    return rows, "\n".join(lines)


def arms_of(args: argparse.Namespace, folder: Path) -> list[Arm]:
    """The arms of one round."""
    batches, contexts = numbers(args.batches), numbers(args.contexts)
    limit = max(contexts) + 1024
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
        options["cuda_graph_bs_decode"] = sorted(set(batches))  # others would only lengthen the start
    if args.model == "glm-4.7-flash":
        options |= {"chunked_prefill_size": 32768, "max_prefill_tokens": 32768}
    if args.kv_dtype:
        options["kv_cache_dtype"] = args.kv_dtype
    found = []
    for name in filter(None, args.dense.split(",")):
        own = {"attention_backend": name}
        if args.prefill and name != args.prefill:
            own = {"prefill_attention_backend": args.prefill, "decode_attention_backend": name}
        found.append(Arm(f"dense:{name}", options | own, None))
    flows = [(f, f, args.budget) for f in filter(None, args.flows.split(","))]
    if args.parity:
        flows += [("dense", "dense", args.budget), ("block_topk everything", "block_topk", str(limit))]
    for label, flow, budget in flows:
        traced = library.resolve(flow).with_knobs(page_size=args.page, budget=budget)
        bundle = FlowBundle.of(traced)
        settings = Settings(str(bundle.write(folder / f"{bundle.key}.json")), args.prefill)
        found.append(Arm(f"vortex:{label}", options | {"attention_backend": "vortex"}, settings))
    return found


def numbers(text: str) -> list[int]:
    """Of a comma-separated list."""
    return [int(n) for n in text.split(",")]


def main() -> None:
    """Run every arm `--rounds` times, in turn; write `serving_sglang.json` and `.md`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="qwen3-1.7b", choices=[*SHAPES, "glm-4.7-flash"])
    parser.add_argument("--weights", type=Path, help="model directory to load instead of dummy weights")
    parser.add_argument("--batches", default="16")
    parser.add_argument("--contexts", default="32000")
    parser.add_argument("--dense", default="fa3", help="SGLang backends to compare with")
    parser.add_argument("--flows", default="block_topk,quest")
    parser.add_argument("--budget", default="2048", help="tokens, or an expression")
    parser.add_argument("--page", type=int, default=16)
    parser.add_argument("--prefill", help="SGLang backend that prefills every arm")
    parser.add_argument("--memory", type=float, default=0.86, help="--mem-fraction-static")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--kv-dtype", help="--kv-cache-dtype of every arm, e.g. fp8_e4m3")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--parity", action="store_true", help="also arms that attend to everything")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--limit", type=float, default=900, help="seconds an engine may take to start")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sets = [(b, c) for c in numbers(args.contexts) for b in sorted(numbers(args.batches), reverse=True)]
    arms: list[dict[str, Any]] = []
    text = ""
    with tempfile.TemporaryDirectory() as temporary:
        planned = arms_of(args, Path(temporary))
        for round_ in range(args.rounds):
            for arm in planned if round_ % 2 == 0 else planned[::-1]:
                log = args.out / f"serving_sglang-{arm.name.replace(':', '-').replace(' ', '-')}-{round_}.log"
                arms.append(run_arm(arm, args, sets, log))
                rows, text = table(arms)
                data = {
                    "model": args.model, "device": device_name(args), "versions": versions(arms), "tp": args.tp,
                    "note": note(args), "rows": rows,
                    "failures": {a["arm"]: a["failure"] for a in arms if "failure" in a},
                    "start_s": {a["arm"]: a.get("start_s") for a in arms},
                }  # fmt: skip
                (args.out / "serving_sglang.json").write_text(json.dumps(data, indent=2) + "\n")
                (args.out / "serving_sglang.md").write_text(f"{args.model}, {data['device']}\n\n{text}\n")
    print(text)


def note(args: argparse.Namespace) -> str:
    """What to keep in mind beside the figures."""
    if args.weights:
        return f"weights from {args.weights.name}"
    return RANDOM_ROUTING if "glm" in args.model else "dummy weights"


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
    main()
