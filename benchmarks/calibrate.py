"""Calibrate the library's flows that need offline statistics: python -m benchmarks.calibrate --out runs/calibrated

Keys and queries are recorded while a model reads two speeches. From them come Loki's principal components, Double
Sparsity's channels and PQCache's centroids, per layer and kv head. Each flow is written with its values beside it
(`loki.py`, `loki.npz`), ready for `vortex-search check` and `python -m benchmarks.recall --files runs/calibrated/*.py`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import torch

from evaluators.bench import attention_scale
from evaluators.data import documents
from evaluators.recall import Recorder, Recording
from vortex_core import library
from vortex_core.engine import Engine

TOKENS = 2048
TEXTS = (0, 2)  # of the haystack: speeches that no prompt of benchmarks.recall quotes
STEPS = 16


def record(model: str) -> Recording:
    """Keys of the texts and the queries of a few steps after each."""
    engine = Engine.from_model(model, max_tokens=len(TEXTS) * (TOKENS + 512))
    prompts = []
    for i in TEXTS:
        ids = engine.tokenizer(documents("haystack")[i], add_special_tokens=False)["input_ids"][:TOKENS]
        prompts.append(engine.prefill(ids))
    recorder = Recorder(engine.geometry, STEPS, attention_scale(engine))
    engine.load_flow(None)
    engine.decode(prompts, max_new_tokens=STEPS, recorder=recorder)
    return recorder.finish()


def keys(recording: Recording, layer: int) -> torch.Tensor:
    """`[kv_head, token, dim]` of all texts, without the first 64 tokens (sinks are outliers)."""
    spans = [slice(s + 64, s + n) for s, n in zip(recording.starts, recording.lengths, strict=True)]
    return torch.cat([recording.pool.k[layer, :, span] for span in spans], 1).float()


def queries(recording: Recording, layer: int) -> torch.Tensor:
    """`[kv_head, sample, dim]`."""
    g = recording.geometry
    q = torch.cat(recording.queries[layer]).float()  # [step x prompt, q_head, dim]
    return q.unflatten(1, (g.kv_heads, g.group)).permute(1, 0, 2, 3).flatten(1, 2)


def components(recording: Recording, rank: int) -> np.ndarray:
    """Loki: leading principal components of the keys, `[layer, kv_head, rank, dim]`. Adding the same vector to
    all keys of a sequence changes no attention, so the mean is removed."""
    found = []
    for layer in range(recording.geometry.layers):
        k = keys(recording, layer)
        _, _, v = torch.linalg.svd(k - k.mean(1, keepdim=True), full_matrices=False)
        found.append(v[:, :rank])
    return torch.stack(found).numpy()


def channels(recording: Recording, rank: int) -> np.ndarray:
    """Double Sparsity: the channels with the largest mean |q_c| mean |k_c|, one-hot `[layer, kv_head, rank, dim]`."""
    found = []
    for layer in range(recording.geometry.layers):
        k, q = keys(recording, layer), queries(recording, layer)
        spread = (k - k.mean(1, keepdim=True)).abs().mean(1) * q.abs().mean(1)  # [kv_head, dim]
        best = spread.topk(rank, -1).indices
        found.append(torch.nn.functional.one_hot(best, k.shape[-1]).float())
    return torch.stack(found).numpy()


def centroids(recording: Recording, parts: int, codes: int, rounds: int = 12) -> np.ndarray:
    """PQCache: k-means of every part of the keys, `[layer, kv_head, part, code, dim / parts]`."""
    g, generator = recording.geometry, torch.Generator().manual_seed(0)
    found = torch.zeros(g.layers, g.kv_heads, parts, codes, g.head_dim // parts)
    for layer in range(g.layers):
        for head, rows in enumerate(keys(recording, layer)):
            for part, x in enumerate(rows.unflatten(-1, (parts, -1)).unbind(1)):
                c = x[torch.randperm(len(x), generator=generator)[:codes]]
                for _ in range(rounds):
                    nearest = torch.cdist(x, c).argmin(1)
                    sums = torch.zeros_like(c).index_add_(0, nearest, x)
                    counts = torch.bincount(nearest, minlength=codes).unsqueeze(1)
                    c = torch.where(counts > 0, sums / counts.clamp_min(1), c)  # an empty cluster stays
                found[layer, head, part] = c
    return found.numpy()


def write(out: Path, name: str, recording: Recording, **values: np.ndarray) -> None:
    """The flow for this model's layers and kv heads, and its values beside it."""
    g = recording.geometry
    source = re.sub(r"= 30, 3,", f"= {g.layers}, {g.kv_heads},", library.source(name), count=1)
    (out / f"{name}.py").write_text(source, encoding="utf-8")
    np.savez(out / f"{name}.npz", **values)  # type: ignore[arg-type]  # numpy types its keywords as flags
    print(f"{out / name}.py: {library.resolve(str(out / f'{name}.py')).key}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--model", default="smollm2-135m")
    found.add_argument("--out", type=Path, default=Path("runs/calibrated"))
    return found


def main() -> None:
    """Record, calibrate, write."""
    args = parser().parse_args()
    recording = record(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out, "loki", recording, components=components(recording, 16))
    write(args.out, "double_sparsity", recording, channels=channels(recording, 16))
    write(args.out, "pqcache", recording, centroids=centroids(recording, 2, 64))


if __name__ == "__main__":
    main()
