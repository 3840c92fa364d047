"""lm-eval's command line over the embedded engine and any flow.

    python -m evaluators.lm_eval_plugin --model vortex --model_args model=smollm2-135m,flow=quest,budget=256 \
        --tasks gsm8k --limit 20

All of lm-eval's options work. lm-eval 0.4.13 finds models in its own registry alone, so its `lm_eval` command cannot
know ours; importing this module registers `vortex`, and running it is that command with the registration done first.
"""

from __future__ import annotations

import sys
from typing import Any

from lm_eval.api.registry import register_model

from evaluators.device import choose_device
from evaluators.tasks.lm_eval_adapter import EngineLM
from vortex_core.engine import Engine
from vortex_core.ir.crossover import NEVER
from vortex_core.ir.flow import Flow
from vortex_core.ir.knobs import Knobs
from vortex_core.serving.bundle import load_flow

_ENGINE = ("max_tokens", "threads")


def named_flow(source: str) -> Flow | None:
    """The flow that `flow=` names: of the library, an exported folder or bundle, or a `.py` file, traced in the
    jail. None for dense attention.

    Raises:
        VortexError: where there is none, or the verifier finds fault with it.
    """
    if source in ("", "dense"):
        return None
    if source.endswith(".py"):
        from vortex_core import library

        return library.resolve(source).flow
    return load_flow(source)


class VortexLM(EngineLM):
    """The model `vortex` of lm-eval.

    Args:
        model: name, directory, GGUF file or hub id.
        flow: see `named_flow`.
        device: `auto`, `cpu` or `cuda`.
        batch_size: sequences decoded together; `auto` is 8.
        max_gen_toks: tokens generated where a task does not say.
        seed: of sampled generations.
        others: `max_tokens` and `threads` of the engine, and knobs of the flow (`budget=256`).

    Raises:
        VortexError: an unknown model, flow or knob; no GPU.
    """

    def __init__(
        self,
        model: str,
        flow: str = "dense",
        *,
        device: str | None = "auto",
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
        **others: Any,
    ) -> None:
        chosen = named_flow(flow)
        options: dict[str, Any] = {name: int(others.pop(name)) for name in _ENGINE if name in others}
        if chosen is not None:
            # Knobs come as words of the command line; a budget may look like a number.
            knobs = {k: str(v) if k == "budget" else v for k, v in others.items()}
            chosen = chosen.with_knobs(**knobs)
        elif others:
            Knobs().with_(**others)  # names what is unknown
        engine = Engine.from_model(model, device=choose_device(device or "auto"), **options)
        if chosen is not None:
            engine.load_flow(chosen.program, chosen.knobs, crossover=NEVER)
        batch = 8 if isinstance(batch_size, str) and not batch_size.isdigit() else int(batch_size)
        super().__init__(engine, batch=batch, max_gen_toks=max_gen_toks, seed=seed)
        self.flow = chosen

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside its results: which program answered."""
        return {
            "model": self.engine.spec.name,
            "flow": "dense" if self.flow is None else self.flow.name,
            "ir_hash": self.engine.ir_hash,
            "knobs": None if self.flow is None else self.flow.knobs.to_json(),
        }


def main() -> None:
    """lm-eval's own command, with `vortex` among its models, on a GPU where there is one.

    Where nobody names a device lm-eval says `cuda:0` itself, on machines without a GPU too.
    """
    from lm_eval.__main__ import cli_evaluate

    words = [word.partition("=")[0] for word in sys.argv[1:]]
    if {"--model", "-M"} & set(words) and not {"--device", "--config", "-C"} & set(words):
        sys.argv += ["--device", "auto"]
    cli_evaluate()


if __name__ == "__main__":
    # The module that lm-eval will look at is this one under its own name, which registers the model: not `__main__`.
    from evaluators.lm_eval_plugin import main as run

    run()
else:
    register_model("vortex")(VortexLM)
