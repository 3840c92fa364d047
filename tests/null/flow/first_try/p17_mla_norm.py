import math

from vortex_core import Knobs, ops, register, vFlow


@register("mla_norm")
class MLANorm(vFlow):
    """MLA: latent centroid in int8 with norms, softmax over pages per head, heads averaged."""

    knobs = Knobs(page_size=64, budget=1024)

    def create_cache(self, page):
        return {
            "c": page.state(dim=page.head_dim, dtype="int8"),
            "spread": page.state(dtype="bf16"),
        }

    def forward_cache(self, page):
        c = page.k.mean("token")
        spread = page.k.var("token").sum("dim").sqrt()
        return {"c": c, "spread": spread}

    def forward_indexer(self, q, cache):
        scale = 1.0 / math.sqrt(192)
        logit = scale * ((q * cache["c"]).sum("dim") + 0.5 * q.norm("dim") * cache["spread"])
        return ops.topk(logit.softmax("page").sum("head"))
