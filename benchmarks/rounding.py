"""How far bf16 carries a model of experts with random weights from itself in float32, layer by layer, on a CPU.

    python -m benchmarks.rounding --model glm-4.7-flash --tokens 40 --out benchmarks/results

transformers' own layers run twice over the same weights, in bf16 and in float32, one layer in memory at a time. What
a serving engine in bf16 differs from transformers in bf16 by cannot be less than this, for it rounds elsewhere.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from vortex_core.engine.models.hf_config import reference_config
from vortex_core.engine.models.random_weights import LABEL, NOISE, STD, copy_noise, fill
from vortex_core.specs import ModelSpec, load_model

WORDS = 4000  # tokens of the vocabulary that are compared


class Layers:
    """Decoder layers of a spec, made one after the other from one stretch of noise."""

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        self.config = reference_config(spec)
        self.config._attn_implementation, self.config._experts_implementation = "sdpa", "eager"
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.empty(NOISE).normal_(0.0, STD, generator=generator).to(torch.bfloat16)
        self.at = 0
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(self.config).model
        self.kinds = [type(layer) for layer in base.layers]
        self.rotary = type(base.rotary_emb)(self.config)

    def matrix(self, *shape: int) -> torch.Tensor:
        """The next numbers of the noise."""
        made = torch.empty(*shape, dtype=torch.bfloat16)
        self.at = copy_noise(made.view(-1), self.noise, self.at)
        return made

    def layer(self, index: int) -> Any:
        """One decoder layer in bf16."""
        with torch.device("meta"):
            made = self.kinds[index](self.config, index).to(torch.bfloat16)
        made.to_empty(device="cpu")
        self.at = fill(made, self.noise, self.at)
        return made


@torch.inference_mode()
def measure(spec: ModelSpec, tokens: int) -> list[dict[str, float]]:
    """One row a layer: errors of bf16 against float32 behind it."""
    layers = Layers(spec)
    narrow = layers.matrix(1, tokens, spec.hidden)
    wide = narrow.float()
    head = layers.matrix(WORDS, spec.hidden).float()
    positions = torch.arange(tokens)[None]
    mask = torch.full((tokens, tokens), float("-inf")).triu(1)[None, None]
    rows = []
    for index in range(spec.layers):
        layer = layers.layer(index)
        chosen: list[torch.Tensor] = []
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts.register_forward_pre_hook(
                lambda _, args, to=chosen: to.append(args[1].sort(-1)[0])
            )

        def run(x: torch.Tensor, layer: Any = layer) -> torch.Tensor:
            angles = layers.rotary(x, positions)
            out: torch.Tensor = layer(
                x, attention_mask=mask.to(x.dtype), position_embeddings=angles, position_ids=positions
            )
            return out

        narrow = run(narrow)
        layer.float()
        wide = run(wide)
        a, b = (_logprobs(x, head) for x in (narrow, wide))
        best = b.argmax(-1)
        apart = (a - b).gather(1, best[:, None]).abs()
        rows.append(
            {
                "layer": index,
                "relative_error": float(((narrow - wide).norm(dim=-1) / wide.norm(dim=-1)).mean()),
                "routed_otherwise": float((chosen[0] != chosen[1]).any(-1).float().mean()) if chosen else 0.0,
                "logprob_mean": float(apart.mean()),
                "logprob_worst": float(apart.max()),
                "same_token": float((a.argmax(-1) == best).float().mean()),
            }
        )
        print(" ".join(f"{k}={v:.4g}" for k, v in rows[-1].items()), flush=True)
    return rows


def _logprobs(x: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """`[token, word]` of a final norm and a head."""
    wide = x[0].float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (wide @ head.T).log_softmax(-1)


def to_markdown(spec: ModelSpec, rows: list[dict[str, float]], command: str) -> str:
    """Every sixth layer and the last."""
    lines = [
        f"# What rounding does to {spec.name} ({LABEL})",
        "",
        (
            f"`{command}`: transformers' layers in bf16 against the same in float32, same weights, on a CPU. "
            "Tokens whose experts are others, and the log-probability of float32's likeliest token."
        ),
        "",
        "| layers | relative error | routed otherwise | log-probability, mean | worst | same greedy token |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row["layer"] % 6 == 2 or row is rows[-1]:
            lines.append(
                f"| {row['layer'] + 1:.0f} | {row['relative_error']:.3f} | {row['routed_otherwise']:.0%} | "
                f"{row['logprob_mean']:.3f} | {row['logprob_worst']:.3f} | {row['same_token']:.0%} |"
            )
    return "\n".join([*lines, ""])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", default="glm-4.7-flash")
    found.add_argument("--tokens", type=int, default=40)
    found.add_argument("--layers", type=int, default=0, help="only so many")
    found.add_argument("--out", type=Path)
    return found


def main() -> int:
    """Entry point."""
    args = parser().parse_args()
    spec = load_model(args.model)
    if args.layers:
        spec = spec.model_copy(update={"layers": args.layers})
    started = time.perf_counter()
    rows = measure(spec, args.tokens)
    print(f"{time.perf_counter() - started:.0f} s")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        command = f"python -m benchmarks.rounding --model {args.model} --tokens {args.tokens}"
        (args.out / "rounding.json").write_text(json.dumps(rows, indent=1) + "\n")
        (args.out / "rounding.md").write_text(to_markdown(spec, rows, command))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
