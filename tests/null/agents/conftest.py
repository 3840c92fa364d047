from __future__ import annotations

from dataclasses import replace

import pytest

from agents.base import Parent
from vortex_core import library

FLOW = '''from vortex_core import ops, register, vFlow


@register("page_mean")
class PageMean(vFlow):
    """Scores a page by its mean key."""

    def create_cache(self, page):
        return {"mean": page.state(dim=page.head_dim)}

    def forward_cache(self, page):
        return {"mean": page.k.mean("token")}

    def forward_indexer(self, q, cache):
        return ops.topk((q * cache["mean"]).sum("dim").max("head"))
'''
ANSWER = f"IDEA: means are cheap and good enough.\n\n```python\n{FLOW}```\n"
LANGUAGE = "A flow has three methods: create_cache, forward_cache, forward_indexer."


def make_parent(name: str = "quest", **changes: object) -> Parent:
    values: dict[str, object] = {
        "source": FLOW,
        "flow": replace(library.load("quest").flow.with_knobs(budget="256"), name=name),
        "metrics": {
            "accuracy": {
                "value": 0.8125,
                "low": 0.7,
                "high": 0.9,
                "unit": "",
                "higher_is_better": True,
                "n": 48,
            },
            "decode_ms": {"value": 12.5, "unit": "ms", "higher_is_better": False, "how": "measured"},
        },
        "info": {
            "modelled": {"bound_by": "state bytes"},
            "recall": {"worst_head": {"layer": 3, "recall": 0.41}},
        },
    }
    return Parent(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees a developer's own keys or servers."""
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
