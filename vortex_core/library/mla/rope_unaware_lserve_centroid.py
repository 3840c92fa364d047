from vortex_core import Knobs, ops, register, vFlow


@register("rope_unaware_lserve_centroid")
class RopeUnawareLServeCentroid(vFlow):
    """The best of four sub-page means of the latent, rotary channels ignored (bundled with vortex_torch,
    arXiv 2606.06453). MLA models only.

    score(page) = max_row mean_h q_h,nope . mean_{t in row} c_t
    """

    knobs = Knobs(page_size=64, budget="max(1024, length / 16)")

    def create_cache(self, page):
        return {"centroid": page.state(row=4, dim=page.nope_dim)}

    def forward_cache(self, page):
        return {"centroid": page.k.split("token", row=4).mean("token").channels("nope")}

    def forward_indexer(self, q, cache):
        return ops.topk((q.mean("head").channels("nope") * cache["centroid"]).sum("dim").max("row"))
