"""What every backend must do. Subclass `BackendConformance` in a test module and let pytest collect it.

    class TestMine(BackendConformance):
        backend = "mine"                    # registered, or installed through an entry point

Only plain asserts: the suite needs no test framework to be imported.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from evaluators.parity import compare
from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, CapturedFlow, CompiledFlow, LayerKV
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.flow import Flow
from vortex_core.page_list import PageList

# Shorter than a page, around one page, and enough pages for cuts to matter.
_PAGES = (0.05, 0.9, 1.0, 1.1, 3.0, 8.5)


class BackendConformance:
    """The contract of `vortex_core.compiler.interface.Backend`, as tests against the fp64 oracle.

    Attributes:
        backend: its name in the registry.
        device: where it runs.
        tie_tolerance: scores closer than this share of a row's range count as tied: the backend's arithmetic.
        serves: whether engines run it there; a definition such as the oracle gives the reason why not instead.
        refuses: library flows that it says it cannot lower; all others must select what the oracle selects.
    """

    backend: ClassVar[str]
    device: ClassVar[str] = "cpu"
    tie_tolerance: ClassVar[float] = 1e-4
    serves: ClassVar[bool] = True
    refuses: ClassVar[frozenset[str]] = frozenset()
    grouped: ClassVar[Geometry] = Geometry(1, 2, 3, 16, 16, 16)
    latent: ClassVar[Geometry] = Geometry(1, 1, 4, 24, 8, 16)

    def flows(self) -> list[tuple[Flow, Geometry]]:
        """What is compared: the library, on grouped heads and on latent ones."""
        grouped = [(library.load(name).flow, self.grouped) for name in library.names()]
        latent = [(library.load(name).flow, self.latent) for name in library.mla_names()]
        return [(flow.with_knobs(page_size=8, budget="32"), g) for flow, g in grouped + latent]

    def compiled(self, name: str = "quest", **knobs: Any) -> CompiledFlow:
        """A library flow, compiled by the backend."""
        flow = library.load(name).flow.with_knobs(page_size=8, **{"budget": "32", **knobs})
        return backends.get(self.backend).compile(flow.program, flow.knobs, self.grouped)

    def selected(self, flow: CompiledFlow, lengths: list[int]) -> tuple[PageList, BatchView]:
        """What a flow selects for random queries and keys of sequences of these lengths."""
        there, size, g = torch.device(self.device), flow.knobs.page_size, flow.geometry
        dtype = torch.float32 if there.type == "cpu" else torch.bfloat16
        whole = torch.int32 if backends.get(self.backend).captures else torch.int64
        random = torch.Generator().manual_seed(0)
        width = -(-max(lengths) // size)
        pages = len(lengths) * width + 2
        table = torch.randperm(pages, generator=random)[: len(lengths) * width].view(len(lengths), width)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=random).to(there, dtype)

        kv = LayerKV(draw(g.kv_heads, pages, size, g.head_dim), draw(g.kv_heads, pages, size, g.value_dim))
        states = flow.new_states(pages, there)
        complete = torch.cat([table[b, : n // size] for b, n in enumerate(lengths)])
        flow.update(states, kv, complete.to(there), 0)
        view = BatchView(
            table.to(there, whole),
            torch.tensor(lengths, dtype=whole, device=there),
            torch.tensor([flow.knobs.pages(n) for n in lengths], dtype=whole, device=there),
            max(lengths),
            dense_mass=draw(len(lengths), g.q_heads, width).float().softmax(-1)
            if flow.program.reads_dense_mass
            else None,
        )
        if isinstance(flow, CapturedFlow):
            flow.prepare(len(lengths), width, there)
        return flow.select(draw(len(lengths), g.kv_heads * g.group, g.head_dim), states, view, 0), view

    def test_the_name_is_the_registered_one(self) -> None:
        """The registry and the class call it the same, and it says whether an engine can run it here."""
        made = backends.get(self.backend)
        assert made.name == self.backend
        assert (made.unfit(torch.device(self.device)) is None) == self.serves

    def test_flows_are_what_the_backend_promises(self) -> None:
        """`captures` means `CapturedFlow`: an engine decides by it how it decodes."""
        assert isinstance(self.compiled(), CompiledFlow)
        assert isinstance(self.compiled(), CapturedFlow) == backends.get(self.backend).captures

    def test_it_selects_what_the_oracle_selects(self) -> None:
        """Every library flow, on ragged batches with pages in random order, or a refusal with a reason."""
        refused: dict[str, str] = {}
        for flow, geometry in self.flows():
            try:
                found = compare(
                    flow.program,
                    flow.knobs,
                    geometry,
                    backend=self.backend,
                    pages=_PAGES,
                    seeds=(0,),
                    tie_tolerance=self.tie_tolerance,
                    device=self.device,
                )
            except VortexError as error:
                refused[flow.name] = error.remedy
                continue
            assert found.holds, f"{flow.name}: {found.example or f'states {found.states} differ'}"
            assert found.tied <= found.rows // 4, f"{flow.name}: {found.tied} of {found.rows} rows are ties"
        assert refused.keys() == self.refuses
        assert all(refused.values()), "a refusal without a remedy"

    def test_lists_are_well_formed(self) -> None:
        """Pages of the sequence, each once, in logical order, the last one with them, no more than the budget."""
        lengths = [1, 7, 8, 9, 40, 65]
        flow = self.compiled(keep_first=0, keep_last=1)
        lists, view = self.selected(flow, lengths)
        for b, length in enumerate(lengths):
            table = view.block_table[b].tolist()
            pages = -(-length // flow.knobs.page_size)
            for row in range(lists.heads):
                count = int(lists.counts[b, row])
                chosen = [table.index(p) for p in lists.page_ids[b, row, :count].tolist()]
                assert chosen == sorted(set(chosen)), "pages in logical order, each once"
                assert chosen[-1] == pages - 1, "the newest page is always attended"
                assert count <= min(pages, int(view.budgets[b]))
                full = flow.knobs.page_size * (count - 1)
                assert int(lists.lengths[b, row]) == full + (length - 1) % flow.knobs.page_size + 1

    def test_one_question_one_answer(self) -> None:
        """The same inputs select the same pages, whatever was asked before."""
        flow = self.compiled()
        first, _ = self.selected(flow, [9, 40, 65])
        kept = first.page_ids.clone(), first.lengths.clone()
        self.selected(flow, [3, 64, 17])
        again, _ = self.selected(flow, [9, 40, 65])
        counts = again.counts
        assert torch.equal(again.lengths, kept[1])
        for b in range(again.batch):
            for row in range(again.heads):
                n = int(counts[b, row])
                assert torch.equal(again.page_ids[b, row, :n], kept[0][b, row, :n])

    def test_a_program_that_does_not_fit_is_refused(self) -> None:
        """A program of latent channels on a model that has none: a typed error, when it is compiled."""
        flow = library.load(library.mla_names()[0]).flow
        code = ""
        try:
            backends.get(self.backend).compile(flow.program, flow.knobs, self.grouped)
        except VortexError as error:
            code = error.code
        assert code, "it was compiled"

    def test_states_say_what_they_hold(self) -> None:
        """Bytes grow with the pages; engines plan memory by them."""
        flow = self.compiled()
        there = torch.device(self.device)
        few, many = (flow.new_states(n, there) for n in (16, 64))  # a backend may have room for a few more
        assert few.bytes_per_page() == many.bytes_per_page() > 0
        assert 0 < few.nbytes() < many.nbytes()
