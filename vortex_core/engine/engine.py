"""The engine: one resident model, prompts prefilled once, flows swapped under them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from vortex_core.compiler import backends
from vortex_core.compiler.interface import CompiledFlow, LayerKV
from vortex_core.device_errors import device_errors
from vortex_core.engine import memory
from vortex_core.engine.decode.batch import DecodeBatch, Recorder
from vortex_core.engine.decode.loop import decode_to_end, one_step
from vortex_core.engine.decode.runners import Runners
from vortex_core.engine.decode.sampling import Sampler, Sampling
from vortex_core.engine.decode.selection import LoadedFlow
from vortex_core.engine.errors import bad_call, unsupported_backend, unsupported_kv_dtype
from vortex_core.engine.kv.blocks import BLOCK_TOKENS
from vortex_core.engine.kv.cache import KVCache, Prompt, SequenceState
from vortex_core.engine.kv.prompts import Prompts
from vortex_core.engine.models import adapt, check_flow, least_of_ranks, sharding_of
from vortex_core.engine.models.hf_config import spec_from_hf_config
from vortex_core.engine.models.loading import load_weights
from vortex_core.engine.models.packing import pack_linears
from vortex_core.engine.models.tokenizer import load_tokenizer
from vortex_core.engine.models.weights import resolve_model
from vortex_core.engine.requests import Request, RequestOutput, Token
from vortex_core.engine.results import DecodeResult, SwapReport
from vortex_core.engine.scheduler import Scheduler
from vortex_core.engine.synthetic import random_prompt
from vortex_core.ir.crossover import Crossover
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.layers import LayerPlan
from vortex_core.ir.program import Program
from vortex_core.specs import ModelSpec

if TYPE_CHECKING:
    from vortex_core.engine.decode.runners import AnyBatch

_KV_DTYPES = {"bf16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Engine:
    """A resident model. Not thread-safe; one per process.

    Args:
        model: a transformers causal LM; its attention is redirected to the engine's pool.
        tokenizer: its tokenizer, or None where only token ids are used.
        spec: its dimensions; read from its configuration by default.
        max_tokens: capacity of the KV pool, rounded up to blocks of 128 tokens; by default 32,768 on a CPU, and
            on a GPU what its free memory holds.
        most_tokens: no more than this where the memory decides.
        device: where the model is moved to; by default where it is.
        backend: `torch` (the default on a CPU) or `triton` (on a GPU, or under Triton's interpreter).
        graphs: on a GPU, replay decode steps from CUDA graphs.
        memory_fraction: share of the GPU that weights, pool and page states may take together.
        kv_dtype: what the pool holds: `auto` (the model's own), `fp8_e4m3` or `fp8_e5m2`, rounded without scales. fp8
            needs the Triton backend.

    Raises:
        VortexError: `VE012` for a model that cannot be served, `VE018` for a backend that does not run there, `VE013`
            for KV that it cannot hold.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        spec: ModelSpec | None = None,
        max_tokens: int | None = None,
        most_tokens: int | None = None,
        device: str | torch.device | None = None,
        backend: str | None = None,
        graphs: bool = True,
        memory_fraction: float = 0.92,
        kv_dtype: str = "auto",
    ) -> None:
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        self.spec = spec or spec_from_hf_config(model.config.get_text_config(), name=name)
        self.model = adapt(model)  # before fusing or packing: latent attention is replaced
        if device is not None:
            self.model.to(device)
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.backend = backend or ("torch" if self.device.type == "cpu" else "triton")
        self.captures = self._check_backend()
        self.kv_dtype = self._kv_dtype(kv_dtype)
        if self.captures:
            from vortex_core.engine.fused.modules import fuse

            fuse(self.model)
        else:
            pack_linears(self.model)
        self.tokenizer = tokenizer
        self.sharding = sharding_of(model)  # set where the model is one rank's part
        if self.sharding is not None and self.captures:
            from vortex_core.kernels.runtime import PDL_SWITCH

            # No run has shown dependent launches behind NCCL's kernels.
            os.environ.setdefault(PDL_SWITCH, "0")
        self.geometry = self.spec.geometry() if self.sharding is None else self.sharding.geometry
        self.flow: LoadedFlow | None = None
        self._suspended: LoadedFlow | None = None
        self._runners = Runners(self, graphs=graphs)
        if max_tokens is None:
            max_tokens = memory.pool_tokens(self.geometry, self.kv_dtype, self.device, memory_fraction)
            if self.sharding is not None:
                max_tokens = least_of_ranks(max_tokens, self.sharding.ranks, self.device)
            if most_tokens is not None:
                max_tokens = min(max_tokens, most_tokens)
        memory.check_pool_fits(self.geometry, self.kv_dtype, max_tokens, self.device)
        self.cache = KVCache(self.geometry, max_tokens, self.kv_dtype, self.device, self._on_reuse)
        self.prompts = Prompts(self.model, self.spec, self.cache)

    def _kv_dtype(self, name: str) -> torch.dtype:
        if name != "auto" and name not in _KV_DTYPES:
            raise bad_call(f"kv_dtype {name!r}", f"give one of auto, {', '.join(_KV_DTYPES)}")
        wanted = self.dtype if name == "auto" else _KV_DTYPES[name]
        if wanted == self.dtype or (self.captures and name.startswith("fp8")):
            return wanted
        raise unsupported_kv_dtype(name, f"{_short(self.dtype)} (fp8 takes the Triton backend)")

    def _check_backend(self) -> bool:
        """Whether decode steps are captured ones; raises `VE018` for a backend that does not fit the device."""
        chosen = backends.get(self.backend)
        why = chosen.unfit(self.device)
        if why is not None:
            raise unsupported_backend(self.backend, str(self.device), why)
        return chosen.captures

    def _on_reuse(self, blocks: Sequence[int]) -> None:
        for flow in (self.flow, self._suspended):
            if flow is not None:
                flow.forget(blocks)

    @classmethod
    def from_model(
        cls,
        name_or_path: str,
        *,
        max_tokens: int | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> Engine:
        """Load a model by name, directory or hub id.

        Args:
            dtype: of weights and KV; by default the checkpoint's own. On a CPU with AVX-512 bf16 that is also the
                faster one: SmolLM2-135M takes 58 ms of CPU a step against 73 in float32 (76 against 90 at 4k
                context), and prefills 1.3 times as fast.
            threads: CPU threads of this process; by default torch's choice.
            options: see `Engine`.

        Raises:
            VortexError: `VM...` where the weights cannot be had, `VE012` where the engine cannot serve them, `VE054`
                where weights or pool do not fit the GPU.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        found = resolve_model(name_or_path)
        with device_errors(f"loading {found.spec.name}", flow=False):
            model = load_weights(found, device=device, dtype=dtype)
            tokenizer = load_tokenizer(found.directory)
            return cls(model, tokenizer, spec=found.spec, max_tokens=max_tokens, **options)

    # ---- flows

    @property
    def ir_hash(self) -> str:
        """The IR hash of the program that decodes run; `dense` where none is loaded."""
        return "dense" if self.flow is None else self.flow.compiled.program.ir_hash

    def load_flow(
        self, program: Program | None, knobs: Knobs | None = None, *, crossover: Crossover | None = None
    ) -> SwapReport:
        """Swap the flow that decodes use; None is dense. Prefilled prompts stay.

        Args:
            crossover: below how many tokens sequences attend to everything; by default what `vortex-search tune
                --crossover` has measured for the flow, model and machine, and where it has not, never.

        Raises:
            VortexError: `VE013` for a KV dtype the pool does not hold; whatever the backend cannot compile; `VE019`
                for states, `VE051` and `VE053` for kernels and scratch that do not fit.
        """
        started = time.perf_counter()
        compiled = None
        if program is not None:
            compiled = backends.get(self.backend).compile(program, knobs or Knobs(), self.geometry)
        report = self.load_compiled(compiled, crossover=crossover)
        return replace(report, seconds=time.perf_counter() - started)

    def load_compiled(
        self, compiled: CompiledFlow | None, *, crossover: Crossover | None = None
    ) -> SwapReport:
        """The same for a flow that is compiled already."""
        assert not self.cache.sequences and self._suspended is None, "flows are swapped between decodes"
        started = time.perf_counter()
        before = memory.allocated(self.device)
        if compiled is not None:
            wanted = compiled.knobs.kv_dtype
            if wanted != "auto" and _KV_DTYPES[wanted] != self.kv_dtype:
                raise unsupported_kv_dtype(wanted, _short(self.kv_dtype))
            if self.sharding is not None:
                check_flow(compiled.program, self.sharding)
        shape = self._runners.drop(self.flow)
        self.flow = None  # free the old states before the new ones are made
        sparse = compiled is not None and not compiled.program.selects_everything
        with device_errors("loading the flow" if sparse else "loading dense attention", flow=sparse):
            if compiled is not None:
                self.flow = self._load(compiled, crossover)
                if not self.private_pages:
                    self.flow.cover((p.blocks, p.cached) for p in self.cache.prompts.values())
            capture = self._runners.warm_up(shape)
        state_bytes = 0 if self.flow is None else self.flow.state_bytes
        after = memory.allocated(self.device)
        return SwapReport(time.perf_counter() - started, state_bytes, self.ir_hash, capture, before, after)

    def _load(self, compiled: CompiledFlow, crossover: Crossover | None) -> LoadedFlow:
        """A flow with room for the states of every page."""
        pages = self.cache.pool.slots // compiled.knobs.page_size
        plan = LayerPlan(compiled.program, compiled.knobs, self.geometry.layers)
        memory.check_states_fit(compiled, pages, len(plan.leaders), self.device)
        return LoadedFlow(compiled, self.cache.pool, crossover)

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Decode densely for a while, e.g. between two steps of an A/B comparison; the flow keeps its states."""
        assert self._suspended is None and not self.cache.sequences
        self.flow, self._suspended = None, self.flow
        try:
            yield
        finally:
            self.flow, self._suspended = self._suspended, None

    # ---- prompts

    def prefill(self, token_ids: Sequence[int]) -> Prompt:
        """Compute and pin the keys and values of a prompt, all but its last token's, with dense attention.

        Content-addressed: a prompt that is pinned already is returned again (and must be released as often),
        and full blocks whose tokens and whole past are known are shared.

        Raises:
            VortexError: `VE011` for an empty or too long prompt, `VE010` where the pool has no room.
        """
        started = time.perf_counter()
        prompt, start = self.prompts.open(tuple(int(token) for token in token_ids))
        try:
            while start < prompt.cached:
                start = self.prompts.compute(prompt, start)
        except BaseException:
            self.prompts.close(prompt)
            raise
        if self.prompts.seal(prompt):
            self.synchronize()
            prompt.prefill_seconds = time.perf_counter() - started
        return prompt

    def prefill_random(self, length: int, seed: int = 0) -> Prompt:
        """A pinned prompt of random keys and values, for measuring speed only; see `synthetic`."""
        return random_prompt(self.cache, length, self.spec.vocab, seed)

    def synchronize(self) -> None:
        """Wait until the device has finished all launched work; nothing to do on a CPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def release(self, prompt: Prompt) -> None:
        """Undo one `prefill`. After the last, the blocks may be taken for other prompts."""
        self.prompts.release(prompt)

    # ---- decoding

    def decode(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        forced: Sequence[Sequence[int | None]] | None = None,
        stop_ids: Sequence[int] = (),
        sampling: Sampling | Sequence[Sampling] | None = None,
        recorder: Recorder | None = None,
    ) -> DecodeResult:
        """Decode some prefilled prompts together with the loaded flow. The prompts stay as they were.

        Args:
            max_new_tokens: at most this many tokens a prompt.
            forced: score these continuations instead of choosing tokens (teacher forcing); where one says None, the
                model chooses.
            stop_ids: a sequence ends with the first of these it produces.
            sampling: greedy by default; one a prompt, or one for all, of which prompt `i` draws with `seed + i`.
            recorder: called for every layer and step, before attention and with the new K and V in place:
                layer, rotated queries `[batch, q_head, dim]`, the layer's paged KV, and the batch as the
                selection sees it. With no flow, pages are blocks of 128.

        Raises:
            VortexError: `VE010` no room for the new tokens, `VE015` a released prompt, `VE016` bad arguments.
        """
        if forced is not None and len(forced) != len(prompts):
            raise bad_call(
                f"{len(forced)} forced continuations for {len(prompts)} prompts", "give one per prompt"
            )
        steps = [max_new_tokens] * len(prompts)
        if forced is not None:
            steps = [min(max_new_tokens, len(tokens)) for tokens in forced]
        if not prompts or min(steps) < 1:
            raise bad_call(
                "nothing to decode", "give at least one prompt and at least one new token for each"
            )
        self.cache.check_pinned(prompts)
        if sampling is None or isinstance(sampling, Sampling):
            sampling = [(sampling or Sampling()).for_row(i) for i in range(len(prompts))]
        if len(sampling) != len(prompts):
            raise bad_call(
                f"{len(sampling)} samplings for {len(prompts)} prompts", "give one, or one per prompt"
            )
        sampler = Sampler(sampling)
        sequences = self.fork(prompts, steps)
        try:
            batch = self.new_batch(sequences)
            seconds = decode_to_end(self, batch, sampler, steps, forced, frozenset(stop_ids), recorder)
        finally:
            self.cache.join(sequences)
        return DecodeResult(
            [s.tokens for s in sequences],
            [s.logprobs for s in sequences],
            seconds,
            batch.density,
            self.ir_hash,
            batch.attend_seconds if isinstance(batch, DecodeBatch) else None,
        )

    def new_batch(self, sequences: Sequence[SequenceState]) -> AnyBatch:
        """A live batch for the loaded flow."""
        if self.captures:
            return self._runners.batch(self.flow, sequences)
        return DecodeBatch(sequences, self.cache.pool, self.flow)

    def step(
        self,
        batch: AnyBatch,
        sampler: Sampler,
        forced: Sequence[int | None] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """One token for every sequence of a batch, chosen by `sampler` where `forced` gives none."""
        one_step(self, batch, sampler, forced, recorder)

    @property
    def private_pages(self) -> bool:
        """Whether sequences must not share pages: the loaded flow's states depend on the request."""
        return self.flow is not None and self.flow.compiled.program.is_request_local

    def fork(self, prompts: Sequence[Prompt], new_tokens: Sequence[int]) -> list[SequenceState]:
        """Sequences that continue prompts, with their page states. End them with `cache.join`.

        Raises:
            VortexError: `VE010`; then nothing was taken.
        """
        sequences = self.cache.fork(prompts, new_tokens, private=self.private_pages)
        if self.flow is not None:
            self.flow.cover((s.blocks, s.length) for s in sequences)
            if self.flow.begin([s.seat for s in sequences]):
                self._runners.forget(self.flow)
        return sequences

    def generate(self, requests: Sequence[Request], *, max_batch: int = 64) -> list[RequestOutput]:
        """Run requests to their end with continuous batching; results in the order of the requests.

        Raises:
            VortexError: `VE010` if one of them could never fit; then none ran.
        """
        scheduler = Scheduler(self, max_batch)
        for _ in scheduler.run(requests):
            pass
        return [scheduler.finished[request_id] for request_id in range(len(requests))]

    def stream(self, requests: Sequence[Request], *, max_batch: int = 64) -> Iterator[Token]:
        """The same, token by token as they are produced; each `Token.request_id` is the index of its request.

        Closing the iterator drops what is unfinished.
        """
        return Scheduler(self, max_batch).run(requests)

    # ---- looking inside

    def kv(self, layer: int, page_size: int) -> LayerKV:
        """Keys and values of one layer as pages of any legal size, `[kv_head, page, token, dim]`."""
        return self.cache.pool.paged(layer, page_size)

    def page_table(self, prompts: Sequence[Prompt], page_size: int) -> torch.Tensor:
        """Physical pages of each prompt's cached tokens, int64 `[batch, max_pages]`, padded with page 0."""
        sequences = [SequenceState(p.blocks, p.cached, 0) for p in prompts]
        batch = DecodeBatch(sequences, self.cache.pool, None)
        per_block = BLOCK_TOKENS // page_size
        pages = batch.page_table[:, :, None] * per_block + torch.arange(per_block, device=self.device)
        return pages.flatten(1)

    def check_integrity(self) -> None:
        """Assert that every block is accounted for."""
        self.cache.check_integrity()
