"""Names of emitted states are found however often a program shares its values."""

from __future__ import annotations

from vortex_core.flow.naming import state_labels
from vortex_core.sandbox.jail import run

SHARED = '''
from vortex_core import ops, vFlow

class Shared(vFlow):
    """Each value is read twice by the next: 2**60 paths lead to the keys."""

    def create_cache(self, page):
        return {"x": page.state()}

    def forward_cache(self, page):
        x = page.k.max("token", "dim")
        for _ in range(60):
            x = ops.maximum(x.exp(), x)
        return {"x": x}

    def forward_indexer(self, q, cache):
        return ops.topk(cache["x"])
'''


def test_shared_values_are_looked_at_once() -> None:
    program = run(SHARED, "x.py").original
    assert state_labels(program) == {"x": "k_max"}
