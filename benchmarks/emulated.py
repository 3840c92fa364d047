"""What the machine code of generated kernels computes, without a GPU: python -m benchmarks.emulated --seed 1 --count 20

Kernels of programs are compiled for sm_90a, and their PTX runs on a CPU (`ptx_machine`) beside the fp64 oracle.
Triton's interpreter runs a kernel's source: what a compiler gets wrong looks right there, and shows here. A program
takes two blocks of pages, so that loops turn. `--states` runs the kernel that makes states instead. Nothing is said
of time.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from benchmarks.ptx_machine import Machine
from benchmarks.ptx_numbers import BASE, Lanes, UnknownStatementError
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.compiler.oracle import OracleFlow
from vortex_core.compiler.triton.generate import generate
from vortex_core.compiler.triton.launch_config import ScoreConfig
from vortex_core.compiler.triton.offline import launchables
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.flow import Flow

LEFT = 4  # pages that are chosen
ALIGNED = 256
AMONG = (0, 2, 3, 5, 6, 7, 9, 10, 12, 14, 15)  # candidates of a selection in two stages
KERNELS = ("query_kernel", "score_kernel", "row_kernel", "refine_kernel")
STORED = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Sizes:
    """Of the model and of its pages.

    Attributes:
        heads: query heads of the one kv head.
        dim: channels of a head.
        page: tokens of a page.
    """

    heads: int = 2
    dim: int = 128
    page: int = 64

    @property
    def geometry(self) -> Geometry:
        """One layer of it."""
        return Geometry(1, 1, self.heads, self.dim, self.dim, self.dim)


DEFAULT = Sizes()
WHOLE = ScoreConfig(stages=1)


@dataclass
class Memory:
    """Tensors one after another."""

    parts: list[Lanes] = field(default_factory=list)
    size: int = 0

    def add(self, tensor: torch.Tensor) -> int:
        """The address that a tensor will have."""
        data = np.ascontiguousarray(tensor.contiguous().view(torch.uint8).reshape(-1).numpy())
        data = np.pad(data, (0, -len(data) % ALIGNED + ALIGNED))
        self.parts.append(data)
        self.size += len(data)
        return BASE + self.size - len(data)


@dataclass(frozen=True)
class Emulated:
    """What came out.

    Attributes:
        error: largest difference of a score, in standard deviations of all.
        hazards: statements that meet another warp's part of shared memory without a barrier.
        statements: that ran, of all kernels.
    """

    error: float
    hazards: tuple[str, ...]
    statements: int


def emulate(
    flow: Flow,
    pages: int = 16,
    sizes: Sizes = DEFAULT,
    blocks: int = 2,
    *,
    wide: bool = False,
    cut: ScoreConfig = WHOLE,
) -> Emulated:
    """Run the scoring kernels of a program on one row of pages.

    Args:
        cut: of the launches, but for the number of blocks.
        wide: with a query of fp32 that bf16 does not hold.

    Raises:
        UnknownStatementError: for what the machine does not know.
        VortexError: for what is not compiled.
    """
    geometry, page_size, heads, dim = sizes.geometry, sizes.page, sizes.heads, sizes.dim
    program = flow.program.canonical()
    knobs = replace(flow.knobs, page_size=page_size, budget=str(LEFT * page_size))
    config = replace(cut, blocks=blocks)
    code = generate(program, geometry, page_size, config.block, wide=wide)
    torch.manual_seed(0)
    k, v = (torch.randn(1, pages, page_size, dim).bfloat16().float() for _ in "kv")
    q = torch.randn(1, heads, dim)
    q = q if wide else q.bfloat16()
    oracle = OracleFlow(program, knobs, geometry)
    states = oracle.new_states(pages, torch.device("cpu"))
    oracle.update(states, LayerKV(k, v), torch.arange(pages), 0)
    table = torch.zeros(1, pages + 64, dtype=torch.int32)
    table[0, :pages] = torch.randperm(pages)
    memory = Memory()
    ints = torch.tensor([[pages * page_size], [LEFT]], dtype=torch.int32)
    given = {
        "q_ptr": memory.add(q), "q_batch": heads * dim, "q_head": dim,
        "table_ptr": memory.add(table), "table_stride": table.shape[1],
        "lengths_ptr": memory.add(ints[0]), "budgets_ptr": memory.add(ints[1]),
        "pool_pages": pages, "max_pages": pages,
    }  # fmt: skip
    if program.request_states:
        given |= {"seats_ptr": memory.add(torch.zeros(1, dtype=torch.int32)), "pool_seats": states.seats}
    for state in program.states:
        stored = states.fields[state.name]
        given[f"{state.name}_ptr"] = memory.add(stored.data.to(STORED.get(state.dtype, stored.data.dtype)))
        if stored.scale is not None:
            given[f"{state.name}_scale_ptr"] = memory.add(stored.scale)
    if states.mass is not None:
        given["mass_ptr"] = memory.add(states.mass)
    numbers = {f"t{i}_ptr": pages * n for i, n in code.scratch.items()}
    numbers |= {f"h{i}_ptr": n for i, n in code.before.items()}
    among = [p for p in AMONG if p < pages]
    given |= {
        "candidates_ptr": memory.add(torch.tensor([*among, *[0] * (-len(among) % 16)], dtype=torch.int32)),
        "candidates_stride": -(-len(among) // 16) * 16,
        "candidate_lens_ptr": memory.add(torch.tensor([len(among) * page_size], dtype=torch.int32)),
    }
    for i in code.schedule.outputs:
        numbers[f"out{i}_ptr"] = pages * (heads if "head" in code.graph.nodes[i].type.names else 1)
    given |= {name: memory.add(torch.zeros(n)) for name, n in numbers.items()}
    held = np.concatenate(memory.parts)
    hazards: list[str] = []
    statements = 0
    found = launchables(program, knobs, geometry, config, wide=wide)
    for name in KERNELS:
        if name not in found:
            continue
        launchable = found[name]
        built = launchable.build("sm_90a")
        machine = Machine(built.asm["ptx"], 32 * launchable.warps, int(built.metadata.shared), held)
        names = [a for a in launchable.kernel.arg_names if a not in launchable.constants]
        unknown = [a for a in names if a not in given]
        if unknown:
            raise UnknownStatementError(f"arguments that have no value here: {', '.join(unknown)}")
        arguments = [given[a] for a in names]
        arguments += [0] * (len(machine.params) - len(arguments))
        rows = {
            "score_kernel": -(-pages // (code.block * blocks)),
            "refine_kernel": -(-len(among) // max(1, code.candidates)),
        }
        for at in range(rows.get(name, 1)):
            statements += machine.run(arguments, (at, 0))
        hazards += machine.hazards
    view = BatchView(table[:, :pages].long(), ints[0].long(), ints[1].long(), pages * page_size)
    wanted = oracle.scores(q.float(), states, view, 0).values()
    worst = 0.0
    refined, ranked = code.graph.refinement, {j for n in code.graph.nodes for j in n.scores}
    ranked |= set(code.schedule.scores)
    for i, want in zip(sorted(ranked), wanted, strict=True):
        fine = refined is not None and i == refined.fine and i not in code.schedule.scores
        out = f"out{refined.node if refined is not None and fine else i}_ptr"
        start, count = given[out] - BASE, numbers[out]
        got = torch.from_numpy(held[start : start + 4 * count].copy().view(np.float32)).double()
        want = want[0].T.reshape(-1) if want.dim() > 2 else want.reshape(-1)
        if fine:
            others = [p for p in range(pages) if p not in among]
            worst = worst if bool((got[others] == -np.inf).all()) else np.inf
            got, want = got[among], want[among]
        worst = max(worst, float((got - want).abs().max() / want.std().clamp_min(1e-30)))
    return Emulated(worst, tuple(hazards), statements)


@dataclass(frozen=True)
class EmulatedStates:
    """What came out of the kernel that makes states.

    Attributes:
        unlike: the largest share of a state's numbers that are not the oracle's. fp32 rounds otherwise than fp64, so
            some numbers fall on the other side of a sign or a step.
        hazards: as of `Emulated`.
        statements: that ran.
    """

    unlike: float
    hazards: tuple[str, ...]
    statements: int


def emulate_states(flow: Flow, pages: int = 2, sizes: Sizes = DEFAULT) -> EmulatedStates | None:
    """Run the kernel that makes states on some pages; None for a program that has none.

    Raises:
        UnknownStatementError: for what the machine does not know.
        VortexError: for what is not compiled.
    """
    geometry, page_size, dim = sizes.geometry, sizes.page, sizes.dim
    program = flow.program.canonical()
    knobs = replace(flow.knobs, page_size=page_size, budget=str(LEFT * page_size))
    launchable = launchables(program, knobs, geometry).get("update_kernel")
    if launchable is None:
        return None
    torch.manual_seed(0)
    k, v = (torch.randn(1, pages, page_size, dim).bfloat16() for _ in "kv")
    oracle = OracleFlow(program, knobs, geometry)
    states, found = (oracle.new_states(pages, torch.device("cpu")) for _ in range(2))
    oracle.update(states, LayerKV(k.float(), v.float()), torch.arange(pages), 0)
    memory = Memory()
    table = torch.arange(pages, dtype=torch.int32)[:, None].repeat(1, 16)
    given = {
        "k_ptr": memory.add(k), "v_ptr": memory.add(v), "pages_ptr": memory.add(table),
        "table_ptr": memory.add(table), "table_stride": 16, "pool_pages": pages,
        "lengths_ptr": memory.add(torch.full((pages,), page_size, dtype=torch.int32)),
    }  # fmt: skip
    for name in "kv":
        given |= {
            f"{name}_head": pages * page_size * dim,
            f"{name}_page": page_size * dim,
            f"{name}_token": dim,
        }
    if found.mass is not None:
        given["mass_ptr"] = memory.add(found.mass)
    stored = {}
    for state in program.states:
        field_ = found.fields[state.name]
        field_.data = field_.data.to(STORED.get(state.dtype, field_.data.dtype))
        stored[f"{state.name}_ptr"] = field_.data
        if field_.scale is not None:
            stored[f"{state.name}_scale_ptr"] = field_.scale
    given |= {name: memory.add(tensor) for name, tensor in stored.items()}
    held = np.concatenate(memory.parts)
    built = launchable.build("sm_90a")
    machine = Machine(built.asm["ptx"], 32 * launchable.warps, int(built.metadata.shared), held)
    arguments = [given[a] for a in launchable.kernel.arg_names if a not in launchable.constants]
    arguments += [0] * (len(machine.params) - len(arguments))
    statements = sum(machine.run(arguments, (page, 0)) for page in range(pages))
    for name, tensor in stored.items():
        start = given[name] - BASE
        data = torch.from_numpy(held[start : start + tensor.nbytes].copy())
        tensor.copy_(data.view(tensor.dtype).view(tensor.shape))
    every = torch.arange(pages)
    unlike = 0.0
    for state in program.states:
        got, want = (s.fields[state.name].read(slice(None), every, torch.float64) for s in (found, states))
        near = want.abs() * 2.0**-7 + 1e-6  # a step of bf16
        unlike = max(unlike, float(((got - want).abs() > near).double().mean()))
    return EmulatedStates(unlike, tuple(machine.hazards), statements)


def main() -> None:
    """One line a program."""
    from benchmarks.programs import GAP, programs

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the grammar"
    )
    parser.add_argument("--count", type=int, default=20, help="programs of the grammar")
    parser.add_argument("--only", default="", help="names, comma-separated")
    parser.add_argument(
        "--states", action="store_true", help="the kernel that makes states instead of scoring"
    )
    for name, what in (
        ("heads", "query heads of a kv head"),
        ("dim", "channels of a head"),
        ("page", "tokens of a page"),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(DEFAULT, name), help=what)
    parser.add_argument("--pages", type=int, default=16, help="pages of the row")
    for name, what in (
        ("block", "pages scored at once"),
        ("warps", "warps that score"),
        ("row-block", "pages at once of the kernel that looks across pages"),
        ("row-warps", "warps of that kernel"),
    ):
        parser.add_argument(f"--{name}", type=int, default=0, help=f"{what}; 0: the default")
    args = parser.parse_args()
    sizes = Sizes(args.heads, args.dim, args.page)
    cut = replace(
        WHOLE, block=args.block, warps=args.warps, row_block=args.row_block, row_warps=args.row_warps
    )
    print("seed", args.seed)
    for _, name, flow in programs(args.seed, args.count):
        if args.only and name not in args.only.split(","):
            continue
        try:
            if args.states:
                made = emulate_states(flow, sizes=sizes)
                if made is not None:
                    print(
                        name,
                        f"unlike {made.unlike:.2e}, {made.statements} statements",
                        *made.hazards,
                        flush=True,
                    )
                continue
            done = emulate(flow, args.pages, sizes, cut=cut)
        except (UnknownStatementError, VortexError) as error:
            print(name, "not run:", str(error).split("\n")[0][:100], flush=True)
            continue
        right = "right" if done.error <= GAP and not done.hazards else "WRONG"
        print(name, right, f"error {done.error:.2e}, {done.statements} statements", *done.hazards, flush=True)


if __name__ == "__main__":
    main()
