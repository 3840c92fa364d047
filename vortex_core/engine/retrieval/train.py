"""Train the retrieval model: minutes on one GPU.

    python -m vortex_core.engine.retrieval.train --out DIR [--setting NAME] [--seconds 120]

A curriculum from short texts without noise to 4,096 tokens of it. Beside the answers the first layer is asked, through
a readout that is thrown away, for the token before each position: that head is the half of the circuit which the
answers alone teach only after a long plateau (the other half finds the key in what it wrote). At the end prints how
often the model answers fresh texts rightly, in transformers' own forward pass, in fp32 and in bf16.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from vortex_core.engine.retrieval.alphabet import KEYS, VOCAB, save_tokenizer
from vortex_core.engine.retrieval.model import Shape, fix_shapes, hidden_states, new_model, rotary_of
from vortex_core.engine.retrieval.task import Texts, noise_texts, stream_texts

TRAIN_SEED = 1
FRESH_SEED = 2_000_003
LENGTHS = (256, 512, 1024, 2048, 4096)
EVAL_PAIRS = 32
WARM_UP = 100  # steps over which the rate rises
WINDOW = 25  # steps between looks at the accuracy; the host waits for the device only then
LEARNT = 0.9  # less than this share of right answers at the end is a failure
NOT_LEARNT, NOT_CAPTURED = 2, 3  # exit codes


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Attributes:
        length: tokens a text.
        pairs: in a text.
        batch: texts a step.
        until: share of the time by which the stage ends.
        questions: at the end of a text of noise; 0: a stream of pairs without noise.
        enough: share of right answers over a window at which the stage ends early.
        alphabet: keys and values that occur in a stream; the circuit forms sooner on few, and holds for the others.
    """

    length: int
    pairs: int
    batch: int
    until: float
    questions: int = 0
    enough: float = 0.98
    alphabet: int = KEYS

    def texts(self, device: torch.device) -> Texts:
        """A batch, drawn by the device's own generator."""
        if self.questions == 0:
            return stream_texts(self.batch, self.length, self.pairs, alphabet=self.alphabet, device=device)
        return noise_texts(self.batch, self.length, self.pairs, self.questions, device=device)


CURRICULUM = (
    Stage(length=33, pairs=4, batch=256, until=0.4, enough=0.95, alphabet=32),
    Stage(length=65, pairs=4, batch=256, until=0.5, enough=0.95),
    Stage(length=129, pairs=16, batch=128, until=0.6, enough=0.95),
    Stage(length=256, pairs=16, questions=32, batch=64, until=0.66),
    Stage(length=1024, pairs=32, questions=64, batch=24, until=0.72),
    Stage(length=2048, pairs=32, questions=64, batch=16, until=0.82, enough=0.995),
    Stage(length=4096, pairs=32, questions=64, batch=8, until=1.0, enough=2.0),
)


@dataclass(frozen=True)
class Setting:
    """A shape and how to train it."""

    shape: Shape
    rate: float
    seed: int = 0
    previous: float = 1.0  # weight of the loss on the token before


SETTINGS = {
    "base": Setting(Shape(), rate=2e-3),
    "narrow": Setting(Shape(kv_lora=128, qk_rope=32), rate=3e-3),
    "wide": Setting(Shape(layers=3, hidden=192), rate=1e-3, seed=1),
}


class NotCapturedError(Exception):
    """A step does something that no CUDA graph may hold; the device may be left unusable for this process."""


class Trainer:
    """One model and its optimizer; `step` is captured in a CUDA graph a stage, since its launches outweigh its work."""

    def __init__(self, setting: Setting, device: torch.device, *, capture: bool) -> None:
        torch.manual_seed(TRAIN_SEED)  # of the texts, on every device
        self.device = device
        self.capture = capture
        self.setting = setting
        self.model = new_model(setting.shape, seed=setting.seed).to(device)
        fix_shapes(self.model)
        self.readout = torch.nn.Linear(setting.shape.hidden, VOCAB, bias=False, device=device)
        self.parameters = [*self.model.parameters(), *self.readout.parameters()]
        self.rate = torch.tensor(0.0, device=device)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.rate,
            betas=(0.9, 0.98),
            weight_decay=0.0,
            fused=True,
            capturable=device.type == "cuda",
        )
        self.sums = torch.zeros(3, device=device)  # of the loss, the previous-token loss, the right answers

    def _precision(self) -> AbstractContextManager[Any]:
        if self.device.type != "cuda":
            return nullcontext()
        # A cached cast would outlive the captured step that made it.
        return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)

    def losses(
        self, texts: Texts, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean loss of known answers, of the token before every position, and the share answered rightly."""
        with self._precision():
            first, last = hidden_states(self.model, texts.ids, rotary)
            first = F.rms_norm(first[:, 1:], first.shape[-1:])
            before = self.readout(first).float()
            logits = self.model.lm_head(last[:, texts.asked]).float()
        known = texts.known.float()
        per_answer = F.cross_entropy(logits.flatten(0, 1), texts.answers.flatten(), reduction="none")
        answer = (per_answer.view_as(known) * known).sum() / known.sum()
        previous = F.cross_entropy(before.flatten(0, 1), texts.ids[:, :-1].flatten())
        right = ((logits.argmax(-1) == texts.answers) * known).sum() / known.sum()
        return answer, previous, right

    def step(self, stage: Stage, rotary: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Draw texts, learn from them, add to `sums`. Never waits for the device."""
        answer, previous, right = self.losses(stage.texts(self.device), rotary)
        (answer + self.setting.previous * previous).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.sums += torch.stack((answer.detach(), previous.detach(), right))

    def stepper(self, stage: Stage) -> Callable[[], None]:
        """A function that makes one step of a stage: a graph's replay where steps are captured."""
        rotary = tuple(x.clone() for x in rotary_of(self.model, stage.length))
        assert len(rotary) == 2

        def eager() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            self.step(stage, rotary)

        if not self.capture:
            return eager
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                eager()
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)  # so that gradients are allocated in the graph's own pool
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.step(stage, rotary)
        except RuntimeError as error:
            raise NotCapturedError(str(error)) from error
        return graph.replay


def save(model: Any, directory: Path) -> None:
    """Write weights in bf16 and the configuration, in transformers' layout."""
    kept = copy.deepcopy(model).cpu().to(torch.bfloat16)
    for layer in kept.model.layers:
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts.__dict__.pop("forward", None)
    kept.config._attn_implementation = None  # how this run computed is no property of the model
    kept.save_pretrained(directory)


def train(
    trainer: Trainer,
    directory: Path,
    *,
    seconds: float,
    curriculum: tuple[Stage, ...] = CURRICULUM,
    say: Callable[[str], None] = print,
) -> float:
    """Train through the curriculum in `seconds`; returns the last window's share of right answers.

    The rate falls linearly along the last stage. Weights are written after every stage and, while the last one gets
    better, every ten seconds, so a run that is stopped leaves them. A stage that ends on time below half of the right
    answers ends the run: later ones are harder.

    Raises:
        NotCapturedError: a step cannot be captured.
    """
    started = time.perf_counter()
    steps, share, best = 0, 0.0, 0.0
    said = saved = 0.0
    for number, stage in enumerate(curriculum):
        step = trainer.stepper(stage)
        last = number == len(curriculum) - 1
        begun = now = time.perf_counter() - started
        while now < stage.until * seconds:
            fall = (stage.until * seconds - now) / (stage.until * seconds - begun) if last else 1.0
            trainer.rate.fill_(trainer.setting.rate * min(1.0, (steps + 1) / WARM_UP) * max(fall, 0.02))
            trainer.sums.zero_()
            for _ in range(WINDOW):
                step()
            loss, previous, share = (trainer.sums / WINDOW).tolist()  # waits for the device
            steps += WINDOW
            now = time.perf_counter() - started
            if now - said > 5 or share >= stage.enough:
                said = now
                say(
                    f"{now:5.0f} s  step {steps:6d}  {stage.length:5d} tokens {stage.pairs:3d} pairs  loss {loss:.4f}"
                    f"  previous {previous:.4f}  right {share:.4f}"
                )
            if share >= stage.enough:
                break
            if last and share > best and now - saved > 10:
                best, saved = share, now
                save(trainer.model, directory)
        save(trainer.model, directory)
        if share < 0.5:
            say(f"stopped: {share:.3f} right at {stage.length} tokens, {stage.pairs} pairs")
            break
    return share


@torch.no_grad()
def accuracy(
    model: Any,
    length: int,
    *,
    pairs: int = EVAL_PAIRS,
    texts: int = 128,
    questions: int = 16,
    batch: int = 16,
) -> float:
    """Share of questions in fresh texts that a transformers model answers rightly, in its own forward pass."""
    generator = torch.Generator(model.device).manual_seed(FRESH_SEED + length)
    right = 0
    for _ in range(0, texts, batch):
        made = noise_texts(batch, length, pairs, questions, device=model.device, generator=generator)
        logits = model(input_ids=made.ids, use_cache=False).logits[:, made.asked]
        right += int((logits.argmax(-1) == made.answers).sum())
    return right / (texts * questions)


def report(directory: Path, device: torch.device) -> dict[str, dict[str, float]]:
    """Accuracy by weights' type and length of the model in a directory."""
    from transformers import AutoModelForCausalLM

    found: dict[str, dict[str, float]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(device).eval()
        found[name] = {str(length): accuracy(model, length) for length in LENGTHS}
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for the model")
    parser.add_argument("--setting", choices=sorted(SETTINGS), default="base")
    parser.add_argument(
        "--seconds", type=float, default=120, help="of training; loading and the report come on top"
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="of the first weights, instead of the setting's"
    )
    parser.add_argument("--eager", action="store_true", help="capture no CUDA graphs")
    chosen = parser.parse_args(arguments)
    setting = SETTINGS[chosen.setting]
    if chosen.seed is not None:
        setting = replace(setting, seed=chosen.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def say(text: str) -> None:
        print(f"{chosen.setting:8} {text}", flush=True)

    trainer = Trainer(setting, device, capture=device.type == "cuda" and not chosen.eager)
    millions = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    say(f"{millions:.2f} M parameters on {device.type}, {chosen.seconds:.0f} s")
    chosen.out.mkdir(parents=True, exist_ok=True)
    try:
        share = train(trainer, chosen.out, seconds=chosen.seconds, say=say)
    except NotCapturedError as error:
        say(f"steps could not be captured ({error}); use --eager")
        return NOT_CAPTURED
    save_tokenizer(chosen.out)
    found = report(chosen.out, device)
    result = {"setting": chosen.setting, "parameters_millions": millions, "trained": share, "accuracy": found}
    (chosen.out / "training.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, by_length in found.items():
        say(f"{name}: " + "  ".join(f"{length} tokens {value:.4f}" for length, value in by_length.items()))
    if min(found["bf16"].values()) < LEARNT:
        say(f"it did not learn: below {LEARNT} right at some length")
        return NOT_LEARNT
    say("it learnt the task")
    return 0


if __name__ == "__main__":
    sys.exit(main())
