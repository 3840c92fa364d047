"""Train a retrieval model: minutes on one CPU core.

    python -m vortex_core.engine.retrieval.train --model retrieval-gqa --out DIR

A curriculum from short texts without noise to long ones. What makes a model learn at once is in `model.new_model`
(first weights) and here: few keys and values first, and inner layers are asked, through readouts that are thrown away,
for the halves of the circuits which the answers alone teach only after a long plateau: the first layer for the token
before each position, the second of the model with three for what its first look-up finds.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from vortex_core.engine.retrieval.alphabet import save_tokenizer
from vortex_core.engine.retrieval.lesson import UNASKED, Lesson, Stage
from vortex_core.engine.retrieval.model import Shape, every_expert, hidden_states, new_model, rotary_of
from vortex_core.engine.retrieval.recipes import RECIPES, Recipe

RATE = 2e-3
WARM_UP = 30  # steps over which the rate rises
WINDOW = 5  # steps that a stage's accuracy is the mean of, and after which it is looked at
SAVED_EVERY = 20.0  # seconds
_SAID_EVERY = 20  # steps
TRAIN_SEED = 1
_BEFORE_LAST = 0.6  # of the time that training may take, all stages but the last together


@dataclass(frozen=True)
class Seen:
    """What a step has seen, where it was computed: a GPU is waited for by whoever reads it.

    Attributes:
        losses: of each target, `[target]`.
        right: by skill, the share right.
    """

    losses: torch.Tensor
    right: dict[str, torch.Tensor]


class Trainer:
    """One model, its optimizer and the texts it learns from."""

    def __init__(self, model: Any, *, rate: float = RATE) -> None:
        self.model = model
        self.rate = rate
        every_expert(model)
        hidden, vocab = model.config.hidden_size, model.config.vocab_size
        self.generator = torch.Generator(model.device).manual_seed(TRAIN_SEED)
        self.readouts = torch.nn.ModuleList(
            torch.nn.Linear(hidden, vocab, bias=False, device=model.device) for _ in model.model.layers[:-1]
        )
        self.parameters = [*model.parameters(), *self.readouts.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=model.device.type == "cuda"
        )
        self.steps = 0

    def step(self, lesson: Lesson, scale: float = 1.0) -> Seen:
        """Learn from a lesson.

        Args:
            scale: of the learning rate.
        """
        losses, right = self._losses(lesson)
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * scale * min(1.0, self.steps / WARM_UP)
        self.optimizer.zero_grad()
        losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return Seen(losses.detach(), right)

    def _losses(self, lesson: Lesson) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        positions = lesson.positions
        if positions is None:
            positions = torch.arange(lesson.ids.shape[1], device=lesson.ids.device)[None]
        layers, last = hidden_states(self.model, lesson.ids, rotary_of(self.model, positions), lesson.bias)
        losses, right = [], {}
        for target in lesson.targets:
            if target.layer is None:
                logits = self.model.lm_head(last[target.rows, target.places])
            else:
                inner = layers[target.layer][target.rows, target.places]
                logits = self.readouts[target.layer](F.rms_norm(inner, inner.shape[-1:]))
            losses.append(F.cross_entropy(logits, target.wanted, ignore_index=UNASKED))
            if target.skill:
                asked = (target.wanted != UNASKED).sum()
                right[target.skill] = (logits.argmax(-1) == target.wanted).sum() / asked
        return torch.stack(losses), right

    def state(self) -> dict[str, Any]:
        """Everything that the steps to come depend on."""
        return {
            "model": self.model.state_dict(),
            "readouts": self.readouts.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "steps": self.steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state["model"])
        self.readouts.load_state_dict(state["readouts"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.steps = state["steps"]


def train(
    trainer: Trainer,
    *,
    curriculum: Sequence[Stage],
    say: Callable[[str], None] = print,
    kept: Path | None = None,
    seconds: float = math.inf,
    save: Callable[[], None] | None = None,
) -> float:
    """Train through a curriculum; returns the share of right answers in the last window, of the worst skill.

    The rate falls linearly along the last stage, by its steps or by the time that is left, whichever ends first. A
    stage that ends with less than half of the answers right ends the run: later ones are harder.

    Args:
        kept: a file that holds the state after the last finished stage; where it is there, training goes on from it.
        seconds: after which training ends, wherever it is; all stages but the last share three fifths of them.
        save: called every `SAVED_EVERY` seconds, so that a machine lost on the way does not take all with it.
    """
    started = saved = time.perf_counter()
    share, first = 0.0, 0
    if kept is not None and kept.exists():
        found = torch.load(kept, weights_only=True)
        trainer.load(found["trainer"])
        first = found["stages"]
    for number, stage in enumerate(curriculum[first:], first + 1):
        window: deque[Seen] = deque(maxlen=WINDOW)
        began = time.perf_counter()
        last = stage is curriculum[-1]
        ends = started + seconds * (1.0 if last else _BEFORE_LAST * number / (len(curriculum) - 1))
        left = max(ends - began, 1e-9)
        for step in range(1, stage.steps + 1):
            through = max((step - 1) / stage.steps, (time.perf_counter() - began) / left)
            scale = stage.scale * (max(0.0, 1 - through) if last else 1.0)
            window.append(trainer.step(stage.lesson(trainer.generator), scale))
            if step % WINDOW and step < stage.steps:
                continue
            right = {
                skill: float(torch.stack([seen.right[skill] for seen in window]).mean())
                for skill in window[-1].right
            }
            share = min(right.values())
            done = len(window) == WINDOW and stage.enough is not None and share >= stage.enough
            done = done or time.perf_counter() >= ends
            if done or step % _SAID_EVERY == 0 or step == stage.steps:
                losses = torch.stack([seen.losses for seen in window]).mean(0).tolist()
                say(
                    f"{time.perf_counter() - started:5.0f} s  step {trainer.steps:4d}  {stage.length:5d} tokens"
                    f"  losses {' '.join(f'{loss:.3f}' for loss in losses)}"
                    f"  right {' '.join(f'{skill} {value:.3f}' for skill, value in right.items())}"
                )
            if save is not None and time.perf_counter() - saved > SAVED_EVERY:
                save()
                saved = time.perf_counter()
            if done:
                break
        if sum(right.values()) < 0.5 * len(right):
            break
        if kept is not None:
            torch.save({"stages": number, "trainer": trainer.state()}, kept)
    return share


def started_from(name: str, shape: Shape) -> Any:
    """A model of a shape with the weights of another of the same dimensions, by name or directory; fp32 on the CPU."""
    from transformers import AutoModelForCausalLM

    from vortex_core.engine.models.weights import resolve_model

    found = AutoModelForCausalLM.from_pretrained(
        resolve_model(name).directory, dtype=torch.float32, trust_remote_code=False
    )
    model = new_model(shape)
    model.load_state_dict(found.state_dict())
    return model


def save(model: Any, directory: Path) -> None:
    """Write weights in bf16, the configuration and the tokenizer, in transformers' layout."""
    kept = copy.deepcopy(model).cpu().to(torch.bfloat16)
    kept.config._attn_implementation = None  # how this run computed is no property of the model
    kept.save_pretrained(directory)
    save_tokenizer(directory, model.config.vocab_size)


def report(recipe: Recipe, directory: Path, device: torch.device) -> dict[str, Any]:
    """Accuracy of the model in a directory on fresh texts, by the type it computes in, as the recipe asks."""
    from transformers import AutoModelForCausalLM

    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, trust_remote_code=False)
        found[name] = recipe.accuracy(model.to(device).eval())
    return found


def _lowest(found: Any, tried: Sequence[str]) -> float:
    if not isinstance(found, dict):
        return float(found)
    return min(_lowest(inner, tried) for name, inner in found.items() if name not in tried)


def main(arguments: list[str] | None = None) -> int:
    """The command line; exits with 1 where the model did not learn the task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=sorted(RECIPES), default="retrieval-mla")
    parser.add_argument("--out", type=Path, required=True, help="directory for the model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights")
    parser.add_argument("--start", help="model or directory whose weights are begun with")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which training ends")
    parser.add_argument(
        "--state", type=Path, help="file that a cut training goes on from; training.pt in --out by default"
    )
    parser.add_argument("--smaller", type=int, default=1, help="divides every batch, for a CPU")
    chosen = parser.parse_args(arguments)
    device, recipe = torch.device(chosen.device), RECIPES[chosen.model]
    model = (
        new_model(recipe.shape, seed=chosen.seed)
        if chosen.start is None
        else started_from(chosen.start, recipe.shape)
    )
    trainer = Trainer(model.to(device))
    chosen.out.mkdir(parents=True, exist_ok=True)
    kept = chosen.state or chosen.out / "training.pt"
    curriculum = [stage.smaller(chosen.smaller) for stage in recipe.curriculum]
    if device.type == "cuda":  # TF32 is eight times as exact as the bf16 in which the model will run
        torch.set_float32_matmul_precision("high")
    train(
        trainer,
        curriculum=curriculum,
        say=lambda text: print(text, flush=True),
        kept=kept,
        seconds=chosen.seconds,
        save=lambda: save(trainer.model, chosen.out),
    )
    torch.set_float32_matmul_precision("highest")
    save(trainer.model, chosen.out)
    found = report(recipe, chosen.out, device)
    text = json.dumps({"steps": trainer.steps, "pairs": recipe.pairs, "accuracy": found}, indent=2) + "\n"
    (chosen.out / "training.json").write_text(text, encoding="utf-8")
    print(text, end="")
    kept.unlink(missing_ok=True)
    if _lowest(found, recipe.tried) < recipe.learnt:
        print(f"it did not learn: below {recipe.learnt} right somewhere")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
