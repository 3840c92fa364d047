from vortex_core import ops, register, vFlow


@register("mass_and_centroid")
class MassAndCentroid(vFlow):
    """A centroid score plus the log of the previous step's mass as a prior."""

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim, dtype="int8")}

    def forward_cache(self, page):
        return {"mean": page.k.mean(dim="token")}

    def forward_indexer(self, q, cache):
        logits = (q * cache["mean"]).sum(dim="dim") * (ops.size("D") ** -0.5)
        prior = (ops.mass() + 1e-6).log()
        return ops.topk((logits + 0.25 * prior).max(dim="head"))
