from vortex_core import ops, register, vFlow


@register("incoherent_two_bit_sketch")
class IncoherentTwoBitSketch(vFlow):
    """Page mean in a random sign basis, two bits a value (incoherence as in QuIP, arXiv 2307.13304).

    z = S mean_t k_t (64 random sign directions), stored int2 with one scale
    score(page) = mean_h softmax_pages((S q_h) . z / (64 sqrt(D)))
    """

    def create_cache(self, page):
        return {"z": page.state(bit=64, dtype="int2")}

    def forward_cache(self, page):
        return {"z": page.k.mean("token").dot(ops.signs(bit=64, dim="D"), "dim")}

    def forward_indexer(self, q, cache):
        sketch = q.dot(ops.signs(bit=64, dim="D"), "dim")  # (head, bit)
        logits = sketch.dot(cache["z"], "bit") * (ops.size("D") ** -0.5 / 64.0)
        return ops.topk(logits.softmax("page").mean("head"))
