"""The serving decoder on a GPU: a captured step, replayed for other batches, against fp64 and its torch path."""

from __future__ import annotations

import pytest
import torch

from tests.cpu.serving.pools import Pool, bundle, dense
from vortex_core.geometry import Geometry
from vortex_core.serving.decoder import FlowDecoder

QWEN = Geometry(layers=2, kv_heads=8, group=2, head_dim=128, rope_dim=128, value_dim=128)
GLM = Geometry(layers=2, kv_heads=1, group=20, head_dim=576, rope_dim=64, value_dim=512)


def _on_gpu(pool: Pool, dtype: torch.dtype) -> None:
    pool.random = torch.Generator().manual_seed(1)
    pool.k = [k.to("cuda", dtype) for k in pool.k]
    pool.v = [
        k[..., : pool.geometry.value_dim] if pool.geometry.is_mla else torch.zeros_like(k) for k in pool.k
    ]


def _captured(pool: Pool, decoder: FlowDecoder, batch: int):
    """A graph of all layers of one step; writes `q` `[layer, batch, head, dim]`, reads `out`."""
    g = pool.geometry
    q = torch.zeros(g.layers, batch, g.kv_heads * g.group, g.head_dim, device="cuda", dtype=torch.bfloat16)
    table = torch.zeros(pool.requests, pool.longest, dtype=torch.int32, device="cuda")
    decoder.prepare(batch)
    zeros, ones = (torch.full((batch,), n, dtype=torch.int64, device="cuda") for n in (0, 1))
    decoder.begin(table, zeros, ones)

    def run() -> torch.Tensor:
        return torch.stack([decoder.attend(i, q[i], g.head_dim**-0.5) for i in range(g.layers)])

    run()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph, q, out


def _error(found: torch.Tensor, want: torch.Tensor) -> float:
    return float((found.cpu().double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("geometry", [QWEN, GLM], ids=["qwen", "glm"])
@pytest.mark.parametrize("flow", ["dense", "quest", "block_topk"])
def test_a_captured_step(geometry: Geometry, flow: str, dtype: torch.dtype) -> None:
    page = 64 if geometry.is_mla else 16
    knobs = {} if flow == "dense" else {"budget": "4096" if flow == "quest" else "256", "page_size": page}
    made = bundle(flow, **knobs)
    pool = Pool(geometry, page=64, pages=120, requests=4, longest=2048)
    _on_gpu(pool, dtype)
    decoder = pool.decoder(made, "triton", "cuda")
    for request, count in enumerate((1500, 63, 700, 1023)):
        size, before = decoder.page_size, pool.lengths[request]
        slots = pool.grow(request, count)
        done = range(before // size, (before + count) // size)
        decoder.note_complete((pool.slots[request, [p * size for p in done]] // size).cuda())
        for layer in range(geometry.layers):
            pool.write(layer, slots.cuda())
    graph, q, out = _captured(pool, decoder, 4)
    scale = geometry.head_dim**-0.5
    for requests in ([0, 1, 2, 3], [3, 2, 1, 0]):
        slots = torch.cat([pool.grow(r, 1) for r in requests]).cuda()
        for layer in range(geometry.layers):
            pool.write(layer, slots)
        q.copy_(torch.randn(q.shape, generator=pool.random))
        lengths = torch.tensor([pool.lengths[r] for r in requests], device="cuda")
        decoder.begin(pool.slots.cuda(), torch.tensor(requests, device="cuda"), lengths)
        graph.replay()
        torch.cuda.synchronize()
        for row, request in enumerate(requests):
            if flow == "block_topk":
                break
            for layer in range(geometry.layers):
                k, v = (x.float().cpu() for x in pool.tokens(layer, request))
                want = dense(q[layer, row].cpu(), k, v, scale)
                assert _error(out[layer, row], want) < 0.02
    if flow == "block_topk":  # attention over what the last layer selected (lists are reused), first kv head
        attended, there = decoder.attended().tolist()
        assert attended < 0.5 * there
        last = geometry.layers - 1
        for row in range(len(requests)):
            lists = decoder.lists(4)[last]
            pages = lists.page_ids[row, 0].long()
            slots = (pages[:, None] * page + torch.arange(page, device="cuda")).flatten()[
                : lists.lengths[row, 0]
            ]
            k, v = (x[last].float()[slots, :1].cpu() for x in (pool.k, pool.v))
            group = q[last, row, : geometry.group].cpu()
            want = dense(group, k, v, scale)
            assert _error(out[last, row, : geometry.group], want) < 0.02
