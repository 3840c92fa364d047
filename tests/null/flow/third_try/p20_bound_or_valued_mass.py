from vortex_core import ops, register, vFlow


@register("bound_or_valued_mass")
class BoundOrValuedMass(vFlow):
    """Union of the diffuse and the spiky: value-weighted centroid mass, and the box bound.

    half: mean_h softmax_pages(q_h . mu / sqrt(D)) rms_t |v_t|
    half: max_h softmax_pages(sum_d max(q_hd hi_d, q_hd lo_d) / (2 sqrt(D)))
    Tune: 0.5 in [0.2, 0.8]
    """

    def create_cache(self, page):
        return {
            "mu": page.state(dim=page.head_dim, dtype="int4"),
            "hi": page.state(dim=page.head_dim, dtype="int4"),
            "lo": page.state(dim=page.head_dim, dtype="int4"),
            "worth": page.state(dtype="bf16"),
        }

    def forward_cache(self, page):
        return {
            "mu": page.k.mean("token"),
            "hi": page.k.max("token"),
            "lo": page.k.min("token"),
            "worth": page.v.square().sum("dim").mean("token").sqrt(),
        }

    def forward_indexer(self, q, cache):
        scale = ops.size("D") ** -0.5
        mass = (q.dot(cache["mu"], "dim") * scale).softmax("page").mean("head") * cache["worth"]
        bound = q.relu().dot(cache["hi"], "dim") - (-q).relu().dot(cache["lo"], "dim")
        spike = (bound * (0.5 * scale)).softmax("page").max("head")
        return ops.topk(mass, fraction=0.5) | ops.topk(spike, fraction=0.5)
