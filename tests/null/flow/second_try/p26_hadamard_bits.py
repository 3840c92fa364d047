from vortex_core import ops, register, vFlow


@register("rotated_bits")
class RotatedBits(vFlow):
    """Keys rotated by fixed random signs and kept as one bit a coordinate with one norm for each token."""

    def create_cache(self, page):
        return {
            "bits": page.state(row=page.size, proj="D", dtype="bits"),
            "scale": page.state(row=page.size, dtype="fp8_e4m3"),
        }

    def forward_cache(self, page):
        k = page.k.rename(token="row")
        z = k.dot(ops.signs(proj="D", dim="D"), "dim")
        return {"bits": z, "scale": z.abs().mean("proj")}

    def forward_indexer(self, q, cache):
        z = q.dot(ops.signs(proj="D", dim="D"), "dim")
        logits = z.dot(cache["bits"], "proj") * cache["scale"] / ops.size("D") ** 1.5
        return ops.topk(logits.logsumexp("row").max("head"))
