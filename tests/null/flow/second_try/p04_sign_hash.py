from vortex_core import ops, register, vFlow


@register("sign_hash_tokens")
class SignHashTokens(vFlow):
    """Random-hyperplane signs of each token's key (SimHash): Hamming agreement with the query's signs."""

    def create_cache(self, page):
        return {"h": page.state(row=page.size, bit=128, dtype="bits")}

    def forward_cache(self, page):
        planes = ops.signs(bit=128, dim="D")
        return {"h": page.k.dot(planes, "dim").rename(token="row")}

    def forward_indexer(self, q, cache):
        planes = ops.signs(bit=128, dim="D")
        qs = q.dot(planes, "dim").sign()
        agree = qs.dot(cache["h"], "bit")
        return ops.topk(agree.max("row").mean("head"))
