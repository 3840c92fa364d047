"""lm-eval over the embedded engine: any of its tasks, answered with the flow that is loaded.

The prompt's prefill is dense; every scored or generated token comes from a decode step of the flow. So a
log-likelihood here is that of the sparse model, at one step a token.

    model = EngineLM(engine)                      # the engine's loaded flow decides what is measured
    lm_eval.simple_evaluate(model=model, tasks=[...])
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from vortex_core.engine import Engine, Prompt, Request, Sampling

_LIKELIER_THAN_ALL_OTHERS = math.log(0.5)
_SAMPLING_KEYS = {"temperature", "top_p", "top_k"}
_KNOWN_KEYS = _SAMPLING_KEYS | {"until", "max_gen_toks", "do_sample"}


class EngineLM(TemplateLM):
    """See lm-eval's `TemplateLM`. Swap flows between evaluations with `engine.load_flow`.

    Args:
        engine: with a tokenizer.
        batch: sequences decoded together.
        max_gen_toks: tokens generated where a task does not say.
        seed: of sampled generations; request `i` of a call draws with `seed + i`.
    """

    def __init__(self, engine: Engine, *, batch: int = 8, max_gen_toks: int = 256, seed: int = 0) -> None:
        super().__init__()
        assert engine.tokenizer is not None, "lm-eval works on text: the engine needs a tokenizer"
        self.engine = engine
        self.tokenizer = engine.tokenizer
        self.batch = batch
        self.max_gen_toks = max_gen_toks
        self.seed = seed

    @property
    def eot_token_id(self) -> int:
        """End of text; also the first token where a context is empty."""
        return int(self.tokenizer.eos_token_id)

    @property
    def max_length(self) -> int:
        """Tokens the model can read."""
        return self.engine.spec.max_context

    @property
    def tokenizer_name(self) -> str:
        """Names the chat template in lm-eval's caches."""
        return self.engine.spec.name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text. Special tokens are added only when asked for: contexts bring their own."""
        return list(self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        results: list[tuple[float, bool]] = []
        for start in range(0, len(requests), self.batch):
            part = requests[start : start + self.batch]
            contexts = [self._fit(context, len(target)) for _, context, target in part]
            targets = [list(target) for _, _, target in part]
            with self._prompts(contexts) as prompts:
                forced = self.engine.decode(prompts, max_new_tokens=max(map(len, targets)), forced=targets)
                unsure = [i for i, row in enumerate(forced.logprobs) if min(row) <= _LIKELIER_THAN_ALL_OTHERS]
                greedy = [True] * len(part)
                if unsure:  # only a greedy decode tells whether another token was likelier
                    free = self.engine.decode(
                        [prompts[i] for i in unsure], max_new_tokens=max(len(targets[i]) for i in unsure)
                    )
                    for i, tokens in zip(unsure, free.tokens, strict=True):
                        greedy[i] = tokens[: len(targets[i])] == targets[i]
            results += [(sum(row), flag) for row, flag in zip(forced.logprobs, greedy, strict=True)]
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in disjoint windows with as much context as fits."""
        totals = []
        for request in requests:
            (text,) = request.args
            windows = map(
                make_disjoint_window,
                get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.eot_token_id,
                    max_seq_len=self.max_length - 1,
                    context_len=1,
                ),
            )
            total = 0.0
            for context, target in windows:
                with self._prompts([context]) as prompts:
                    decoded = self.engine.decode(prompts, max_new_tokens=len(target), forced=[target])
                total += sum(decoded.logprobs[0])
            totals.append(total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Generations, cut before the first of their stop strings.

        A stop string that is a single token ends the decoding; others only cut the text.

        Raises:
            ValueError: for a generation argument this adapter does not know.
        """
        wanted = []
        stops = []
        for i, request in enumerate(requests):
            context, arguments = request.args
            unknown = set(arguments) - _KNOWN_KEYS
            if unknown:
                raise ValueError(f"generation arguments {sorted(unknown)} are not supported")
            until = arguments.get("until") or []
            until = [until] if isinstance(until, str) else list(until)
            limit = int(arguments.get("max_gen_toks", self.max_gen_toks))
            single = [ids[0] for text in until if len(ids := self.tok_encode(text)) == 1]
            wanted.append(
                Request(
                    self._fit(self.tok_encode(context), limit),
                    limit,
                    stop_ids=(self.eot_token_id, *single),
                    sampling=self._sampling(arguments, i),
                )
            )
            stops.append(until)
        finished = self.engine.generate(wanted, max_batch=self.batch)
        texts = []
        for done, until in zip(finished, stops, strict=True):
            text = self.tokenizer.decode(done.tokens, skip_special_tokens=True)
            ends = [at for stop in until if stop and (at := text.find(stop)) >= 0]
            texts.append(text[: min(ends)] if ends else text)
        return texts

    def _sampling(self, arguments: dict[str, Any], index: int) -> Sampling:
        if not arguments.get("do_sample", False):
            return Sampling()
        given = {key: arguments[key] for key in _SAMPLING_KEYS if key in arguments}
        return Sampling(**({"temperature": 1.0} | given), seed=self.seed + index)

    def _fit(self, context: Sequence[int], new_tokens: int) -> list[int]:
        """The end of a context that leaves room for new tokens."""
        return list(context[-(self.max_length - new_tokens) :])

    @contextmanager
    def _prompts(self, contexts: Sequence[Sequence[int]]) -> Iterator[list[Prompt]]:
        prompts: list[Prompt] = []
        try:
            for context in contexts:
                prompts.append(self.engine.prefill(context))
            yield prompts
        finally:
            for prompt in prompts:
                self.engine.release(prompt)
