from vortex_core import ops, register, vFlow


@register("rounded_residual")
class RoundedResidual(vFlow):
    """Keys rounded to 3 levels around the mean by hand, with the residual's scale per token."""

    def create_cache(self, page):
        return {
            "code": page.state(row=page.size, dim=page.head_dim, dtype="int4"),
            "mean": page.state(dim=page.head_dim),
            "scale": page.state(row=page.size, dtype="fp16"),
        }

    def forward_cache(self, page):
        k = page.k.rename(token="row")
        mean = k.mean("row")
        rest = k - mean
        scale = rest.abs().max("dim") / 3
        code = (rest / (scale + 1e-6)).round().clip(-3, 3)
        return {"code": code, "mean": mean, "scale": scale}

    def forward_indexer(self, q, cache):
        base = (q * cache["mean"]).sum("dim")
        fine = (q * cache["code"]).sum("dim") * cache["scale"]
        logits = (base + fine) * ops.size("D") ** -0.5
        return ops.topk(logits.logsumexp("row").max("head"))
