from vortex_core import ops, register, vFlow


@register("rope_weighted_block_topk")
class RopeWeightedBlockTopK(vFlow):
    """Block top-k with the latent and rotary parts of the logit weighted apart, a + b = 1 (bundled with
    vortex_torch, arXiv 2606.06453, for several b). MLA models only; b = 0.5 is block_topk.

    score(page) = a mean_h q_h,nope . c_nope + b mean_h q_h,rope . c_rope, c = mean_t latent_t, b = 0.25
    """

    def create_cache(self, page):
        return {"latent": page.state(dim=page.nope_dim), "rotary": page.state(dim=page.rope_dim)}

    def forward_cache(self, page):
        mean = page.k.mean("token")
        return {"latent": mean.channels("nope"), "rotary": mean.channels("rope")}

    def forward_indexer(self, q, cache):
        q = q.mean("head")
        latent = (q.channels("nope") * cache["latent"]).sum("dim")
        rotary = (q.channels("rope") * cache["rotary"]).sum("dim")
        return ops.topk(0.75 * latent + 0.25 * rotary)
