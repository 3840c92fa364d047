"""Attention over the lists of one selection, timed under every cut that may be sensible (`tuning --sweep`).

After each launch stands a small one that starts when it has ended, as the model's own do: launches of attention one
after the other overlap, those with a block a multiprocessor the most, and no step has two in a row. `alone_us` is
without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from triton.errors import TritonError

from benchmarks.kernels_timing import Report
from vortex_core.compiler.triton.tuning.case import TuneCase
from vortex_core.compiler.triton.tuning.timing import graph_time, relative_error
from vortex_core.compiler.triton.tuning.tune import ATTENTION_ERROR, compare
from vortex_core.kernels import paged_decode_workspace
from vortex_core.kernels.compile_ahead import compiling_ahead
from vortex_core.kernels.decode.config import DecodeConfig
from vortex_core.kernels.decode.split_launch import even_splits
from vortex_core.kernels.reference import gather_row
from vortex_core.kernels.runtime import INTERPRETED, multiprocessors
from vortex_core.kernels.select import api as select
from vortex_core.page_list import PageList

SHARED = 227 * 1024  # of a multiprocessor of Hopper and Blackwell
BESIDE = 9 * 1024  # of a block: the query, what warps exchange, what the system keeps
TILES: tuple[tuple[int, int], ...] = (  # tokens, warps
    (32, 1), (32, 4), (64, 2), (64, 4), (128, 4), (128, 8), (256, 8),
)  # fmt: skip
IN_FLIGHT = 48 * 1024  # bytes a multiprocessor: 4.3 TB/s for a microsecond and a half, over 132 of them
NEAR = 4  # so many of the fastest are varied, twice
FINALISTS = 6  # so many are timed again beside the default, three times
ANY = 1 << 30  # programs of a launch


@dataclass(frozen=True)
class Lists:
    """What is attended: `rows` lists of up to `tokens`, and how many programs there may be a multiprocessor."""

    pages: PageList
    token_bytes: int
    multiprocessors: int
    most_workers: int

    @property
    def rows(self) -> int:
        return self.pages.batch * self.pages.heads

    @property
    def tokens(self) -> int:
        return self.pages.columns * self.pages.page_size

    def pieces(self, config: DecodeConfig) -> int:
        """Pieces of a row; 0 where the launch is planned instead."""
        workers = config.workers_per_sm * self.multiprocessors
        return even_splits(self.pages, self.tokens, workers, config.block_n * config.min_tiles)

    def key(self, config: DecodeConfig) -> tuple[Any, ...]:
        """What tells launches apart: the same pieces in the same order are the same launch."""
        pieces = self.pieces(config)
        fused = config.fused_merge if pieces > 1 else None
        early = config.workers_per_sm == 1
        shape = config.block_n, config.num_warps, config.num_stages
        return (*shape, pieces, early, fused, config.late_sums)


def cuts(lists: Lists, tiles: Iterable[tuple[int, int]] = TILES) -> Iterator[DecodeConfig]:
    """Tiles, stages, programs a multiprocessor and merges, as far as they fit shared memory and rows have tiles."""
    for block_n, warps in tiles:
        for stages in (2, 3, 4, 6):
            for workers in range(1, lists.most_workers + 1):
                loading = (stages - 1) * block_n * lists.token_bytes
                config = DecodeConfig(block_n, warps, stages, workers, fused_merge=True, even=True)
                pieces = lists.pieces(config)
                if workers * (loading + BESIDE) > SHARED or pieces == 0:
                    continue
                tiles = max(1, -(-lists.tokens // (block_n * pieces)))
                if stages - 1 > tiles or (stages - 1 < tiles and workers * loading < IN_FLIGHT):
                    continue  # more tiles in flight than a piece has, or too few to keep memory busy
                yield config
                if pieces > 1:
                    yield replace(config, fused_merge=False)


def neighbours(config: DecodeConfig, lists: Lists) -> Iterator[DecodeConfig]:
    """The same with sums at the end, in half as many pieces and whole, and both."""
    yield replace(config, late_sums=True)
    tiles, pieces = -(-lists.tokens // config.block_n), lists.pieces(config)
    for fewer in sorted({pieces // 2, 1}) if pieces > 1 else ():
        longer = replace(config, min_tiles=-(-tiles // fewer))
        yield longer
        yield replace(longer, late_sums=True)


def exact(case: TuneCase, pages: PageList, request: int) -> torch.Tensor:
    """fp64 attention of one sequence over its lists."""
    (k, v), heads = case.kv[0].by_page, pages.heads
    found = []
    for h in range(heads):
        n = int(pages.lengths[request, h])
        keys, values = (gather_row(x, pages.page_ids[request, h], n, h) for x in (k, v))
        q = case.q[request].view(heads, -1, k.shape[3])[h].double()
        found.append(torch.softmax(q @ keys.T * k.shape[3] ** -0.5, -1) @ values)
    return torch.cat(found)


class Sweep:
    """One case: launches under a cut, checked against the default, and the default against fp64.

    Attributes:
        between: what the small launch between two of attention writes.

    Args:
        workers: programs a multiprocessor that scratch is made for; 0: as many as that of the engines holds.
    """

    def __init__(self, case: TuneCase, workers: int = 0) -> None:
        self.case = case
        if case.geometry.is_mla or case.program.per_query_head:
            raise ValueError("cuts are those of attention with lists of kv heads")
        g = case.geometry
        if workers:
            config = replace(case.attention, workers_per_sm=workers)
            space = paged_decode_workspace(case.batch, g.kv_heads, g.group, g.value_dim, case.device, config)
            case.plan = replace(case.plan, workspace=space)
        full = case.lists()
        k = case.kv[0].k
        sms = multiprocessors(case.device)
        width = 2 * g.head_dim * k.element_size()
        self.lists = Lists(full, width, sms, case.plan.workspace.plan.shape[0] // sms)
        self.ragged = case.lists(ragged=True)
        self.default = case.attention
        self.between = torch.zeros(1024, device=case.device)
        self.want = self._run(self.default)
        for request in {0, case.batch - 1}:
            error = relative_error(self.want[0][request], exact(case, self.ragged, request))
            if not error <= ATTENTION_ERROR:
                raise AssertionError(f"the default's relative error is {error:.1e} against fp64")

    def _run(self, config: DecodeConfig) -> list[torch.Tensor]:
        self.case.out.fill_(float("nan"))
        return [self.case.attend(config, 0, self.ragged).clone()]

    def check(self, config: DecodeConfig) -> str:
        """Empty where a cut computes what the default does, of lists of every length."""
        return compare(partial(self._run, config), self.want, ATTENTION_ERROR)

    def time(self, config: DecodeConfig | None, *, alone: bool = False, **how: Any) -> float:
        """Microseconds of a launch and its merge, layer by layer; None: of the small launch after it."""

        def launch(layer: int) -> None:
            if config is not None:
                self.case.attend(config, layer, self.lists.pages)
            if not alone:
                self.between.add_(1.0)

        return graph_time([partial(launch, n) for n in range(len(self.case.kv))], **how)

    def tried(self, wanted: Iterable[DecodeConfig], seen: set[Any]) -> list[DecodeConfig]:
        """Those that are launches of their own and not in `seen`, compiled side by side."""
        found = []
        for config in wanted:
            key = self.lists.key(config)
            if key not in seen:
                seen.add(key)
                found.append(config)
        if not INTERPRETED:
            with compiling_ahead():
                for config in found:
                    self._run(config)
        return found

    def rows(self, tiles: Sequence[tuple[int, int]] = TILES, *, timed: bool = True) -> list[dict[str, Any]]:
        """Every cut with its time, the default first, then from the fastest on; what was refused at the end."""
        seen: set[Any] = set()
        first = self.tried([self.default, *cuts(self.lists, tiles)], seen)
        results = {config: self._one(config, timed) for config in first}
        for _ in range(2):  # from the best so far, and from what came of it
            best = sorted((us, n) for n, (us, _) in enumerate(results.values()) if us is not None)
            near = [list(results)[n] for _, n in best[:NEAR]] if timed else list(results)[:NEAR]
            more = self.tried([c for config in near for c in neighbours(config, self.lists)], seen)
            results |= {config: self._one(config, timed) for config in more}
        finals: dict[DecodeConfig, list[float]] = {}
        alone: dict[DecodeConfig, float] = {}
        if timed:
            order = sorted((us, n) for n, (us, _) in enumerate(results.values()) if us is not None)
            kept = [list(results)[n] for _, n in order[:FINALISTS]]
            for _ in range(3):
                for config in dict.fromkeys([self.default, *kept]):
                    finals.setdefault(config, []).append(self.time(config, replays=9))
            alone = {config: self.time(config, alone=True, replays=9) for config in finals}
        made = [
            {**self._row(config, *found, finals.get(config)), "alone_us": alone.get(config)}
            for config, found in results.items()
        ]
        return sorted(
            made, key=lambda r: (not r["default"], r["refused"], r["again_us"] or 1e9, r["us"] or 1e9)
        )

    def _one(self, config: DecodeConfig, timed: bool) -> tuple[float | None, str]:
        try:
            refused = self.check(config)
            if refused or not timed:
                return None, refused
            return self.time(config, replays=5, replay_ms=1.0), ""
        except (RuntimeError, TritonError) as error:  # the others go on without what the driver refuses
            return None, f"{type(error).__name__}: {error}"[:120]

    def steps(self, best: DecodeConfig) -> list[dict[str, Any]]:
        """Whole steps of a layer: scores, selection, attention as by default and at its best, and the small launch;
        with a selection that lets attention take its places at once, too."""
        case, view = self.case, self.case.view()
        kinds = [(cut, early) for cut in dict.fromkeys((self.default, best)) for early in (0, ANY)]
        found: dict[tuple[DecodeConfig, int], list[float]] = {kind: [] for kind in kinds}
        wanted: torch.Tensor | None = None
        for _ in range(3):
            for cut, early in kinds:

                def launch(layer: int, cut: DecodeConfig = cut) -> None:
                    case.step(case.default, cut, layer, view)
                    self.between.add_(1.0)

                with mock.patch.object(select, "EARLY_PROGRAMS", early):
                    launch(0)
                    wanted = case.out.clone() if wanted is None else wanted
                    error = relative_error(case.out, wanted)
                    if not error <= ATTENTION_ERROR:
                        raise AssertionError(
                            f"a step's relative error is {error:.1e}, released early: {early > 0}"
                        )
                    us = graph_time([partial(launch, n) for n in range(len(case.kv))], replays=9)
                    found[cut, early].append(us)
        return [
            {
                "cut": "default" if cut == self.default else "best",
                "early": early > 0,
                "step_us": sorted(us)[1],
            }
            for (cut, early), us in found.items()
        ]

    def _row(
        self, config: DecodeConfig, us: float | None, refused: str, again: list[float] | None
    ) -> dict[str, Any]:
        pieces = self.lists.pieces(config)
        return {
            "tile": config.block_n, "warps": config.num_warps, "stages": config.num_stages,
            "workers": config.workers_per_sm, "min_tiles": config.min_tiles, "pieces": pieces,
            "blocks": self.lists.rows * max(1, pieces),
            "merge": "" if pieces < 2 else "fused" if config.fused_merge else "apart",
            "late_sums": config.late_sums, "default": config == self.default, "us": us,  # of a short look
            "again_us": sorted(again)[len(again) // 2] if again else None, "refused": refused,
        }  # fmt: skip


def config_of(row: dict[str, Any]) -> DecodeConfig:
    """The cut of a row."""
    numbers = (row["tile"], row["warps"], row["stages"], row["workers"], row["min_tiles"])
    return DecodeConfig(*numbers, fused_merge=row["merge"] != "apart", even=True, late_sums=row["late_sums"])


def text(row: dict[str, Any]) -> str:
    """A cut in a line, as `kernels.decode.config` would write it."""
    late = ", late_sums=True" if row["late_sums"] else ""
    numbers = (row["tile"], row["warps"], row["stages"], row["workers"], row["min_tiles"])
    fused = row["merge"] != "apart"
    return (
        f"DecodeConfig({', '.join(map(str, numbers))}, fused_merge={fused}, even=True{late}): "
        f"{row['pieces']} pieces, {row['blocks']} blocks"
    )


def sweep(report: Report, case: TuneCase, keys: dict[str, Any], shown: int = 5) -> None:
    """Time all cuts of a case; all rows to the report, the default and the fastest to the screen."""
    made = Sweep(case)
    lists = made.lists
    floor = report.floor_us(lists.rows * lists.tokens * lists.token_bytes)
    rows = made.rows()
    for row in rows:
        report.rows.append({"section": "attention cuts", **keys, "floor_us": floor, **row})
    refused = [row for row in rows if row["refused"]]
    head = " ".join(str(value) for value in keys.values())
    between = made.time(None)
    print(
        f"SWEEP {head}: floor {floor:.1f} us, {len(rows)} cuts, {len(refused)} refused; "
        f"times with a launch between of {between:.2f} us (alone)",
        flush=True,
    )
    default = rows[0]["again_us"]
    for row in rows[: shown + 1]:
        if row["again_us"] is not None:
            mark = "DEFAULT" if row["default"] else f"{default / row['again_us']:.3f}x  "
            print(f"  {row['again_us']:7.2f} us ({row['alone_us']:.2f}) {mark} {text(row)}", flush=True)
    best = min((row for row in rows if row["again_us"] is not None), key=lambda r: r["again_us"])
    for step in made.steps(config_of(best)):
        report.rows.append({"section": "steps", **keys, **step})
        early = ", selection released early" if step["early"] else ""
        print(f"  step {step['step_us']:.2f} us, attention's {step['cut']} cut{early}", flush=True)
    for row in [row for row in refused if row["refused"].startswith("wrong")]:
        print("  WRONG", text(row), row["refused"], flush=True)
