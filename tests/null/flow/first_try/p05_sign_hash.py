from vortex_core import ops, register, vFlow


@register("sign_hash")
class SignHash(vFlow):
    """Signs of a learned projection as a locality sensitive hash (HashAttention style).

    score(page) = max_h sum_t [sign(P q_h) . sign(P k_t)]_top
    """

    BITS = 64

    def create_cache(self, page):
        return {"code": page.state(bit=self.BITS, row=page.size, dtype="bits")}

    def forward_cache(self, page):
        proj = ops.param("proj", bit=self.BITS, dim="D")
        code = (page.k.rename(token="row") * proj).sum("dim")
        return {"code": code}

    def forward_indexer(self, q, cache):
        proj = ops.param("proj", bit=self.BITS, dim="D")
        qcode = (q * proj).sum("dim").sign()
        match = (qcode * cache["code"]).sum("bit")
        return ops.topk(match.max("row").mean("head"))
