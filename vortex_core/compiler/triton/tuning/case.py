"""A decode step to tune: random KV and states of several layers, so that what one reads has left the L2 by its turn."""

from __future__ import annotations

import torch

from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.compiler.states import TorchStates
from vortex_core.compiler.triton.backend import TritonFlow
from vortex_core.compiler.triton.launch_config import FlowConfig, ScoreConfig
from vortex_core.errors import VortexError
from vortex_core.geometry import Geometry
from vortex_core.ir.definitions import torch_dtype
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.kernels.decode.config import DecodeConfig
from vortex_core.kernels.decode.plan import AttentionPlan
from vortex_core.page_list import PageList

MAX_LAYERS = 64


def cannot_tune(why: str, remedy: str) -> VortexError:
    """`VE040`: nothing to tune, or not here."""
    return VortexError("VE040", f"cannot tune: {why}", remedy)


class TuneCase:
    """One flow on one shape: `batch` sequences of `context` tokens.

    Args:
        max_layers: no more than these, although smaller states would then be read from the L2.

    Raises:
        VortexError: `VE040` where no pages are left out, or the KV of two layers does not fit.
    """

    def __init__(
        self,
        program: Program,
        knobs: Knobs,
        geometry: Geometry,
        batch: int,
        context: int,
        device: torch.device,
        max_layers: int = MAX_LAYERS,
    ) -> None:
        self.program, self.knobs, self.geometry, self.device = program.canonical(), knobs, geometry, device
        self.batch, self.context, self._max_layers = batch, context, max_layers
        size, g = knobs.page_size, geometry
        self.width = -(-context // size)
        if self.program.selects_everything or knobs.pages(context, 0, g.layers) >= self.width:
            raise cannot_tune(
                f"at {context:,} tokens this flow attends to every page", "give a longer --context"
            )
        self.default = self.flow(FlowConfig())
        # Drawn anew in every run, from one seed: a result does not hang on the numbers.
        self._random = torch.Generator(device).manual_seed(0)
        self.pages = batch * self.width
        self.kv: list[LayerKV] = []
        self.states: list[TorchStates] = []
        every = torch.arange(self.pages, device=device, dtype=torch.int32)
        self._add_layer(every)
        for _ in range(self._layers() - 1):
            self._add_layer(every)
        self._first = [data.clone() for data in self._written()]
        self.dense_mass: torch.Tensor | None = None
        if self.program.reads_dense_mass:
            shape = batch, g.q_heads, self.width
            self.dense_mass = torch.rand(shape, generator=self._random, device=device)
        self.q = self._normal((batch, g.kv_heads * g.group, g.head_dim), torch.bfloat16)
        order = torch.randperm(self.pages, generator=self._random, device=device)
        self.table = order.view(batch, self.width).to(torch.int32)
        # In the scratch that engines allocate for dense attention: no candidate may want more workers.
        dense = AttentionPlan.allocate(
            g, size, self.kv[0].k.dtype, batch, device, per_query_head=self.program.per_query_head
        )
        self.most_workers = dense.config(batch).workers_per_sm
        self.plan = dense.sharing(size, even=True)
        self.attention = self.plan.config(batch, knobs.pages(context, 0, g.layers) * size)
        self.out = torch.empty(batch, g.kv_heads * g.group, g.value_dim, device=device, dtype=torch.bfloat16)

    def flow(self, config: FlowConfig) -> TritonFlow:
        """The flow compiled under a configuration."""
        return TritonFlow(self.program, self.knobs, self.geometry, lambda batch, pages: config)

    def _normal(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=self._random, device=self.device, dtype=torch.bfloat16).to(dtype)

    def _add_layer(self, every: torch.Tensor) -> None:
        """KV, head-major as in the embedded engine, and the states that follow from it."""
        g, knobs = self.geometry, self.knobs
        dtype = torch.bfloat16 if knobs.kv_dtype == "auto" else torch_dtype(torch, knobs.kv_dtype)
        shape = (g.kv_heads, self.pages, knobs.page_size)
        k = self._normal((*shape, g.head_dim), dtype)
        kv = LayerKV(k, k[..., : g.value_dim] if g.is_mla else self._normal((*shape, g.value_dim), dtype))
        states = self.default.new_states(self.pages, self.device, self.batch)
        if states.mass is not None:
            states.mass.uniform_(generator=self._random)
        self.default.update(states, kv, every, 0)
        self.kv.append(kv)
        self.states.append(states)

    def _layers(self) -> int:
        """Enough that the smaller of the two parts reads twice the L2 in turn."""
        if self.device.type != "cuda":
            return 1
        states, kv = self.states[0].nbytes(), self.kv[0].k.nbytes + self.kv[0].v.nbytes
        share = self.knobs.pages(self.context, 0, self.geometry.layers) / self.width
        least = max(1, min(states, int(kv * share)))
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        wanted = max(2, min(self._max_layers, -(-2 * cache // least)))
        free, _ = torch.cuda.mem_get_info(self.device)
        room = 1 + int(0.8 * free) // (kv + states)
        if room < 2:
            raise cannot_tune(
                f"the KV of two layers of {self.batch} x {self.context:,} tokens does not fit this GPU",
                "give a smaller --batch or --context",
            )
        return min(wanted, room)

    def view(self, *, ragged: bool = False) -> BatchView:
        """The batch: all of full length, or of every length down to one token, as checks need."""
        lengths = torch.full((self.batch,), self.context, device=self.device)
        if ragged:
            lengths = torch.linspace(self.context, 1, self.batch, device=self.device).long()
        budgets = [self.knobs.pages(int(n), 0, self.geometry.layers) for n in lengths]
        ints = torch.tensor(budgets, device=self.device, dtype=torch.int32)
        return BatchView(self.table, lengths.to(torch.int32), ints, self.context, dense_mass=self.dense_mass)

    def score(self, flow: TritonFlow, layer: int, view: BatchView) -> None:
        """Run the scoring launches into the default's workspace."""
        work = self.default.workspace(self.batch, self.width, self.device)
        flow.launch_scores(
            self.q,
            self.states[layer],
            view.block_table,
            view.lengths,
            view.budgets,
            work,
            layer,
            view.dense_mass,
        )

    def attend(self, config: DecodeConfig, layer: int, pages: PageList) -> torch.Tensor:
        """Run attention over given lists."""
        scale = self.geometry.head_dim**-0.5
        return self.plan.run(self.q, *self.kv[layer].by_page, pages, scale, config=config, out=self.out)

    def select(self, flow: TritonFlow, layer: int, view: BatchView) -> PageList:
        """Score and select; the next call overwrites the lists."""
        return flow.select_in_place(self.q, self.states[layer], view, layer)

    def step(self, flow: TritonFlow, attention: DecodeConfig, layer: int, view: BatchView) -> None:
        """Run one sparse layer: score, select, attend."""
        self.attend(attention, layer, self.select(flow, layer, view))

    # ---- what a candidate must equal ---------------------------------------------------------------------------

    def scores(self, config: ScoreConfig) -> list[torch.Tensor]:
        """Scores of ragged sequences, NaN where none was written, and the states that scoring writes."""
        self._rewind()
        work = self.default.workspace(self.batch, self.width, self.device)
        for score in work.scores.values():
            score.fill_(float("nan"))
        self.score(self.flow(FlowConfig(config)), 0, self.view(ragged=True))
        return [x.clone() for x in (*work.scores.values(), *self._written())]

    def lists(self, *, ragged: bool = False) -> PageList:
        """The lists that the default configuration selects, as tensors of their own."""
        self._rewind()
        return self.default.select(self.q, self.states[0], self.view(ragged=ragged), 0)

    def _written(self) -> list[torch.Tensor]:
        """What scoring changes in the first layer besides scratch."""
        states = self.states[0]
        mass = [states.mass] if states.mass is not None else []
        return [*(states.fields[name].data for name, _ in self.program.index.writes), *mass]

    def _rewind(self) -> None:
        """Checks start from one state, however often the step was timed in between."""
        for data, first in zip(self._written(), self._first, strict=True):
            data.copy_(first)
