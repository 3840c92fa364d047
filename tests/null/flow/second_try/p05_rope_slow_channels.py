from vortex_core import Knobs, ops, register, vFlow


@register("slow_half")
class SlowHalf(vFlow):
    """The slow rotary channels (upper halves of each rotate-half block) vary little within a page."""

    knobs = Knobs(page_size=16, budget="256")

    def create_cache(self, page):
        return {"lo": page.state(row=page.size, dim=page.head_dim // 2, dtype="int4")}

    def _slow(self, x):
        a = x.slice("dim", "D/4", "D/2")
        b = x.slice("dim", "3*D/4", "D")
        return ops.concat([a, b], "dim")

    def forward_cache(self, page):
        return {"lo": self._slow(page.k).rename(token="row")}

    def forward_indexer(self, q, cache):
        logits = self._slow(q).dot(cache["lo"], "dim") * page_scale()
        return ops.topk(logits.logsumexp("row").max("head"))


def page_scale():
    return ops.size("D") ** -0.5
