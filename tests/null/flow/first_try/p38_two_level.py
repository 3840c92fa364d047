from vortex_core import Knobs, ops, register, vFlow


@register("two_level")
class TwoLevel(vFlow):
    """Cheap sign screen first, box bound second; a page must do well in both."""

    knobs = Knobs(page_size=32, budget="max(512, length // 16)", reuse_steps=4)

    def create_cache(self, page):
        return {
            "sign": page.state(dim=page.head_dim, dtype="bits"),
            "hi": page.state(dim=page.head_dim, dtype="fp8_e5m2"),
            "lo": page.state(dim=page.head_dim, dtype="fp8_e5m2"),
        }

    def forward_cache(self, page):
        return {
            "sign": page.k.sum("token"),
            "hi": page.k.max("token"),
            "lo": page.k.min("token"),
        }

    def forward_indexer(self, q, cache):
        vote = (q * cache["sign"]).sum("dim").mean("head")
        box = ops.maximum(q * cache["hi"], q * cache["lo"]).sum("dim").mean("head")
        vote = (vote - vote.min("page")) / (vote.max("page") - vote.min("page") + 1e-6)
        box = (box - box.min("page")) / (box.max("page") - box.min("page") + 1e-6)
        return ops.topk(ops.minimum(vote, box))
