"""Train the retrieval model: minutes on one CPU core.

    python -m vortex_core.engine.retrieval.train --out DIR

A curriculum from short texts without noise to 2,048 tokens of it. What makes it learn at once is in `model.new_model`
(first weights) and here: few keys and values first, and the first layer is asked, through a readout that is thrown
away, for the token before each position. That is the half of the circuit which the answers alone teach only after a
long plateau; the other half finds the key in what it wrote.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from vortex_core.engine.retrieval.alphabet import KEYS, VOCAB, save_tokenizer
from vortex_core.engine.retrieval.model import Shape, every_expert, hidden_states, new_model, rotary_of
from vortex_core.engine.retrieval.task import Texts, noise_texts, stream_texts

RATE = 2e-3
WARM_UP = 30  # steps over which the rate rises
WINDOW = 5  # steps that a stage's accuracy is the mean of
TRAIN_SEED = 1
FRESH_SEED = 2_000_003
LENGTHS = (256, 512, 1024, 2048, 4096)
EVAL_PAIRS = 32
LEARNT = 0.95  # less than this share of right answers at some length is a failure


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Attributes:
        length: tokens a text.
        pairs: in a text.
        batch: texts a step.
        steps: at most so many.
        questions: at the end of a text of noise; 0: a stream of pairs without noise.
        enough: share of right answers over a window at which the stage ends early; None: never.
        alphabet: keys and values that occur in a stream; the circuit forms sooner on few, and holds for the others.
    """

    length: int
    pairs: int
    batch: int
    steps: int
    questions: int = 0
    enough: float | None = None
    alphabet: int = KEYS

    def texts(self, generator: torch.Generator) -> Texts:
        """A batch, on the generator's device."""
        if self.questions == 0:
            return stream_texts(self.batch, self.length, self.pairs, generator, alphabet=self.alphabet)
        return noise_texts(self.batch, self.length, self.pairs, self.questions, generator)


CURRICULUM = (
    Stage(length=33, pairs=4, batch=64, steps=300, enough=0.95, alphabet=32),
    Stage(length=65, pairs=8, batch=48, steps=200, enough=0.95),
    Stage(length=256, pairs=16, questions=32, batch=12, steps=100, enough=0.97),
    Stage(length=1024, pairs=32, questions=64, batch=3, steps=100, enough=0.99),
    Stage(length=2048, pairs=32, questions=64, batch=2, steps=60),
)


class Trainer:
    """One model, its optimizer and the texts it learns from."""

    def __init__(self, model: Any, *, rate: float = RATE) -> None:
        self.model = model
        self.rate = rate
        every_expert(model)
        hidden = model.config.hidden_size
        self.generator = torch.Generator(model.device).manual_seed(TRAIN_SEED)
        self.readout = torch.nn.Linear(hidden, VOCAB, bias=False, device=model.device)
        self.parameters = [*model.parameters(), *self.readout.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.steps = 0

    def step(self, stage: Stage, scale: float = 1.0) -> tuple[float, float, float]:
        """Learn from fresh texts; returns the loss of known answers, that of the token before, and the share right.

        Args:
            scale: of the learning rate.
        """
        texts = stage.texts(self.generator)
        first, last = hidden_states(self.model, texts.ids, rotary_of(self.model, stage.length))
        before = self.readout(F.rms_norm(first[:, 1:], first.shape[-1:]))
        previous = F.cross_entropy(before.flatten(0, 1), texts.ids[:, :-1].flatten())
        logits = self.model.lm_head(last[:, texts.asked])[texts.known]
        wanted = texts.answers[texts.known]
        answer = F.cross_entropy(logits, wanted)
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * scale * min(1.0, self.steps / WARM_UP)
        self.optimizer.zero_grad()
        (answer + previous).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return answer.item(), previous.item(), float((logits.argmax(-1) == wanted).float().mean())


def train(
    trainer: Trainer, *, curriculum: tuple[Stage, ...] = CURRICULUM, say: Callable[[str], None] = print
) -> float:
    """Train through a curriculum; returns the share of right answers in the last window.

    The rate falls linearly along the last stage. A stage that ends below half of the right answers ends the run: later
    ones are harder.
    """
    started = time.perf_counter()
    share = 0.0
    for stage in curriculum:
        history: list[tuple[float, float, float]] = []
        for step in range(stage.steps):
            history.append(trainer.step(stage, 1 - step / stage.steps if stage is curriculum[-1] else 1.0))
            answer, previous, share = (sum(x) / WINDOW for x in zip(*history[-WINDOW:], strict=True))
            done = len(history) >= WINDOW and stage.enough is not None and share >= stage.enough
            if done or (step + 1) % 20 == 0 or step + 1 == stage.steps:
                say(
                    f"{time.perf_counter() - started:5.0f} s  step {trainer.steps:4d}  {stage.length:5d} tokens"
                    f" {stage.pairs:3d} pairs  loss {answer:.4f}  token before {previous:.4f}  right {share:.4f}"
                )
            if done:
                break
        if share < 0.5:
            break
    return share


def save(model: Any, directory: Path) -> None:
    """Write weights in bf16, the configuration and the tokenizer, in transformers' layout."""
    kept = copy.deepcopy(model).cpu().to(torch.bfloat16)
    kept.config._attn_implementation = None  # how this run computed is no property of the model
    kept.save_pretrained(directory)
    save_tokenizer(directory)


@torch.no_grad()
def accuracy(
    model: Any, length: int, *, pairs: int = EVAL_PAIRS, texts: int = 32, questions: int = 16, batch: int = 4
) -> float:
    """Share of questions in fresh texts that a transformers model answers rightly, in its own forward pass."""
    generator = torch.Generator(model.device).manual_seed(FRESH_SEED + length)
    right = 0
    for _ in range(0, texts, batch):
        made = noise_texts(batch, length, pairs, questions, generator)
        logits = model(input_ids=made.ids, use_cache=False).logits[:, made.asked]
        right += int((logits.argmax(-1) == made.answers).sum())
    return right / (texts * questions)


def report(directory: Path, device: torch.device) -> dict[str, dict[str, float]]:
    """Accuracy of the model in a directory, by the type it computes in and the length of texts."""
    from transformers import AutoModelForCausalLM

    found: dict[str, dict[str, float]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = (
            AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, trust_remote_code=False)
            .to(device)
            .eval()
        )
        found[name] = {str(length): round(accuracy(model, length), 4) for length in LENGTHS}
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line; exits with 1 where the model did not learn the task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for the model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    trainer = Trainer(new_model(Shape(), seed=chosen.seed).to(device))
    train(trainer, say=lambda text: print(text, flush=True))
    save(trainer.model, chosen.out)
    found = report(chosen.out, device)
    text = json.dumps({"steps": trainer.steps, "pairs": EVAL_PAIRS, "accuracy": found}, indent=2) + "\n"
    (chosen.out / "training.json").write_text(text, encoding="utf-8")
    print(text, end="")
    if min(min(by_length.values()) for by_length in found.values()) < LEARNT:
        print(f"it did not learn: below {LEARNT} right at some length")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
