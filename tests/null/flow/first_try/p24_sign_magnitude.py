from vortex_core import ops, register, vFlow


@register("sign_magnitude")
class SignMagnitude(vFlow):
    """One bit per key channel around the page mean with one amplitude a channel (KIVI-like, 1 bit)."""

    def create_cache(self, page):
        return {
            "bits": page.state(row=page.size, dim=page.head_dim, dtype="bits"),
            "mean": page.state(dim=page.head_dim, dtype="fp8_e4m3"),
            "amp": page.state(dim=page.head_dim, dtype="fp8_e4m3"),
        }

    def forward_cache(self, page):
        k = page.k.rename(token="row")
        mean = k.mean("row")
        rest = k - mean
        return {"bits": rest, "mean": mean, "amp": rest.abs().mean("row")}

    def forward_indexer(self, q, cache):
        qs = q * (ops.size("D") ** -0.5)
        base = (qs * cache["mean"]).sum("dim")
        detail = (qs * cache["amp"] * cache["bits"]).sum("dim")
        logits = base + detail
        peak = logits.max("row").max("page")
        weights = (logits - peak).exp().sum("row")
        return ops.topk((weights / weights.sum("page")).mean("head"))
