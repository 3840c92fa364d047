from vortex_core import ops, register, vFlow


@register("mla_two_part")
class MlaTwoPart(vFlow):
    """Latent part by its page mean, rotary part by sub-page means, since rotation blurs averages (MLA)."""

    def create_cache(self, page):
        return {
            "lat": page.state(dim="N", dtype="fp8_e4m3"),
            "rot": page.state(row=4, dim="R", dtype="bf16"),
        }

    def forward_cache(self, page):
        return {
            "lat": page.k.channels("nope").mean("token"),
            "rot": page.k.channels("rope").split("token", row=4).mean("token"),
        }

    def forward_indexer(self, q, cache):
        nope = q.channels("nope").dot(cache["lat"], "dim")
        rope = q.channels("rope").dot(cache["rot"], "dim").max("row")
        return ops.topk((nope + rope).mean("head"))
