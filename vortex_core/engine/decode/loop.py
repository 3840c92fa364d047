"""Stepping a live batch: one token for all, or until each of its sequences is done."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch

from vortex_core.engine.decode.batch import DecodeBatch, DecodeStep, Recorder
from vortex_core.engine.decode.sampling import Sampler, choose, token_logprobs

if TYPE_CHECKING:
    from vortex_core.engine.decode.runners import AnyBatch
    from vortex_core.engine.engine import Engine


def decode_to_end(
    engine: Engine,
    batch: AnyBatch,
    sampler: Sampler,
    steps: Sequence[int],
    forced: Sequence[Sequence[int | None]] | None,
    stop_ids: Collection[int],
    recorder: Recorder | None,
) -> list[float]:
    """Decode a batch until every sequence has its tokens; see `Engine.decode`. Seconds of each step.

    Where nothing has to be looked at between steps, a captured batch runs ahead of the host.
    """
    sequences = list(batch.sequences)
    active = list(range(len(sequences)))
    seconds: list[float] = []
    watched = recorder is not None or forced is not None or not sampler.greedy
    while active:
        if isinstance(batch, DecodeBatch) or watched:
            started = time.perf_counter()
            wanted: list[int | None] | None = None
            if forced is not None:
                wanted = [forced[i][len(sequences[i].tokens)] for i in active]
            one_step(engine, batch, sampler, wanted, recorder)
            seconds.append(time.perf_counter() - started)
        else:
            with torch.inference_mode():
                left = min(steps[i] - len(sequences[i].tokens) for i in active)
                seconds += batch.run_ahead(left, stop_ids)
        going = [
            row
            for row, i in enumerate(active)
            if len(sequences[i].tokens) < steps[i] and sequences[i].tokens[-1] not in stop_ids
        ]
        if len(going) < len(active):
            active = [active[row] for row in going]
            batch.keep(going)
            sampler.keep(going)
    return seconds


def one_step(
    engine: Engine,
    batch: AnyBatch,
    sampler: Sampler,
    forced: Sequence[int | None] | None = None,
    recorder: Recorder | None = None,
) -> None:
    """One token for every sequence of a batch, chosen by `sampler` where `forced` gives none."""
    with torch.inference_mode():
        if not isinstance(batch, DecodeBatch):
            batch.advance(sampler, forced, recorder)
            return
        step = DecodeStep(batch, recorder)
        output = engine.model(
            input_ids=step.tokens, position_ids=step.positions, use_cache=False, vortex_step=step
        )
        logits = output.logits[:, -1].float()
        chosen = choose(sampler, logits, forced)
        logprobs = token_logprobs(logits, chosen).tolist()
    for sequence, token, logprob in zip(batch.sequences, chosen.tolist(), logprobs, strict=True):
        sequence.decode_steps += 1
        sequence.next_token = token
        sequence.tokens.append(token)
        sequence.logprobs.append(logprob)
