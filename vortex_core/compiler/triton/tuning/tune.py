"""`vortex-search tune`: the launches of a flow's step, tried under other configurations on the GPU at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from vortex_core.compiler.triton.launch_config import FlowConfig, ScoreConfig
from vortex_core.compiler.triton.tile import FEW_CHANNELS, MANY_CHANNELS
from vortex_core.compiler.triton.tuning.case import TuneCase, cannot_tune
from vortex_core.compiler.triton.tuning.results import Key, Tuned, TuningCache, this_machine
from vortex_core.compiler.triton.tuning.timing import Launch, graph_time
from vortex_core.compiler.triton.tuning.trials import Choice, Trial, choose
from vortex_core.geometry import Geometry
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.kernels.decode.config import DecodeConfig
from vortex_core.page_list import PageList

# As in the kernels' tests: bf16 rounds the weights once and the output once, two units of 2^-8.
ATTENTION_ERROR = 2 * 2.0**-8
# Scores are sums in fp32 in another order, and tensor cores cut low bits off where they align what they add.
SCORE_ERROR = 1e-4

Timer = Callable[[Sequence[Launch]], float]
AnyTrial = Trial[Any]

NO_GPU = (
    "there is no CUDA GPU here",
    "run it on the machine that will serve: times hold for one GPU and driver",
)


@dataclass(frozen=True)
class Result:
    """What a search found. `trials` in the order they ended; `step_us`: of the step as kept."""

    key: Key
    tuned: Tuned
    trials: tuple[AnyTrial, ...]

    def to_json(self) -> dict[str, Any]:
        """The result as plain values that JSON can hold."""
        trials = [{**asdict(t), "config": asdict(t.config)} for t in self.trials]
        return {"key": self.key.parts(), **asdict(self.tuned), "trials": trials}

    def store(self) -> str:
        """Write it to the cache; the file's path."""
        return str(TuningCache().write(self.key, self.tuned, self.to_json()["trials"]))


def score_candidates(
    default: ScoreConfig, *, page_parallel: bool, rows: bool, latent: bool
) -> list[ScoreConfig]:
    """What is tried for scoring, likeliest first. `default` is resolved: nothing in it is 0.

    Args:
        page_parallel, rows: which launches there are.
        latent: whether rows are latents of MLA: their programs take one block.
    """
    block, found = default.block, []
    if page_parallel:
        shapes = [  # pages a block, blocks a program, warps, stages
            *(
                (block, *s)
                for s in ((1, 4, 2), (2, 4, 2), (4, 4, 2), (2, 4, 3), (4, 4, 3), (1, 8, 2), (2, 8, 2))
            ),
            *((block // 2, *s) for s in ((1, 4, 2), (2, 4, 2), (4, 4, 2), (4, 4, 3))),
            *((block * 2, *s) for s in ((1, 8, 2), (2, 8, 2), (1, 4, 2))),
            (block, 1, 2, 2),
        ]
        # Sixteen rows are the least a matrix product takes; more than 128 pages no tile holds in registers.
        found = [
            replace(default, block=s[0], blocks=s[1], warps=s[2], stages=s[3])
            for s in shapes
            if (s[0] == block or 16 <= s[0] <= 128) and not (latent and s[1] > 1)
        ]
        if latent:
            found += [replace(default, channels=channels) for channels in (FEW_CHANNELS, 128, MANY_CHANNELS)]
    if rows:
        found += [
            replace(default, row_block=block, row_warps=warps)
            for block, warps in ((256, 4), (512, 8), (1024, 8), (1024, 16), (2048, 16))
        ]
    return [c for c in found if c != default]


def attention_candidates(default: DecodeConfig, most_workers: int, *, latent: bool) -> list[DecodeConfig]:
    """What is tried for attention over the lists, likeliest first.

    Args:
        most_workers: programs a multiprocessor that the engines' scratch holds.
        latent: whether rows are latents of MLA: their accumulators leave room for few shapes.
    """
    shapes = [  # tokens a tile, warps, stages, programs a multiprocessor
        (64, 4, 3, 2), (128, 4, 3, 1), (32, 4, 4, 2), (64, 4, 4, 2), (64, 4, 4, 1), (128, 8, 3, 1), (128, 4, 2, 1),
        (64, 4, 2, 2), (64, 8, 3, 2), (32, 4, 3, 2), (64, 4, 3, 3), (32, 4, 4, 3),
    ]  # fmt: skip
    if latent:
        shapes = [(64, 8, 3, 1), (64, 8, 2, 1), (32, 8, 4, 1), (32, 8, 3, 1), (64, 4, 3, 1)]
    found = [
        replace(
            default,
            block_n=tile,
            num_warps=warps,
            num_stages=stages,
            workers_per_sm=workers,
            latent_kernel=False,
        )
        for tile, warps, stages, workers in shapes
        if workers <= most_workers
    ]
    if not latent:
        found.insert(0, replace(default, fused_merge=not default.fused_merge))
    return [c for c in dict.fromkeys(found) if c != default]


def tune(
    program: Program,
    knobs: Knobs,
    geometry: Geometry,
    *,
    batch: int,
    context: int,
    seconds: float,
    report: Callable[[AnyTrial], None],
    timer: Timer = graph_time,
    clock: Callable[[], float] = time.monotonic,
    device: torch.device | None = None,
) -> Result:
    """Search for `seconds`, half for scoring and the rest for attention; the last candidates end a little later.

    Args:
        report: called with every trial as it ends.
        device: where; the current GPU by default. Tests give a CPU, under the interpreter, and their own timer.

    Raises:
        VortexError: `VE040` without a GPU, or where there is nothing to tune; `VE050` for what cannot be lowered.
    """
    if device is None:
        if this_machine() is None:
            raise cannot_tune(*NO_GPU)
        device = torch.device("cuda")
    start = clock()
    case = TuneCase(program, knobs, geometry, batch, context, device)
    layers, full = range(len(case.kv)), case.view()

    scored = _tune_scores(case, timer, lambda: clock() - start < seconds / 2, report)
    attended = _tune_attention(case, case.lists(), timer, lambda: clock() - start < seconds, report)
    config = FlowConfig(
        scored.config if scored.gain > 1 else ScoreConfig(), attended.config if attended.gain > 1 else None
    )
    trials: list[AnyTrial] = [*scored.trials, *attended.trials]

    def step(config: FlowConfig) -> float:
        """The whole layer: what was best alone need not be where launches overlap."""
        attention = config.attention or case.attention
        if config not in flows:
            flows[config] = case.flow(config)
        return timer([partial(case.step, flows[config], attention, layer, full) for layer in layers])

    flows = {FlowConfig(): case.default}
    step_us, gain = step(FlowConfig()), 1.0
    trials.append(Trial("step", FlowConfig(), step_us, "default"))
    report(trials[-1])
    if config != FlowConfig():
        pairs = [(step(FlowConfig()), step(config)) for _ in range(2)]
        least = min(before / after for before, after in pairs)
        us = min(after for _, after in pairs)
        trials.append(Trial("step", config, us, "kept" if least > 1 else "not faster as a whole"))
        report(trials[-1])
        step_us, gain, config = (us, least, config) if least > 1 else (step_us, 1.0, FlowConfig())
    key = Key.of(case.program, knobs, geometry, this_machine()).at(knobs, geometry.layers, batch, case.width)
    today = datetime.now(UTC).date().isoformat()
    return Result(key, Tuned(config, today, gain, step_us), tuple(trials))


def _tune_scores(
    case: TuneCase,
    timer: Timer,
    time_left: Callable[[], bool],
    report: Callable[[AnyTrial], None],
) -> Choice[ScoreConfig]:
    default = case.default.resolved(ScoreConfig(), case.batch, case.width, case.device)
    want = case.scores(default)
    view = case.view()

    def check(config: ScoreConfig) -> str:
        return compare(partial(case.scores, config), want, SCORE_ERROR)

    def measure(config: ScoreConfig) -> float:
        flow = case.flow(FlowConfig(config))
        return timer([partial(case.score, flow, layer, view) for layer in range(len(case.kv))])

    code = case.default.code
    candidates = score_candidates(
        default, page_parallel=code.score, rows=code.rows, latent=case.geometry.is_mla
    )
    return choose(
        "score", default, candidates, check=check, measure=measure, time_left=time_left, report=report
    )


def _tune_attention(
    case: TuneCase,
    lists: PageList,
    timer: Timer,
    time_left: Callable[[], bool],
    report: Callable[[AnyTrial], None],
) -> Choice[DecodeConfig]:
    ragged = case.lists(ragged=True)

    def run(config: DecodeConfig) -> list[torch.Tensor]:
        case.out.fill_(float("nan"))
        return [case.attend(config, 0, ragged).clone()]

    want = run(case.attention)

    def check(config: DecodeConfig) -> str:
        return compare(partial(run, config), want, ATTENTION_ERROR)

    def measure(config: DecodeConfig) -> float:
        return timer([partial(case.attend, config, layer, lists) for layer in range(len(case.kv))])

    candidates = attention_candidates(case.attention, case.most_workers, latent=case.geometry.is_mla)
    return choose(
        "attend", case.attention, candidates, check=check, measure=measure, time_left=time_left, report=report
    )


def compare(run: Callable[[], list[torch.Tensor]], want: list[torch.Tensor], unit: float) -> str:
    """Empty if `run` gives `want`: the same places undefined, ||difference|| <= unit * ||want||; else why not."""
    try:
        got = run()
    except OutOfResources as error:
        return f"does not fit: {error.name} {error.required}, {error.limit} there are"
    except (CompilationError, PTXASError) as error:
        return f"does not compile: {str(error).strip().splitlines()[-1][:120]}"
    for a, b in zip(got, want, strict=True):
        x, y = a.double(), b.double()
        finite = torch.isfinite(y)
        if not torch.equal(torch.isfinite(x), finite) or not torch.equal(
            x[~finite].nan_to_num(7.0), y[~finite].nan_to_num(7.0)
        ):
            return "wrong: values missing or not finite"
        difference = float((x[finite] - y[finite]).norm() / y[finite].norm().clamp_min(1e-30))
        if difference > unit:
            return f"wrong: relative difference {difference:.1e} from the default, {unit:.1e} allowed"
    return ""
