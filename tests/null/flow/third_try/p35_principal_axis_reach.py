from vortex_core import ops, register, vFlow


@register("principal_axis_reach")
class PrincipalAxisReach(vFlow):
    """Mean plus the page's first principal axis (four power iterations, started at the farthest token), with the largest
    and smallest coordinate of its tokens along it; what the axis leaves is one isotropic number.

    score = max over both ends of q.m + (q.u) end, plus beta |q| rest; heads by softmax over pages
    Tune: 1.0 in [0.3, 1.3]; 1.0 in [0.0, 3.0]
    """

    def create_cache(self, page):
        return {
            "mean": page.state(dim=page.head_dim, dtype="int8"),
            "axis": page.state(dim=page.head_dim, dtype="int8"),
            "high": page.state(dtype="fp16"),
            "low": page.state(dtype="fp16"),
            "rest": page.state(dtype="fp16"),
        }

    def forward_cache(self, page):
        mean = page.k.mean("token")
        away = page.k - mean
        axis = away.take(away.square().sum("dim").argmax("token"), "token")
        axis = axis / (axis.norm("dim") + 1e-6)
        for step in range(4):
            axis = (away * away.dot(axis, "dim")).sum("token")
            axis = axis / (axis.norm("dim") + 1e-6)
        along = away.dot(axis, "dim")
        left = (away - along * axis).square().mean("token", "dim").sqrt()
        return {
            "mean": mean,
            "axis": axis,
            "high": along.max("token"),
            "low": along.min("token"),
            "rest": left,
        }

    def forward_indexer(self, q, cache):
        scaled = q * ops.size("D") ** -0.5
        mu = scaled.dot(cache["mean"], "dim")
        tilt = scaled.dot(cache["axis"], "dim")
        reach = ops.maximum(tilt * cache["high"], tilt * cache["low"])
        score = mu + 1.0 * reach + 1.0 * scaled.norm("dim") * cache["rest"]
        return ops.topk(score.softmax("page").mean("head"))
