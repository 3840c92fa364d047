"""The decode attention kernel of latent attention on Hopper: tokens, not heads, are the rows of both products.

Hopper's warpgroup products take 64 rows, and a request has few query heads (GLM-4.7-Flash 20). With heads as
rows (`decode_kernel.py`) the products run warp by warp and every tile passes through registers twice. Here the
scores are `K q^T` [token, head] and the output `V^T P^T` [channel, head]: both read the tile of tokens where it
lies in shared memory, which is the least that a tile can cost.

Two tiles are in shared memory. A tile's buffer is filled again as soon as its products are done, so at any time
at least one whole tile (74 kB, three times what hides the latency of HBM) is on its way. Triton's own pipeliner
keeps a spare buffer for such products, and three do not fit beside the queries; hence Gluon, Triton's language
for explicit layouts and copies, which Triton's interpreter does not run. `decode_kernel.py` computes the same,
runs everywhere and is the reference in tests. `split.py` says how work is divided and merged.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

TILE = 64  # tokens: the rows of a warpgroup product, and of all that fits shared memory twice
WARPS = 8
LATENT = gl.constexpr(512)
ROPE = gl.constexpr(64)

block_barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # renamed in Triton 3.7


@gluon.jit
def _await_previous():
    """`dependent.await_previous`, letting the next kernel begin at once."""
    gl.inline_asm_elementwise(
        "griddepcontrol.wait; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _add(a, b):
    return a + b


@gluon.jit
def _tile_pages(ids, tile, limit, PAGE: gl.constexpr, TILE: gl.constexpr, LAYOUT: gl.constexpr):
    """The physical page of each token of a tile, or of the tile; 0 for tokens at or past `limit`."""
    start = tile * TILE
    if PAGE >= TILE:
        page = gl.load(ids + start // PAGE, mask=start < limit, other=0)
    else:
        token = gl.arange(0, TILE, layout=gl.SliceLayout(1, LAYOUT))
        page = gl.load(ids + (start // PAGE + token // PAGE), mask=start + token < limit, other=0)
    return page


@gluon.jit
def _copy_tile(
    kv_ptr, stride_page, page_w, page_n, tile, end, latent, rope,
    STRIDE_TOKEN: gl.constexpr, PAGE: gl.constexpr, TILE: gl.constexpr, WIDE: gl.constexpr, NARROW: gl.constexpr,
):  # fmt: skip
    """Starts the copy of a tile's tokens before `end` into shared memory, the others as zeros.

    Zeros, not what the pool holds: 0 * NaN would poison the sum. page_w, page_n: `_tile_pages` for the two
    layouts. latent [TILE, 512], rope [TILE, 64].
    """
    token_w = gl.arange(0, TILE, layout=gl.SliceLayout(1, WIDE))
    token_n = gl.arange(0, TILE, layout=gl.SliceLayout(1, NARROW))
    channel_w = gl.arange(0, LATENT, layout=gl.SliceLayout(0, WIDE))
    channel_n = LATENT + gl.arange(0, ROPE, layout=gl.SliceLayout(0, NARROW))
    start = tile * TILE
    if PAGE >= TILE:
        rows = kv_ptr + page_w.to(gl.int64) * stride_page + (start % PAGE) * STRIDE_TOKEN
        from_w = rows + token_w[:, None] * STRIDE_TOKEN + channel_w[None, :]
        from_n = rows + token_n[:, None] * STRIDE_TOKEN + channel_n[None, :]
    else:
        rows_w = kv_ptr + page_w.to(gl.int64) * stride_page + (token_w % PAGE) * STRIDE_TOKEN
        rows_n = kv_ptr + page_n.to(gl.int64) * stride_page + (token_n % PAGE) * STRIDE_TOKEN
        from_w = rows_w[:, None] + channel_w[None, :]
        from_n = rows_n[:, None] + channel_n[None, :]
    async_copy.async_copy_global_to_shared(latent, from_w, mask=(start + token_w < end)[:, None])
    async_copy.async_copy_global_to_shared(rope, from_n, mask=(start + token_n < end)[:, None])


# Not specialised on: batch sizes and list strides vary between captured graphs, one binary serves them all.
@gluon.jit(
    do_not_specialize=[
        "rows",
        "workers",
        "splits",
        "max_tokens",
        "stride_ids_b",
        "stride_ids_h",
        "stride_lens_b",
        "stride_lens_h",
    ]
)
def latent_decode_kernel(
    q_ptr, kv_ptr, out_ptr, lse_ptr, ids_ptr, lens_ptr, part_out_ptr, part_lse_ptr, plan_ptr,
    stride_q_b, stride_q_h, stride_kv_page, stride_out_b, stride_out_h,
    stride_ids_b, stride_ids_h, stride_lens_b, stride_lens_h, score_scale, v_scale, rows, workers,
    splits, max_tokens,
    STRIDE_TOKEN: gl.constexpr, HEADS: gl.constexpr, GROUP: gl.constexpr, GROUP_PAD: gl.constexpr,
    PAGE: gl.constexpr, TILE: gl.constexpr, WARPS: gl.constexpr, PLAN: gl.constexpr, ONE_BLOCK: gl.constexpr,
    EVEN: gl.constexpr, HAS_LSE: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Grid (workers,), `WARPS` warps. `score_scale` = softmax scale * k_scale * log2(e).

    HEADS lists a request, GROUP <= 32 query heads a list; GROUP_PAD is 16 or 32. bf16 or fp16.
    EVEN: grid (rows * splits,) instead. Program `row * splits + piece` takes every `splits`-th tile of its row, so
    its first page ids are read along with the row's length, not after it; the lists have room for `max_tokens`.
    A piece then goes to slot 2 * program.
    """
    DTYPE: gl.constexpr = kv_ptr.dtype.element_ty
    # One row of 512 channels a warp and step, and four of 64: 16 bytes a thread, whole lines of memory.
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [WARPS, 1], [1, 0])
    NARROW: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, GROUP_PAD, 16])
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [4, WARPS // 4], [16, GROUP_PAD // (WARPS // 4), 16]
    )
    PLANNED: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    SWIZZLED: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)

    latents = gl.allocate_shared_memory(DTYPE, [2, TILE, LATENT], SWIZZLED)
    ropes = gl.allocate_shared_memory(DTYPE, [2, TILE, ROPE], SWIZZLED)
    q_latent = gl.allocate_shared_memory(DTYPE, [GROUP_PAD, LATENT], SWIZZLED)
    q_rope = gl.allocate_shared_memory(DTYPE, [GROUP_PAD, ROPE], SWIZZLED)
    shared_weights = gl.allocate_shared_memory(
        DTYPE, [TILE, GROUP_PAD], gl.NVMMASharedLayout(2 * GROUP_PAD, 16, rank=2)
    )

    if PDL:
        _await_previous()

    worker = gl.program_id(0)
    step = 1
    if EVEN:
        row = worker // splits
        begin = 0
        tile = worker % splits
        tile_end = tile + 1  # one row; its last tile is known when its length is
        share = 1
        step = splits
    elif ONE_BLOCK:  # `split.plan_worker`
        index = gl.arange(0, PLAN, layout=PLANNED)
        at = (index // HEADS) * stride_lens_b + (index % HEADS) * stride_lens_h
        lens = gl.load(lens_ptr + at, mask=index < rows, other=0)
        row_tiles = gl.where(index < rows, gl.maximum((lens + TILE - 1) // TILE, 1), 0)
        total = gl.sum(row_tiles, 0)
        share = gl.maximum((total + workers - 1) // workers, 1)
        longest = gl.max(row_tiles, 0)
        pieces = gl.maximum(longest // share, 1)
        equal = (longest + pieces - 1) // pieces
        share = gl.where((equal > share) & (equal <= share + share // 16), equal, share)
        tile = worker * share
        done = (gl.associative_scan(row_tiles, 0, _add) <= tile) & (index < rows)
        row = gl.sum(done.to(gl.int32), 0)
        begin = gl.sum(gl.where(done, row_tiles, 0), 0)
        tile_end = gl.minimum(tile + share, total)
    else:
        tile = gl.load(plan_ptr + worker * 5)
        tile_end = gl.load(plan_ptr + worker * 5 + 1)
        row = gl.load(plan_ptr + worker * 5 + 2)
        begin = gl.load(plan_ptr + worker * 5 + 3)
        share = gl.load(plan_ptr + worker * 5 + 4)

    token = gl.arange(0, TILE, layout=gl.SliceLayout(1, SCORES))
    head = gl.arange(0, GROUP_PAD, layout=gl.SliceLayout(0, SCORES))
    out_head = gl.arange(0, GROUP_PAD, layout=gl.SliceLayout(0, OUT))
    out_channel = gl.arange(0, LATENT, layout=gl.SliceLayout(1, OUT))
    head_w = gl.arange(0, GROUP_PAD, layout=gl.SliceLayout(1, WIDE))
    head_n = gl.arange(0, GROUP_PAD, layout=gl.SliceLayout(1, NARROW))
    channel_w = gl.arange(0, LATENT, layout=gl.SliceLayout(0, WIDE))
    channel_n = LATENT + gl.arange(0, ROPE, layout=gl.SliceLayout(0, NARROW))

    while tile < tile_end:
        b = (row // HEADS).to(gl.int64)
        h = row % HEADS
        ids = ids_ptr + b * stride_ids_b + h * stride_ids_h
        kv_len = gl.load(lens_ptr + b * stride_lens_b + h * stride_lens_h)
        first = tile - begin
        room = kv_len
        if EVEN:
            room = max_tokens
        page_w0 = _tile_pages(ids, first, room, PAGE, TILE, WIDE)
        page_n0 = _tile_pages(ids, first, room, PAGE, TILE, NARROW)
        page_w1 = _tile_pages(ids, first + step, room, PAGE, TILE, WIDE)
        page_n1 = _tile_pages(ids, first + step, room, PAGE, TILE, NARROW)
        q_rows = q_ptr + b * stride_q_b + h * GROUP * stride_q_h
        q_w = gl.load(
            q_rows + head_w[:, None] * stride_q_h + channel_w[None, :],
            mask=(head_w < GROUP)[:, None],
            other=0.0,
        )
        q_n = gl.load(
            q_rows + head_n[:, None] * stride_q_h + channel_n[None, :],
            mask=(head_n < GROUP)[:, None],
            other=0.0,
        )
        tiles = gl.maximum((kv_len + TILE - 1) // TILE, 1)
        last = tiles
        if not EVEN:
            last = gl.minimum(tiles, tile_end - begin)
        end = gl.minimum(kv_len, last * TILE)
        _copy_tile(
            kv_ptr, stride_kv_page, page_w0, page_n0, first, end, latents.index(0), ropes.index(0),
            STRIDE_TOKEN, PAGE, TILE, WIDE, NARROW,
        )  # fmt: skip
        async_copy.commit_group()
        _copy_tile(
            kv_ptr, stride_kv_page, page_w1, page_n1, first + step, end, latents.index(1), ropes.index(1),
            STRIDE_TOKEN, PAGE, TILE, WIDE, NARROW,
        )  # fmt: skip
        async_copy.commit_group()
        q_latent.store(q_w)
        q_rope.store(q_n)
        # Products read through the asynchronous proxy: writes are fenced before the barrier that precedes them.
        fence_async_shared()

        # Finite, so that a fully masked tile (an empty row) yields weights of zero and not NaN.
        top = gl.full([GROUP_PAD], -3.0e38, gl.float32, layout=gl.SliceLayout(0, SCORES))
        sums = gl.zeros([TILE, GROUP_PAD], gl.float32, layout=SCORES)  # by token: added up at the end
        acc = gl.zeros([LATENT, GROUP_PAD], gl.float32, layout=OUT)
        buffer = 0
        for t in range(first, last, step):
            # Read long before their copy: nothing waits for them.
            page_w = _tile_pages(ids, t + 2 * step, end, PAGE, TILE, WIDE)
            page_n = _tile_pages(ids, t + 2 * step, end, PAGE, TILE, NARROW)
            latent = latents.index(buffer)
            rope = ropes.index(buffer)
            async_copy.wait_group(1)
            fence_async_shared()
            block_barrier()
            scores = gl.zeros([TILE, GROUP_PAD], gl.float32, layout=SCORES)
            scores = warpgroup_mma(latent, q_latent.permute([1, 0]), scores, use_acc=False, is_async=True)
            scores = warpgroup_mma(rope, q_rope.permute([1, 0]), scores, is_async=True)
            scores = warpgroup_mma_wait(0, deps=[scores])
            ok = t * TILE + token < kv_len
            scores = gl.where(ok[:, None], scores * score_scale, float("-inf"))

            new_top = gl.maximum(top, gl.max(scores, 0))
            decay = gl.exp2(top - new_top)
            weights = gl.exp2(scores - new_top[None, :])
            sums = sums * decay[None, :] + weights
            top = new_top

            shared_weights.store(weights.to(DTYPE))
            fence_async_shared()
            acc = acc * gl.convert_layout(decay, gl.SliceLayout(0, OUT))[None, :]
            block_barrier()
            acc = warpgroup_mma(latent.permute([1, 0]), shared_weights, acc, is_async=True)
            acc = warpgroup_mma_wait(0, deps=[acc])
            block_barrier()  # all warps are done with the buffer
            if t + 2 * step < last:
                _copy_tile(
                    kv_ptr, stride_kv_page, page_w, page_n, t + 2 * step, end, latent, rope,
                    STRIDE_TOKEN, PAGE, TILE, WIDE, NARROW,
                )  # fmt: skip
            async_copy.commit_group()
            buffer = buffer ^ 1

        async_copy.wait_group(0)
        total_weight = gl.sum(sums, 0)
        seen = total_weight > 0
        norm = gl.convert_layout(gl.where(seen, v_scale / total_weight, 0.0), gl.SliceLayout(0, OUT))
        lse = gl.where(seen, top + gl.log2(total_weight), float("-inf"))
        acc = acc * norm[None, :]
        ok = (out_head < GROUP)[None, :]
        whole = last - first == tiles
        if EVEN:
            whole = splits == 1
        if whole:
            out = out_ptr + b * stride_out_b + (h * GROUP + out_head)[None, :] * stride_out_h
            gl.store(out + out_channel[:, None], acc.to(out_ptr.dtype.element_ty), mask=ok)
            if HAS_LSE:
                gl.store(lse_ptr + row * GROUP + head, lse * 0.6931471805599453, mask=head < GROUP)
        else:
            slot = 2 * worker
            if not EVEN:  # `split.piece_slot`
                slot += ((worker == begin // share) & (worker * share < begin)).to(gl.int32)
            part = slot.to(gl.int64) * GROUP
            gl.store(part_out_ptr + (part + out_head)[None, :] * LATENT + out_channel[:, None], acc, mask=ok)
            gl.store(part_lse_ptr + part + head, lse, mask=head < GROUP)

        if EVEN:
            tile = tile_end
        else:
            tile = begin + last
            begin += tiles
            row += 1
