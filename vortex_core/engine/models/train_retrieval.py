"""Train a small GLM-4-MoE-Lite on retrieval: a model with real latent attention where no hub can be reached.

    python -m vortex_core.engine.models.train_retrieval [--out DIR] [--device cuda]

GLM-4.7-Flash's attention with its own cache row (512 latent + 64 rotary channels), everything else small. It
learns to look up keys (see `retrieval`) and nothing else, and at the end prints how often it is right on texts
it never saw, with dense attention and with flows. Use the directory as any model: `--model DIR`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vortex_core.engine.models.retrieval import (
    BOS,
    EOS,
    VOCAB,
    Texts,
    loss_of,
    make_texts,
    retrieval_accuracy,
    save_tokenizer,
    table,
)

MAX_CONTEXT = 4096
TRAIN_SEED = 1
HELD_OUT_SEED = 2_000_003
FLOWS = ("block_topk", "rope_unaware_block_topk", "rope_weighted_block_topk")


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum; it ends early when `enough` of the answers are right, on average over 20 steps.

    Attributes:
        steps: at most so many.
        length, pairs, questions: of the texts.
        batch: texts a step.
        reach: positions that the texts are spread over.
        enough: share of right answers.
    """

    steps: int
    length: int
    pairs: int
    questions: int
    batch: int
    reach: int
    enough: float


CURRICULUM = (
    # Few pairs asked for again and again: here the model learns to copy what followed the last time.
    Stage(steps=800, length=60, pairs=4, questions=16, batch=24, reach=60, enough=0.9),
    Stage(steps=400, length=96, pairs=12, questions=12, batch=16, reach=1024, enough=0.95),
    Stage(steps=200, length=384, pairs=24, questions=24, batch=6, reach=MAX_CONTEXT, enough=1.0),
)


def retrieval_config() -> Any:
    """The model's configuration: 2 layers, 1.0 M parameters."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        "glm4_moe_lite",
        vocab_size=VOCAB,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=96,
        kv_lora_rank=512,
        qk_nope_head_dim=32,
        qk_rope_head_dim=64,
        v_head_dim=32,
        intermediate_size=256,
        moe_intermediate_size=64,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_shared_experts=1,
        max_position_embeddings=MAX_CONTEXT,
        initializer_range=0.06,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )


def new_model(seed: int = 0) -> Any:
    """An untrained model."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(retrieval_config(), dtype=torch.float32)


def train(
    model: Any, *, curriculum: tuple[Stage, ...] = CURRICULUM, say: Callable[[str], None] = print
) -> list[tuple[float, float]]:
    """Train through the curriculum; returns the loss and the share of right answers of every step.

    The rate falls along the last half of the last stage, and every stage begins with a short warm-up.
    """
    device = model.device
    generator = torch.Generator().manual_seed(TRAIN_SEED)
    optimizers = _optimizers(model)
    history: list[tuple[float, float]] = []
    started = time.perf_counter()
    model.train()
    for number, stage in enumerate(curriculum):
        last = number == len(curriculum) - 1
        for step in range(stage.steps):
            scale = min(1.0, (step + 1) / 20)
            if last:
                scale *= min(1.0, 2 * (1 - step / stage.steps) + 0.02)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = scale * group["initial_lr"]
            texts = make_texts(
                stage.batch, stage.length, stage.pairs, stage.questions, generator, reach=stage.reach
            )
            loss, right = loss_of(model, Texts(*(x.to(device) for x in vars(texts).values())))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            history.append((loss.item(), right))
            if (step + 1) % 50 == 0:
                seconds = time.perf_counter() - started
                say(
                    f"stage {number} step {step + 1:4d} {seconds:6.0f} s  loss {loss.item():.3f}  right {right:.3f}"
                )
            if step >= 20 and sum(share for _, share in history[-20:]) / 20 >= stage.enough:
                break
    model.eval()
    return history


def _optimizers(model: Any) -> list[torch.optim.Optimizer]:
    """Muon (orthogonalised momentum) for the matrices of the layers, AdamW for the rest."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = parameter.dim() == 2 and "layers." in name and "gate.weight" not in name
        (matrices if inner else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=6e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return [muon, adamw]


def report(directory: Path, *, length: int = 1024, pairs: int = 32, items: int = 64) -> str:
    """Held-out accuracy of a trained model through the engine, dense and with flows at a quarter of the tokens."""
    from vortex_core import library
    from vortex_core.engine.engine import Engine

    engine = Engine.from_model(str(directory), dtype=torch.float32, max_tokens=32 * 1024)
    rows = []
    for name in ("dense", *FLOWS):
        density = 1.0
        if name == "dense":
            engine.load_flow(None)
        else:
            traced = library.load(name).with_knobs(budget=str(length // 4), page_size=16)
            engine.load_flow(traced.program, traced.knobs)
            density = 0.25
        accuracy = retrieval_accuracy(engine, length=length, pairs=pairs, items=items, seed=HELD_OUT_SEED)
        rows.append((name, density, accuracy))
    return f"{items} held-out texts of {length} tokens with {pairs} pairs\n{table(rows)}"


def build(directory: Path, *, device: str = "cpu", say: Callable[[str], None] = print) -> None:
    """Train, save in transformers' layout, report."""
    model = new_model().to(device)
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    started = time.perf_counter()
    steps = len(train(model, say=say))
    seconds = time.perf_counter() - started
    directory.mkdir(parents=True, exist_ok=True)
    model.to("cpu", dtype=torch.bfloat16).save_pretrained(directory)
    save_tokenizer(directory)
    say(f"{steps} steps in {seconds:.0f} s; saved in {directory}")
    say(report(directory))


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    import argparse

    from vortex_core.engine.weights import cache_dir

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, help="directory of the model")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args(arguments)
    out = chosen.out or cache_dir() / "models" / "retrieval-mla"
    build(out, device=chosen.device, say=lambda text: print(text, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
