from vortex_core import ops, register, vFlow


@register("first_and_last")
class FirstAndLast(vFlow):
    """The first and the last key of each page stand for it."""

    def create_cache(self, page):
        return {"first": page.state(dim=page.head_dim), "last": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        t = ops.arange(token="S")
        first = ops.where(t == 0, page.k, 0).sum("token")
        last = ops.where(t == page.size - 1, page.k, 0).sum("token")
        return {"first": first, "last": last}

    def forward_indexer(self, q, cache):
        a = (q * cache["first"]).sum("dim")
        b = (q * cache["last"]).sum("dim")
        scale = 1 / ops.size("D") ** 0.5
        return ops.topk(((a.exp() + b.exp()).log() * scale).max("head"))
