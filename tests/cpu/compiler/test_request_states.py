"""States of requests: what a request carries from step to step, whatever row it has and whoever sat there before."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from evaluators.parity import compare
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, CompiledFlow, LayerKV
from vortex_core.flow.emit import emit
from vortex_core.flow.trace import Traced
from vortex_core.geometry import Geometry
from vortex_core.ir.cost import state_bytes_per_request, state_bytes_per_token
from vortex_core.ir.crossover import crossover_unfit
from vortex_core.ir.launches import launch_costs
from vortex_core.ir.program import Program
from vortex_core.page_list import PageList
from vortex_core.runtime.eager_flow import EagerFlow
from vortex_core.sandbox.jail import run

SIZE = 8
SOURCE = """
from vortex_core import Knobs, ops, register, vFlow

@register("remembering")
class Remembering(vFlow):
    knobs = Knobs(page_size=8, budget="40", keep_first=1, keep_last=1)

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim), "s": page.state(DECLARED, carried=True, scope="request")MORE}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        old, mean = cache["s"], cache["mean"]
        score = q.dot(mean, "dim")
        BODY
"""
# What is declared, and what a step does with it.
FLOWS = {
    "before": ('head="G", dim=page.head_dim', "cache['s'] = q", "return ops.topk(old.dot(mean, 'dim').max('head'))"),
    "average": ('dim=page.head_dim, dtype="fp32"', "cache['s'] = 0.5 * old + 0.5 * q.mean('head')",
                "return ops.topk(cache['s'].dot(mean, 'dim'))"),
    "alike": ('head="G", dim=page.head_dim',
              "alike = q.dot(old, 'dim') / (q.norm('dim') * old.norm('dim') + 1e-6)",
              "used = ops.where(alike.mean('head') > 0.9, old, q)", "cache['s'] = used",
              "return ops.topk(used.dot(mean, 'dim').softmax('page').sum('head'))"),
    "steps": ('dtype="fp32", init=2', "cache['s'] = old + 1",
              "return ops.topk(score.max('head') + (old - 2) * (ops.position() - 4))"),
    "scored": ('head="G", dtype="fp32"', "cache['s'] = score.max('page')",
               "return ops.topk(ops.where(score > 0.8 * old, score, 0.5 * score).max('head'))"),
    "parts": ('row=2, dim="D/2", dtype="fp8_e4m3", init=0.5', "parts = q.mean('head').split('dim', row=2)",
              "cache['s'] = parts + 0.5 * old",
              "return ops.topk((old * mean.split('dim', row=2)).sum('dim').max('row') + 0.1 * score.max('head'))"),
    "masked": ('head="G", dim=page.head_dim, dtype="fp16"', "cache['s'] = 0.25 * q + 0.75 * old",
               "used = ops.where((q + old).abs().largest(4, 'dim'), q, 0.0)",
               "return ops.topk(used.dot(mean, 'dim').max('head'))"),
    "each_head": ('head="G", dim=page.head_dim', "cache['s'] = q", "return ops.topk((q + old).dot(mean, 'dim'))"),
    "union": ('head="G", dim=page.head_dim', "cache['s'] = q",
              "first = ops.topk(score.max('head'), fraction=0.5)",
              "return first | ops.topk(old.dot(mean, 'dim').max('head'), fraction=0.5)"),
    "two_stages": ('head="G", dim=page.head_dim', "cache['s'] = q",
                   "return ops.refine((q + old).dot(mean, 'dim').max('head'), score.max('head'), candidates=2)"),
    "pages_too": ('dim=page.head_dim', "cache['s'] = q.mean('head')",
                  "cache['p'] = 0.5 * cache['p'] + old.dot(mean, 'dim')",
                  "return ops.topk(cache['p'] + score.max('head') + ops.mass().sum('head'))"),
}  # fmt: skip


def flow(name: str, eight: str = "fp8_e4m3") -> Traced:
    """One of them; `eight`: the dtype where it is written as fp8."""
    declared, *lines = FLOWS[name]
    more = ', "p": page.state(carried=True, dtype="fp32")' if name == "pages_too" else ""
    text = SOURCE.replace("DECLARED", declared).replace("MORE", more)
    text = text.replace("BODY", "\n        ".join(lines)).replace("fp8_e4m3", eight)
    return run(text, "remembering.py")


@dataclass(frozen=True)
class Request:
    """Steps `begins` to `ends` (not included) of a sequence, on a seat, first of so many tokens."""

    begins: int
    ends: int
    seat: int
    length: int


# Lengths of no page, of one, and of one token more or less; two that share their first pages; seats given on.
REQUESTS = [
    Request(0, 6, 5, 65),
    Request(1, 6, 2, 66),
    Request(0, 3, 0, 7),
    Request(0, 6, 1, 8),
    Request(3, 6, 0, 9),
    Request(0, 2, 4, 130),
    Request(2, 6, 4, 40),
    Request(0, 6, 3, 1),
]
SHARING = (0, 1)
SEATS, STEPS = 7, 6


class Timeline:
    """Requests that come and go in batches whose rows change places, some of them padding."""

    def __init__(self, geometry: Geometry, seed: int, *, shared: bool = True) -> None:
        self.geometry, self.random = geometry, torch.Generator().manual_seed(seed)
        g, width = geometry, -(-(max(r.length for r in REQUESTS) + STEPS) // SIZE)
        self.pages = len(REQUESTS) * width + 2
        order = torch.randperm(self.pages, generator=self.random)[: len(REQUESTS) * width]
        self.table = order.view(len(REQUESTS), width).clone()
        self.shared = 4 if shared else 0  # pages
        self.table[SHARING[1], : self.shared] = self.table[SHARING[0], : self.shared]
        shape = g.kv_heads, self.pages, SIZE
        self.kv = LayerKV(
            torch.randn(*shape, g.head_dim, generator=self.random),
            torch.randn(*shape, g.value_dim, generator=self.random),
        )
        turns = torch.randn(STEPS, len(REQUESTS), g.q_heads, g.head_dim, generator=self.random)
        self.q = turns.clone()
        for step in range(1, STEPS):  # some queries are like those before
            alike = torch.rand(len(REQUESTS), generator=self.random) < 0.5
            self.q[step, alike] = self.q[step - 1, alike] + 0.1 * turns[step, alike]
        self.q = self.q.bfloat16().float()

    def rows(self, step: int) -> list[int | None]:
        """Who is in which row of a step; None for padding."""
        here: list[int | None] = [i for i, r in enumerate(REQUESTS) if r.begins <= step < r.ends]
        places = torch.randperm(len(here) + 2, generator=torch.Generator().manual_seed(step))
        found: list[int | None] = [None] * (len(here) + 2)
        for i, place in zip(here, places.tolist(), strict=False):
            found[place] = i
        return found

    def view(self, flow: CompiledFlow, step: int) -> BatchView:
        rows = self.rows(step)
        lengths = [0 if i is None else REQUESTS[i].length + step - REQUESTS[i].begins for i in rows]
        seats = [0 if i is None else REQUESTS[i].seat for i in rows]
        budgets = torch.tensor([flow.knobs.pages(max(1, n)) for n in lengths])
        table = torch.stack([self.table[0 if i is None else i] for i in rows])
        return BatchView(table, torch.tensor(lengths), budgets, max(lengths), seats=torch.tensor(seats))

    def queries(self, step: int) -> torch.Tensor:
        return torch.stack([self.q[step, 0 if i is None else i] for i in self.rows(step)])

    def run(self, flow: CompiledFlow) -> tuple[list[PageList], list[dict[str, torch.Tensor]]]:
        """Selections of all steps, and the states of seats after each."""
        states = flow.new_states(self.pages, torch.device("cpu"), SEATS)
        lists, seen = [], []
        for step in range(STEPS):
            begins = [i for i, r in enumerate(REQUESTS) if r.begins == step]
            states.begin(torch.tensor([REQUESTS[i].seat for i in begins], dtype=torch.int64))
            for i in begins:  # as prefill left it
                n = REQUESTS[i].length // SIZE
                new = 0 if i != SHARING[1] else self.shared
                flow.update(states, self.kv, self.table[i, new:n], 0)
            view = self.view(flow, step)
            EagerFlow(flow).update_decode(states, self.kv, view, 0)
            found = flow.select(self.queries(step), states, view, 0)
            if flow.program.needs_mass:
                random = torch.Generator().manual_seed(step)
                shape = len(found.page_ids), self.geometry.q_heads, found.page_ids.shape[-1]
                real = (view.lengths > 0).view(-1, 1, 1)
                mass = torch.rand(shape, generator=random) * real
                flow.observe(states, replace(found, lengths=found.lengths * real[..., 0]), mass, 0)
            lists.append(found)
            seen.append(
                {
                    f.decl.dtype: f.read(slice(None), torch.arange(SEATS), torch.float32)
                    for f in states.requests
                }
            )  # type: ignore[attr-defined]
        return lists, seen

    def chosen(self, found: PageList, step: int) -> dict[int, list[list[int]]]:
        """Pages that each request's heads select."""
        return {
            i: [found.page_ids[row, h, : int(found.counts[row, h])].tolist() for h in range(found.heads)]
            for row, i in enumerate(self.rows(step))
            if i is not None
        }


def agree(traced: Traced, geometry: Geometry, backend: str, seed: int) -> None:
    """A backend selects what the oracle selects, and leaves the same states, at every step."""
    timeline = Timeline(geometry, seed, shared=not traced.program.is_request_local)
    want, states = timeline.run(backends.get("oracle").compile(traced.original, traced.knobs, geometry))
    found, ours = timeline.run(backends.get(backend).compile(traced.program, traced.knobs, geometry))
    for step in range(STEPS):
        assert timeline.chosen(found[step], step) == timeline.chosen(want[step], step), step
        for key, value in states[step].items():
            torch.testing.assert_close(ours[step][key], value, atol=0.07 if "fp8" in key else 0.01, rtol=0.07)


SHAPES = [(1, 2, 16), (3, 2, 24), (7, 1, 16), (16, 1, 32)]


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("name", sorted(FLOWS))
@pytest.mark.parametrize(("group", "kv_heads", "dim"), SHAPES)
def test_torch_selects_and_carries_what_the_oracle_does(
    name: str, group: int, kv_heads: int, dim: int
) -> None:
    agree(flow(name), Geometry(1, kv_heads, group, dim, dim, dim), "torch", group)


def one(traced: Traced, q: torch.Tensor, seats: int = 1) -> list[list[int]]:
    """What one request of 20 pages selects, query after query."""
    geometry = Geometry(1, 1, q.shape[1], q.shape[2], q.shape[2], q.shape[2])
    k = torch.randn(1, 20, SIZE, q.shape[2], generator=torch.Generator().manual_seed(1))
    compiled = backends.get("oracle").compile(traced.original, traced.knobs, geometry)
    states = compiled.new_states(20, torch.device("cpu"), seats)
    compiled.update(states, LayerKV(k, k), torch.arange(20), 0)
    view = BatchView(torch.arange(20)[None], torch.tensor([160]), torch.tensor([5]), 160)
    return [compiled.select(x[None], states, view, 0).page_ids[0, 0].tolist() for x in q]


def test_a_step_reads_what_the_step_before_wrote() -> None:
    """Without the mechanism: the query of the step before, asked of a flow that remembers nothing."""
    q = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    plain = library.load("block_topk")
    knobs = flow("before").knobs
    text = SOURCE.replace("DECLARED", FLOWS["before"][0]).replace("MORE", "")
    now = run(text.replace("BODY", "cache['s'] = q\n        return ops.topk(score.max('head'))"), "now.py")
    assert not now.program.request_states, "what nobody reads is not kept"
    assert plain.program.request_states == ()
    found = one(flow("before"), q)
    assert found[0] == [0, 1, 2, 3, 19], "at the first step all scores are 0, and ties go to the lower page"
    assert found[1:] == one(now.with_knobs(budget=knobs.budget), q)[:-1]


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("backend", ["oracle", "torch"])
def test_rows_without_a_page_or_a_token_write_nothing(backend: str) -> None:
    """Padding has length 0 and some seat; a sequence shorter than a page scores nothing."""
    traced, geometry = flow("before"), Geometry(1, 2, 2, 16, 16, 16)
    compiled = backends.get(backend).compile(traced.program, traced.knobs, geometry)
    kv = LayerKV(*(torch.randn(2, 6, SIZE, 16, generator=torch.Generator().manual_seed(n)) for n in (1, 2)))
    states = compiled.new_states(6, torch.device("cpu"), 4)
    compiled.update(states, kv, torch.arange(6), 0)
    view = BatchView(
        torch.arange(6).view(3, 2),
        torch.tensor([0, 7, 8]),
        torch.tensor([2, 2, 2]),
        8,
        seats=torch.tensor([3, 1, 2]),
    )
    compiled.select(torch.ones(3, 4, 16), states, view, 0)
    (field,) = states.requests  # type: ignore[attr-defined]
    written = field.read(slice(None), torch.arange(4), torch.float32).abs().flatten(2).sum(-1)
    assert (written > 0).tolist() == [[False, False, True, False]] * 2


@pytest.mark.usefixtures("single_thread")
def test_more_seats_keep_what_was_there() -> None:
    traced = flow("steps")
    compiled = backends.get("torch").compile(traced.program, traced.knobs, Geometry(1, 2, 2, 16, 16, 16))
    states = compiled.new_states(3, torch.device("cpu"), 2)
    (field,) = states.requests  # type: ignore[attr-defined]
    field.data.fill_(9.0)
    assert states.hold(5) and not states.hold(4)
    assert field.data.tolist() == [[9.0, 9.0, 2.0, 2.0, 2.0]] * 2  # init=2
    states.begin(torch.tensor([1, 4]))
    assert field.data.tolist() == [[9.0, 2.0, 2.0, 2.0, 2.0]] * 2
    assert states.bytes_of_requests() == 2 * 5 * 4
    pages = sum(f.nbytes for f in states.fields.values() if not f.decl.of_request)  # type: ignore[attr-defined]
    assert states.bytes_per_page() == pages // 3


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("name", ["freekv", "tokenselect_cached"])
def test_library_flows_hold_against_the_oracle(name: str) -> None:
    traced = library.load(name)
    assert not traced.program.is_request_local, "requests share their first pages"
    assert crossover_unfit(traced.program, traced.knobs) is not None
    found = compare(
        traced.program, traced.knobs.with_(page_size=16, budget="96"), Geometry(1, 2, 4, 64, 64, 64), backend="torch",
        pages=(0.5, 1, 2.1, 17.5, 40), seeds=(0,), tie_tolerance=1e-4,
    )  # fmt: skip
    assert found.holds, found


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_what_is_written_out_reads_back_as_the_same_program(name: str) -> None:
    traced = flow(name)
    program = traced.program
    assert Program.from_json(program.to_json()).canonical() == program
    again = run(emit(program, traced.knobs, "again", ""), "again.py")
    assert again.ir_hash == traced.ir_hash
    page = replace(program, states=tuple(replace(s, scope="page") for s in program.states))
    data = page.to_json()
    for node in data["index"]["nodes"]:
        if node["op"] == "load":
            node["attrs"].pop("scope", None)
    assert "scope" not in str(data)


def test_costs_count_a_state_once_a_request() -> None:
    """Bytes of the previous query do not grow with pages, and pages keep their mean alone."""
    geometry = Geometry(2, 2, 4, 64, 64, 64)
    free, plain = library.load("freekv"), library.load("block_topk")
    knobs = free.knobs
    assert state_bytes_per_token(free.program, knobs, geometry) == state_bytes_per_token(
        plain.program, knobs, geometry
    )
    assert state_bytes_per_request(free.program, knobs, geometry) == 2 * 4 * 64 * 2
    for length in (512, 8192):
        launches = {
            x.kind: x.cost for x in launch_costs(free.program, knobs, geometry, batch=3, length=length)
        }
        means = 3 * 2 * (length // knobs.page_size) * 64 * 2
        assert launches["score"].state_bytes == means + 3 * 2 * 4 * 64 * 2
        assert launches["rows"].state_bytes == 3 * 2 * 4 * 64 * 2
