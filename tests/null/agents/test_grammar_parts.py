"""The parts of the grammar: terms, moves, settings, and the generator of arbitrary programs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from agents.grammar import random_program
from agents.grammar.crossover import MOVES as CROSSINGS
from agents.grammar.crossover import combine
from agents.grammar.fuzz import random_program as fuzz
from agents.grammar.mutation import MOVES, Subject, add_state_across_steps, change_channels, change_rows
from agents.grammar.settings import change_knobs, covers, mixed_knobs, random_knobs, scaled_budget
from agents.grammar.signals import Growth
from agents.grammar.summaries import SCALARS, VECTORS, Frame, frame_of, scalar, summary_like, vector
from agents.grammar.term import Flow, from_program, retagged, to_program, walk
from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.flow.emit import emit
from vortex_core.ir.budget import Budget
from vortex_core.ir.knobs import PAGE_SIZES, Knobs
from vortex_core.ir.opset import OPS
from vortex_core.ir.program import Program
from vortex_core.ir.verify import verify
from vortex_core.sandbox.jail import run

SPARSE = [name for name in library.names() if name != "dense"]


def subject(program: Program, seed: int = 0) -> Subject:
    return Subject(from_program(program), Knobs(), random.Random(seed), layers=30, mla=False)


def flow_hash(source: str) -> str:
    return run(source, "expected.py").ir_hash


# ---- terms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", library.names())
def test_terms_keep_every_library_flow(name: str) -> None:
    traced = library.load(name)
    assert to_program(from_program(traced.program)).ir_hash == traced.ir_hash
    assert to_program(from_program(traced.original)).ir_hash == traced.ir_hash


def test_terms_keep_arbitrary_programs() -> None:
    for seed in range(60):
        program = random_program(random.Random(seed))
        assert to_program(from_program(program)).ir_hash == program.ir_hash, seed


def test_retagging_renames_carried_states_and_nothing_else() -> None:
    program = library.load("running_average").program
    flow = from_program(program)
    tags = {tag for tag, _ in flow.updates}
    other = retagged(flow, tags)
    assert tags and not tags & {tag for tag, _ in other.updates}
    assert to_program(other).ir_hash == program.ir_hash


# ---- moves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", [*MOVES, *CROSSINGS], ids=lambda m: f"{m.__module__[15:]}-{m.__name__}")
def test_every_move_keeps_arbitrary_programs_legal(move: Callable[..., bool]) -> None:
    """Including programs that no grammar would grow. What a move changed, it says."""
    applied = 0
    for seed in range(40):
        rng = random.Random(seed)
        pair = [fuzz(rng), library.load(rng.choice(SPARSE)).program]
        rng.shuffle(pair)
        s = subject(pair[0], seed)
        before, knobs = s.flow, s.knobs
        if move in CROSSINGS:
            other = retagged(from_program(pair[1]), {tag for tag, _ in s.flow.updates})
            changed = move(s, other)
        else:
            changed = move(s)
        try:
            verify(to_program(s.flow))
        except VortexError as error:
            if error.code not in (
                "VF008",
                "VF026",
            ):  # larger than the language allows, which types do not rule out
                raise
        assert changed == ((s.flow, s.knobs) != (before, knobs)) == bool(s.done), seed
        applied += changed
    assert applied >= 3


def test_more_rows_turn_quest_into_quest_over_sub_pages() -> None:
    want = library.load("quest").source
    for key, op in (("kmax", "max"), ("kmin", "min")):
        want = want.replace(f'"{key}": page.state(', f'"{key}": page.state(row=2, ')
        want = want.replace(f'page.k.{op}("token")', f'page.k.split("token", row=2).{op}("token")')
    want = want.replace('bound.max("head")', 'bound.max("head", "row")')
    found = set()
    for seed in range(12):
        s = subject(library.load("quest").program, seed)
        assert change_rows(s)
        found.add(to_program(s.flow).ir_hash)
    assert flow_hash(want) in found
    assert len(found) == 2  # two parts, or four


def test_rows_come_off_again() -> None:
    s = subject(library.load("quest").program)
    assert change_rows(s)
    for seed in range(50):
        s.rng.seed(seed)
        if change_rows(s) and s.done[-1].endswith("-> 1 parts of a page"):
            break
    assert to_program(s.flow).ir_hash == library.load("quest").ir_hash


def test_channels_narrow_query_and_states_together() -> None:
    program = library.load("quest").program
    for seed in range(40):
        s = subject(program, seed)
        if change_channels(s):
            extents = {str(e) for state in to_program(s.flow).states for n, e in state.dims if n == "dim"}
            assert len(extents) == 1 and extents != {"D"}
            return
    raise AssertionError("the move never applied")


def test_combining_takes_the_carried_state_along() -> None:
    s = subject(library.load("quest").program)
    assert combine(s, from_program(library.load("running_average").program))
    program = to_program(s.flow)
    verify(program)
    assert sum(state.carried for state in program.states) == 1
    assert len(program.states) >= 4


# ---- summaries ---------------------------------------------------------------------------------------------

FRAMES = [Frame(), Frame(("0", "D/2")), Frame(("D/4", "D/2"), 2), Frame(None, 4), Frame("rope", 2, "part")]


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_summaries_have_the_dimensions_of_their_frame(frame: Frame) -> None:
    rows = {frame.row} if frame.rows > 1 else set()
    for name in VECTORS:
        value = vector(name, frame)
        assert set(value.names) == rows | {"dim"}, name
        assert frame_of(value) == frame, name
        again = summary_like(random.Random(name), value)
        assert again is not None and again.type.dims == value.type.dims, name
    for name in SCALARS:
        assert set(scalar(name, frame).names) == rows, name


# ---- settings ----------------------------------------------------------------------------------------------


def test_random_knobs_are_legal_and_varied() -> None:
    found = [random_knobs(random.Random(seed), layers=30) for seed in range(300)]
    assert all(covers(k) for k in found)
    assert len({k.budget for k in found}) > 50
    for knobs in found:
        for length in (2_048, 131_072):
            assert 0 < Budget(knobs.budget).tokens(length, layer=29, layers=30) < length


def test_changed_knobs_differ_in_one_legal_thing() -> None:
    changed: Counter[str] = Counter()
    for seed in range(300):
        rng = random.Random(seed)
        before = random_knobs(rng, layers=30)
        found = change_knobs(rng, before, layers=30)
        if found is None:
            continue
        after, words = found
        differing = [k for k, v in after.to_json().items() if v != before.to_json()[k]]
        assert len(differing) == 1 and differing[0] in words
        assert covers(after) and after.page_size in PAGE_SIZES
        changed[differing[0]] += 1
    assert {"budget", "page_size", "keep_first", "keep_last", "dense_layers", "reuse_steps"} <= set(changed)


@pytest.mark.parametrize(
    "budget", ["256", "max(256, length / 16)", "1024 if layer < 4 else 256", "128 * log2(length)", "length"]
)
def test_scaled_budgets_stay_budgets(budget: str) -> None:
    found = {scaled_budget(random.Random(seed), budget) for seed in range(30)}
    for text in found:
        assert Budget(text).tokens(32_768) >= 1
        assert text.count("log2") == budget.count("log2")
    assert (len(found) > 1) == (budget != "length")


def test_mixed_knobs_come_from_the_parents() -> None:
    one, other = Knobs(), Knobs(page_size=64, budget="1024", keep_first=4, keep_last=1, reuse_steps=4)
    seen = set()
    for seed in range(20):
        mixed = mixed_knobs(random.Random(seed), one, other)
        for name, value in mixed.to_json().items():
            assert value in (one.to_json()[name], other.to_json()[name])
        seen.add(mixed)
    assert len(seen) > 5


def test_knobs_that_keep_more_than_the_budget_are_not_covered() -> None:
    assert not covers(replace(Knobs(), budget="32", page_size=16, keep_first=2, keep_last=2))
    with pytest.raises(VortexError):
        covers(replace(Knobs(), budget="512 + 1 / (length - 32768)"))


# ---- arbitrary programs ------------------------------------------------------------------------------------


def test_arbitrary_programs_cover_every_operator() -> None:
    ops: Counter[str] = Counter()
    for seed in range(250):
        program = random_program(random.Random(seed), nope=True)
        verify(program)
        ops.update(n.op for g in (program.cache, program.index) for n in g.nodes)
    assert set(OPS) - set(ops) == {
        "param",
        "rotary",
        "dense_mass",
        "residual",
    }  # they need more than the program


def test_arbitrary_programs_are_reproducible_and_differ() -> None:
    first, second = ([random_program(random.Random(s)).ir_hash for s in range(40)] for _ in range(2))
    assert first == second
    assert len(set(first)) >= 35


def test_arbitrary_programs_trace_back() -> None:
    for seed in range(60):
        program = random_program(random.Random(seed))
        for form in (program, program.canonical()):
            assert run(emit(form, Knobs(), "x", "x"), "x.py").ir_hash == program.ir_hash, seed


def test_smooth_programs_leave_out_what_jumps() -> None:
    ops = {
        n.op
        for seed in range(120)
        for p in [random_program(random.Random(seed), smooth=True)]
        for g in (p.cache, p.index)
        for n in g.nodes
    }
    assert not ops & {"floor", "sign", "lt", "le", "eq", "largest", "where", "not", "and", "or"}
    assert {"exp", "log", "sqrt", "div", "softmax", "conv"} <= ops


def test_walking_visits_operands_first_and_once() -> None:
    flow = from_program(library.load("quest").program)
    seen: set[str] = set()
    for term in walk(flow.result):
        assert term.key not in seen
        assert all(a.key in seen for a in term.args)
        seen.add(term.key)


# ---- states of requests ------------------------------------------------------------------------------------


def test_scores_of_earlier_queries_are_grown_and_live_on() -> None:
    """Every way that a request's state takes part: legal, read back as written, and the pages still shared."""
    ways: set[str] = set()
    for seed in range(60):
        growth = Growth(random.Random(seed))
        score = growth.remember(growth.merge_heads(growth.signal(True)))
        program = to_program(Flow(growth.select(score), tuple(growth.updates.items())).pruned())
        verify(program)
        assert len(program.request_states) == 1 and not program.is_request_local
        assert to_program(from_program(program)).ir_hash == program.ir_hash
        again = run(emit(program, Knobs(), "again", ""), "again.py")
        assert again.ir_hash == program.ir_hash
        ways |= {
            word
            for note in growth.notes
            for word in ("average of queries", "while its cosine")
            if word in note
        }
    assert len(ways) == 2


def test_drawn_programs_remember_requests() -> None:
    """At times, from nothing and by the move; what updates such a state never has pages."""
    drawn = [to_program(Growth(random.Random(seed)).flow()) for seed in range(300)]
    assert 1 <= sum(bool(p.request_states) for p in drawn) <= 30
    assert any(random_program(random.Random(seed)).request_states for seed in range(40)), (
        "of any operators, too"
    )
    found = 0
    for seed in range(40):
        s = subject(library.load("quest").program, seed)
        if add_state_across_steps(s):
            program = to_program(s.flow)
            verify(program)
            found += bool(program.request_states)
    assert 5 <= found <= 30


def test_a_request_keeps_what_has_no_pages() -> None:
    """A score that takes the place of the query in an update is reduced over pages."""
    flow = from_program(library.load("freekv").program)
    (tag,) = (tag for tag, _ in flow.updates)
    (score,) = (t for t in flow.terms() if t.op == "softmax")
    changed = flow.rewritten(lambda t, args: score if t.op == "q" else None)
    new = dict(changed.updates)[tag] if changed.updates else score
    assert "page" not in new.names
