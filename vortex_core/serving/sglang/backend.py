"""The attention backend `vortex`: prefill by one of SGLang's own backends, decode by a compiled flow.

SGLang allocates, frees and shares the KV pages; page states lie beside them under the same page numbers (see
`serving.decoder`). Everything a decode step needs of the batch is read before its graph is replayed.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from vortex_core.serving.decoder import FlowDecoder, batch_bucket
from vortex_core.serving.errors import unsupported
from vortex_core.serving.sglang.contract import INNER
from vortex_core.serving.sglang.dense_graphs import activate, applied
from vortex_core.serving.sglang.status import Status

logger = logging.getLogger(__name__)


def _of_inner(name: str) -> property:
    """An attribute of the prefill backend that the base class's default would hide from `__getattr__`."""

    def get(backend: Any) -> Any:
        return getattr(backend.inner, name)

    def put(backend: Any, value: Any) -> None:
        setattr(backend.inner, name, value)

    return property(get, put)


class VortexAttnBackend(AttentionBackend):
    """See SGLang's `AttentionBackend` for the contract of each method.

    Args:
        inner: the backend that prefills.
        inner_name: its name in SGLang's registry; SGLang's models ask for it to choose their prefill path.
        decoder: the flow on this rank's pool.
        runner: SGLang's model runner.
        status: where proof of what ran is kept.
    """

    def __init__(
        self, inner: Any, inner_name: str, decoder: FlowDecoder, runner: Any, status: Status
    ) -> None:
        super().__init__()
        self.inner, self._inner_name, self.decoder, self.status = inner, inner_name, decoder, status
        self.token_to_kv_pool = runner.token_to_kv_pool
        self.req_to_token_pool = runner.req_to_token_pool
        self.device = decoder.device
        self.is_mla = decoder.geometry.is_mla
        self.largest = decoder.pool.batch
        below = decoder.flow.crossover.longest > 0 and not self.is_mla
        self.needs_cpu_seq_lens = inner.needs_cpu_seq_lens or below
        # See `dense_graphs`. Under MLA models choose how they attend by the backend's name, before a step is known.
        self.two_graphs = below and applied()
        self.capturing = self.whole = False
        self.dense_sizes: set[int] = set()
        if self.two_graphs:
            activate(self)

    def __getattr__(self, name: str) -> Any:
        # Models and runners ask a backend for more than its base class names; for what it names see `INNER`.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def prefill_attention_backend_str(self) -> str:
        """The backend that really prefills: MLA models choose between latent and expanded prefill by it."""
        return self._inner_name

    @prefill_attention_backend_str.setter
    def prefill_attention_backend_str(self, name: str) -> None:
        """SGLang stamps the configured name, which is ours."""

    # ---- before a step -------------------------------------------------------------------------------------

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Prepare a step that runs outside a graph."""
        mode = forward_batch.forward_mode
        self.whole = False
        if mode.is_decode():
            rows = batch_bucket(forward_batch.batch_size, self.largest)
            if self._passes_by(forward_batch, rows):
                self.inner.init_forward_metadata(forward_batch)
            else:
                self._begin(forward_batch, padded=rows)
        elif not mode.is_idle():
            self._begin_extend(forward_batch)
            self.inner.init_forward_metadata(forward_batch)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Prepare a captured step: every launch here precedes the graph."""
        mode = forward_batch.forward_mode
        self.whole = False
        if mode.is_decode() or mode.is_idle():
            if in_capture:
                self.decoder.prepare(forward_batch.batch_size)
                self.capturing = self.two_graphs
                if self.capturing:
                    self.inner.init_forward_metadata_out_graph(forward_batch, in_capture=True)
            elif forward_batch.batch_size in self.dense_sizes and self._passes_by(
                forward_batch, forward_batch.batch_size
            ):
                self.inner.init_forward_metadata_out_graph(forward_batch)
                return
            self._begin(forward_batch)
        else:
            if not in_capture:
                self._begin_extend(forward_batch)
            self.inner.init_forward_metadata_out_graph(forward_batch, in_capture=in_capture)

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        """Nothing of a decode step's preparation is captured, but where the prefill backend attends."""
        mode = forward_batch.forward_mode
        if self.whole or not (mode.is_decode() or mode.is_idle()):
            self.inner.init_forward_metadata_in_graph(forward_batch)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Buffers exist since construction; they must hold the largest captured batch."""
        if max_bs > self.largest:
            raise unsupported(
                f"graphs of {max_bs} sequences with room for {self.largest}", "raise --max-running-requests"
            )
        if self.two_graphs:
            self.inner.init_cuda_graph_state(max_bs, max_num_tokens)

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Rows that pad a captured batch are sequences of one token."""
        return 1

    def _passes_by(self, forward_batch: Any, rows: int) -> bool:
        """Whether the prefill backend attends in this decode step: all its sequences are below the crossover."""
        lengths = getattr(forward_batch, "seq_lens_cpu", None)
        if self.decoder.flow.crossover.longest == 0 or self.is_mla or lengths is None:
            return False
        if not forward_batch.forward_mode.is_decode():
            return False
        # Rows that pad a batch are of one token, and stand last.
        real = lengths[: len(forward_batch.out_cache_loc)].tolist()
        if not real or not self.decoder.all_below(rows, real):
            return False
        self.status.sample(self.decoder)
        self.status.passed_by += 1
        self.decoder.pass_by(real, forward_batch.out_cache_loc)
        self.whole = True
        return True

    def _begin(self, forward_batch: Any, padded: int | None = None) -> None:
        self.status.sample(self.decoder)
        self.decoder.begin(
            self.req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            padded=padded,
        )

    def _begin_extend(self, forward_batch: Any) -> None:
        """Settle what the previous prefill completed, and note the pages that this one completes."""
        mode = forward_batch.forward_mode
        if mode.is_target_verify() or mode.is_draft_extend_v2():
            raise unsupported("speculative decoding", "start the server without --speculative-algorithm")
        self.decoder.settle()
        size = self.decoder.page_size
        prefixes, news = forward_batch.extend_prefix_lens_cpu, forward_batch.extend_seq_lens_cpu
        if prefixes is None or news is None:  # a dummy batch, in warm-up
            return
        rows: list[int] = []
        starts: list[int] = []
        for row, (prefix, new) in enumerate(zip(prefixes, news, strict=False)):
            pages = range(int(prefix) // size, (int(prefix) + int(new)) // size)
            rows += [row] * len(pages)
            starts += [page * size for page in pages]
        if not rows:
            return
        where = torch.tensor([rows, starts], device=self.device)
        requests = forward_batch.req_pool_indices[where[0]].long()
        slots = self.req_to_token_pool.req_to_token[requests, where[1]]
        self.decoder.note_complete(torch.div(slots, size, rounding_mode="floor"))

    # ---- a layer -------------------------------------------------------------------------------------------

    def forward_extend(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **extra: Any
    ) -> torch.Tensor:
        """Dense prefill."""
        out: torch.Tensor = self.inner.forward_extend(
            q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **extra
        )
        return out

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        q_rope: torch.Tensor | None = None,
        k_rope: torch.Tensor | None = None,
        **extra: Any,
    ) -> torch.Tensor:
        """Store K and V of the new tokens, then attend to what the flow selects; below its crossover, to everything.

        q: `[batch, q_head * dim]`; under MLA the absorbed query `[batch, q_head, 512]` and `q_rope`.
        """
        if self.whole:
            dense: torch.Tensor = self.inner.forward_decode(
                q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **extra
            )
            return dense
        unknown = [name for name, value in extra.items() if value is not None]
        if unknown or layer.is_cross_attention or layer.logit_cap > 0 or layer.sliding_window_size > -1:
            what = ", ".join(unknown) or "cross attention, soft-capped logits or sliding windows"
            raise unsupported(f"{what} in layer {layer.layer_id}", "choose another --attention-backend")
        if layer.k_scale_float not in (None, 1.0) or layer.v_scale_float not in (None, 1.0):
            raise unsupported(f"scaled fp8 KV (layer {layer.layer_id})", "serve without KV scales")
        if save_kv_cache and (k is None or v is None):
            raise unsupported("layers that share another layer's KV", "choose another --attention-backend")
        new = (k, v, k_rope) if save_kv_cache else (None, None, None)
        q = self._store(layer, forward_batch.out_cache_loc, *new, q, q_rope)
        rows = len(q)
        if rows < self.decoder.count:  # outside a graph the step is padded
            q = torch.nn.functional.pad(q, (0, 0, 0, 0, 0, self.decoder.count - rows))
        out = self.decoder.attend(layer.layer_id, q, layer.scaling)[:rows]
        return out.reshape(rows, layer.tp_q_head_num * layer.v_head_dim)

    def _store(
        self, layer: Any, slots: torch.Tensor, k: Any, v: Any, k_rope: Any, q: torch.Tensor, q_rope: Any
    ) -> torch.Tensor:
        """Store the new K, V and rotary K (all None: there are none); the queries as `[row, q_head, dim]`."""
        heads = layer.tp_q_head_num
        if q_rope is None:
            q = q.reshape(-1, heads, layer.qk_head_dim)
        else:
            parts = q.view(-1, heads, layer.v_head_dim), q_rope.view(len(q_rope), heads, -1)
            if k_rope is not None and self.decoder.writes_latent:
                rows = k.flatten(0, -2), k_rope.flatten(0, -2)
                return self.decoder.write_latent(layer.layer_id, slots, *rows, *parts)
            q = torch.cat(parts, -1)
        if k is None:
            return q
        if not self.is_mla:
            self.token_to_kv_pool.set_kv_buffer(layer, KVWriteLoc(slots), k, v, layer.k_scale, layer.v_scale)
        elif k_rope is not None:
            self.token_to_kv_pool.set_mla_kv_buffer(layer, slots, k, k_rope)
        else:
            self.token_to_kv_pool.set_kv_buffer(layer, KVWriteLoc(slots), k, v)
        return q

    def support_triton(self) -> bool:
        """Whether SGLang may use its Triton helpers beside this backend: as the prefill backend says."""
        return bool(self.inner.support_triton())


for _name in INNER:
    if hasattr(AttentionBackend, _name):  # newer ones are not there in older versions
        setattr(VortexAttnBackend, _name, _of_inner(_name))
