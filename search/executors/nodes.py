"""Which nodes of a cluster are gone, and which are about to go, as Ray knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray


class Nodes:
    """Looks at the cluster again and again.

    Args:
        nodes: all nodes that ever were, with `NodeID` and `Alive`.
        draining: ids of nodes that Ray was told to drain.
    """

    def __init__(
        self,
        nodes: Callable[[], list[dict[str, Any]]] = lambda: ray.nodes(),
        draining: Callable[[], set[str]] = lambda: _draining(),
    ) -> None:
        self._nodes = nodes
        self._draining = draining

    def look(self) -> tuple[set[str], set[str]]:
        """Ids of the nodes that are dead, and of those that live and are to be left."""
        nodes = self._nodes()
        alive = {node["NodeID"] for node in nodes if node["Alive"]}
        dead = {node["NodeID"] for node in nodes} - alive
        return dead, self._draining() & alive


def _draining() -> set[str]:
    """Nodes that the autoscaler, a cloud's notice of preemption or `ray drain-node` has marked. Ray's libraries ask the
    same function; there is no public one."""
    from ray._private.state import state

    return set(state.get_draining_nodes())
