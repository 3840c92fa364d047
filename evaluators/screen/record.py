"""Recording a model's attention: one dense decode of some prompts, and one differentiated step of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from evaluators.screen.recording import FORMAT, AttentionRecording
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.engine.kv.blocks import BLOCK_TOKENS, blocks_for
from vortex_core.geometry import Geometry

if TYPE_CHECKING:
    from vortex_core.engine import DecodeResult, Engine, Prompt

TOKENS = 8  # likeliest tokens whose logits are differentiated
_ROWS = 16  # decode steps differentiated together


def evenly(count: int, of: int) -> tuple[int, ...]:
    """`count` of the numbers below `of`, the first and the last among them."""
    if count >= of:
        return tuple(range(of))
    return tuple(sorted({round(i * (of - 1) / max(1, count - 1)) for i in range(count)}))


def recording_key(identity: str, prompts: Sequence[Sequence[int]], steps: int, at: int) -> str:
    """16 hex digits of a recording's content: the engine's identity, the prompts, and how it is recorded."""
    facts = [FORMAT, TOKENS, identity, [list(ids) for ids in prompts], steps, at]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class _Recorder:
    """Collects rotated queries of every step, and at the last one the keys and values behind them."""

    def __init__(self, geometry: Geometry, steps: int) -> None:
        self.steps = steps
        self.queries: list[list[torch.Tensor]] = [[] for _ in range(geometry.layers)]  # [layer][step]
        self.keys: list[list[torch.Tensor]] = []  # [layer][prompt], [kv_head, token, dim]
        self.values: list[list[torch.Tensor]] = []
        self.lengths: list[int] = []

    def __call__(self, layer: int, q: torch.Tensor, kv: LayerKV, view: BatchView) -> None:
        """See `Engine.decode`."""
        done = self.queries[layer]
        done.append(q.clone())
        if len(done) < self.steps:
            return
        self.lengths = view.lengths.tolist()
        rows = list(zip(view.block_table, self.lengths, strict=True))
        self.keys.append([kv.k[:, table].flatten(1, 2)[:, :n].clone() for table, n in rows])
        self.values.append([kv.v[:, table].flatten(1, 2)[:, :n].clone() for table, n in rows])


def record_attention(
    engine: Engine,
    prompts: Sequence[Prompt],
    kinds: Sequence[str],
    *,
    steps: int,
    at: int,
    key: str,
    scale: float,
) -> AttentionRecording:
    """Decode prompts densely and greedily for `steps` steps and keep what attention saw.

    The engine's flow must be dense. Where its modules can be differentiated (the torch backend), the recording holds
    what of an attention output reaches the logits.

    Args:
        kinds: by prompt, the task it came from.
        at: steps looked at by programs without memory, evenly spaced.
        scale: what q·k is multiplied by.
    """
    assert engine.flow is None, "attention is recorded densely"
    recorder = _Recorder(engine.geometry, steps)
    result: DecodeResult = engine.decode(prompts, max_new_tokens=steps, recorder=recorder)
    g = engine.geometry
    blocks = [blocks_for(n) for n in recorder.lengths]
    starts = [sum(blocks[:i]) * BLOCK_TOKENS for i in range(len(blocks))]
    slots = sum(blocks) * BLOCK_TOKENS
    k = torch.zeros((g.layers, g.kv_heads, slots, g.head_dim), dtype=engine.kv_dtype, device=engine.device)
    v = k[..., : g.value_dim] if g.is_mla else k.new_zeros((*k.shape[:-1], g.value_dim))
    for layer in range(g.layers):
        for b, start in enumerate(starts):
            n = recorder.lengths[b]
            k[layer, :, start : start + n] = recorder.keys[layer][b]
            if not g.is_mla:
                v[layer, :, start : start + n] = recorder.values[layer][b]
    q = torch.stack([torch.stack(layer) for layer in recorder.queries])  # [layer, step, prompt, q_head, dim]
    recording = AttentionRecording(
        key, engine.spec.name, g, scale, tuple(kinds), tuple(recorder.lengths), tuple(starts), steps,
        evenly(at, steps), k, v, q.permute(1, 2, 0, 3, 4).contiguous(), None, None,
    )  # fmt: skip
    if engine.captures:  # fused kernels have no derivatives
        return recording
    inputs = [
        [p.token_ids[-1], *tokens[: steps - 1]] for p, tokens in zip(prompts, result.tokens, strict=True)
    ]
    return _with_slopes(recording, engine, inputs)


class _DifferentiatedStep:
    """Rows of one decode step each, over recorded keys and values, with a zero added to every attention output whose
    derivative is wanted. See `attention_hook.Step`."""

    def __init__(self, recording: AttentionRecording, rows: Sequence[tuple[int, int]]) -> None:
        g = recording.geometry
        self.recording, self.rows = recording, rows
        self.added = [
            torch.zeros(len(rows), g.q_heads, g.value_dim, requires_grad=True) for _ in range(g.layers)
        ]

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Dense attention of every row; `q` is `[row, q_head, 1, dim]`."""
        found, g = [], self.recording.geometry
        for i, (step, b) in enumerate(self.rows):
            start, n = self.recording.starts[b], self.recording.lengths_at(step)[b]
            past = slice(start, start + n - 1)
            keys = torch.cat((self.recording.k[layer, :, past].to(k.dtype), k[i]), 1).float()
            values = torch.cat((self.recording.v[layer, :, past].to(v.dtype), v[i]), 1).float()
            grouped = q[i, :, 0].float().unflatten(0, (g.kv_heads, g.group))
            weights = torch.softmax(grouped @ keys.transpose(-1, -2) * scale, -1)
            found.append((weights @ values).flatten(0, 1))
        out = torch.stack(found) + self.added[layer]
        return out.to(q.dtype)[:, None]


def _with_slopes(
    recording: AttentionRecording, engine: Engine, inputs: Sequence[Sequence[int]]
) -> AttentionRecording:
    """A recording with the derivatives of its likeliest tokens' logits.

    Args:
        inputs: by prompt, the token that each step read.
    """
    rows = [(step, b) for step in recording.at for b in range(recording.prompts)]
    slopes, logprobs = [], []
    for first in range(0, len(rows), _ROWS):
        part = rows[first : first + _ROWS]
        step = _DifferentiatedStep(recording, part)
        ids = torch.tensor([[inputs[b][at]] for at, b in part])
        positions = torch.tensor([[recording.lengths_at(at)[b] - 1] for at, b in part])
        with torch.enable_grad():
            output: Any = engine.model(
                input_ids=ids, position_ids=positions, use_cache=False, vortex_step=step
            )
            logits = output.logits[:, -1].float()
            top = torch.log_softmax(logits.detach(), -1).topk(TOKENS, -1)
            # Only differences of logits matter; less their mean, a token's change is its own.
            wanted = (logits.gather(-1, top.indices) - logits.mean(-1, keepdim=True)).sum(0)
            found = [
                torch.stack(torch.autograd.grad(wanted[i], step.added, retain_graph=i + 1 < TOKENS), 1)
                for i in range(TOKENS)
            ]  # each [row, layer, q_head, value_dim]
        slopes.append(torch.stack(found))
        logprobs.append(top.values.T)
    shape = (len(recording.at), recording.prompts)
    joined = torch.cat(slopes, 1).unflatten(1, shape).float()
    about = {f: getattr(recording, f) for f in recording.__dataclass_fields__}
    return AttentionRecording(
        **about | {"slopes": joined, "logprobs": torch.cat(logprobs, 1).unflatten(1, shape)}
    )
