"""The `refine_kernel`: the fine score of a selection in two stages, for the candidates of each row alone.

Candidates come as logical pages, and their scores go where those of all pages lie, so that the selection after it is
one like any other. Pages that are no candidates have the score -inf there, and candidates never less than `LOWEST`.
"""

from __future__ import annotations

from vortex_core.compiler.triton.code_emitter import CodeEmitter
from vortex_core.compiler.triton.emitter import Emitter
from vortex_core.compiler.triton.kernel_text import full
from vortex_core.compiler.triton.page_emitter import PageEmitter
from vortex_core.compiler.triton.score_kernel import IndexKernel
from vortex_core.compiler.triton.tile import Axis, Env, Tile

LOWEST = -3.4028232e38  # the second lowest number, which ranks before what is no candidate
EXTRA = ("candidates_ptr", "candidates_stride", "candidate_lens_ptr")


def refine_text(writer: IndexKernel, block: int, channels: int) -> str:
    """The source text, one program for `block` candidates of a row."""
    refined = writer.program.index.refinement
    assert refined is not None
    axis = Axis("page", block)
    codes = CodeEmitter(writer.states, writer.mask_text)

    def product(e: Emitter, i: int, env: Env) -> Tile | None:
        if i in writer.page_products:
            return PageEmitter(codes).emit(e, writer.page_products[i], env)
        found = writer.code_products.get(i)
        return None if found is None else codes.emit(e, found, env)

    e = writer.emitter(
        axis, contractions=writer.contractions, products=product, channels=channels, anchored=writer.anchored
    )
    e.begin_loop()  # there is none, but what pages do not change comes first, as in the scoring kernel
    value = full(e.value(refined.fine), (axis,))
    paged = e.end_loop()
    size = writer.page_size
    body = [
        *writer.prologue(True),
        f"first = tl.program_id(0) * {block}",
        f"count = (tl.load(candidate_lens_ptr + batch_row) + {size - 1}) // {size}",
        "if first >= count:",
        "    return",
        f"slot = first + tl.arange(0, {block})",
        "candidates = candidates_ptr + batch_row.to(tl.int64) * candidates_stride",
        f"{axis.index} = tl.load(candidates + slot, mask=slot < count, other=0)",
        f"page_ok = (slot < count) & ({axis.index} < complete)",
        f"page = tl.load(table_ptr + batch.to(tl.int64) * table_stride + {axis.index}, mask=page_ok, other=0)",
        "page_row = kv_head * pool_pages + page.to(tl.int64)",
        f"page_at = batch_row.to(tl.int64) * max_pages + {axis.index}",
        *writer.axes_lines(e),
        *e.outer,
        *paged,
        f"fine = {value}",
        f"fine = tl.where(fine > {LOWEST!r}, fine, {LOWEST!r})",
        f"tl.store(out{refined.node}_ptr + page_at, fine, mask=page_ok)",
    ]
    return writer.kernel("refine_kernel", [*writer.index_args(), *EXTRA], ["OPERAND"], body)
