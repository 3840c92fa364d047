"""From what SGLang's arms measured to speed-ups, floors and a table."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

COPY_BANDWIDTH = {"NVIDIA H100 80GB HBM3": 3.03e12, "NVIDIA H200": 4.28e12}  # bytes/s, read + write, measured


def density_since(before: dict[str, Any], after: dict[str, Any]) -> float | None:
    """Share of the tokens there that the plug-in's sampled steps attended between two reports."""
    there = after.get("tokens_there", 0.0) - before.get("tokens_there", 0.0)
    if not there:
        return None
    return float((after["attended_tokens"] - before.get("attended_tokens", 0.0)) / there)


@dataclass(frozen=True)
class Saved:
    """Dense attention's bytes, for the floor of a sparse step.

    Attributes:
        bytes_per_token: of K and V on one rank, all layers.
        layers: of the model.
        bandwidth: bytes/s; None: no floor is computed.
        new: tokens of a sequence beyond its prompt, on average.
    """

    bytes_per_token: int
    layers: int
    bandwidth: float | None
    new: float

    def floor_ms(
        self, dense_ms: float, batch: int, context: int, density: float, sparse_layers: int
    ) -> float | None:
        """The dense step without the time of the bytes that a sparse one does not read. Reading page states,
        scoring and selecting count as nothing."""
        if self.bandwidth is None:
            return None
        tokens = batch * (context + self.new) * (1 - density) * sparse_layers / self.layers
        return dense_ms - tokens * self.bytes_per_token / self.bandwidth * 1e3


def table(arms: list[dict[str, Any]], saved: Saved, meaningful: bool) -> tuple[list[dict[str, Any]], str]:
    """Medians over rounds by arm and shape, with the speed-up over the best dense arm, and token parity where
    answers are `meaningful`."""
    by: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for arm in arms:
        for r in arm["results"]:
            by.setdefault((arm["arm"], r["batch"], r["context"]), []).append(r)
    medians = {key: statistics.median(r["ms_step"] for r in rows) for key, rows in by.items()}
    status = {arm["arm"]: arm.get("status") or {} for arm in arms}
    rows = []
    for (name, batch, context), found in by.items():
        ms, ran, density = medians[name, batch, context], status[name], found[-1]["density"]
        dense = {k: v for k, v in medians.items() if k[0].startswith("dense:") and k[1:] == (batch, context)}
        # Two generations that differ by less than the host's jitter measure nothing.
        best = min(dense, key=lambda k: dense[k] if dense[k] > 0 else math.inf) if dense else None
        timed = ms > 0 and (best is None or dense[best] > 0)
        same = alike = floor = None
        if best is not None and best[0] != name:
            if meaningful:
                pairs = list(zip(found[0]["tokens"], by[best][0]["tokens"], strict=True))
                same = sum(a == b for a, b in pairs)
                alike = statistics.mean(x == y for a, b in pairs for x, y in zip(a, b, strict=True))
            if density is not None and timed:
                floor = saved.floor_ms(dense[best], batch, context, density, ran["sparse_layers"])
        rows.append({
            "arm": name, "batch": batch, "context": context, "ms_step": round(ms, 3),
            "tok_s": round(batch / ms * 1e3, 1) if ms > 0 else None,
            "all_ms": [ms for r in found for ms in r["all_ms"]],
            "tpot_p50_ms": statistics.median(r["tpot_p50_ms"] for r in found),
            "tpot_p95_ms": statistics.median(r["tpot_p95_ms"] for r in found), "rounds": len(found),
            "speedup": round(dense[best] / ms, 3) if best is not None and timed else None,
            "best_dense": None if best is None else best[0],
            "floor_ms": None if floor is None else round(floor, 3),
            "share_of_allowed": None if floor is None else round(floor / ms, 3),
            "answers_equal_to_dense": same, "tokens_equal_to_dense": alike,
            "density": density, "ir_hash": ran.get("ir_hash"),
        })  # fmt: skip
    head = "| arm | batch | context | ms a step (least-most) | P50 | P95 | tok/s | over best dense | of the floor |"
    lines = [f"{head} answers as dense | density |", "|---" * 11 + "|"]
    for r in sorted(rows, key=lambda r: (r["batch"], r["context"], r["arm"])):
        density = "" if r["density"] is None else f"{r['density']:.3f}"
        same = ""
        if r["answers_equal_to_dense"] is not None:
            same = f"{r['answers_equal_to_dense']}/{r['batch']} ({r['tokens_equal_to_dense']:.0%} of tokens)"
        rate = "lost in jitter" if r["tok_s"] is None else f"{r['tok_s']:,.0f}"
        share = "" if r["share_of_allowed"] is None else f"{r['share_of_allowed']:.0%}"
        lines.append(
            f"| {r['arm']} | {r['batch']} | {r['context']:,} "
            f"| {r['ms_step']:.2f} ({min(r['all_ms']):.2f}-{max(r['all_ms']):.2f}) "
            f"| {r['tpot_p50_ms']:.2f} | {r['tpot_p95_ms']:.2f} | {rate} "
            f"| {r['speedup'] or ''} | {share} | {same} | {density} |"
        )
    return rows, "\n".join(lines)
