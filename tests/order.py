"""Tests side by side: which of them one process runs, and in which order they are handed out."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

# What starts a cluster or keeps time: never beside another of its kind.
ALONE = ("tests/e2e/", "tests/cpu/search/test_cluster.py", "tests/cpu/search/test_gpu_cluster.py")
# Every test starts a process of its own and shares nothing.
APART = "tests/interp/"


def group_of(nodeid: str) -> str:
    """Tests of a group run in one process, one after the other: those of a file, which makes its fixtures once."""
    if nodeid.startswith(ALONE):
        return "alone"
    return nodeid if nodeid.startswith(APART) else nodeid.partition("::")[0]


def longest_first(items: list[pytest.Item]) -> None:
    """Sort: tests that run alone, then groups with a slow one or apart, then the others by how many they hold.

    The last groups to be handed out are short ones then, and no process waits for minutes for another. Tests of a group
    stay in their order.
    """
    groups = {item: group_of(item.nodeid) for item in items}
    slow = {g for item, g in groups.items() if item.get_closest_marker("slow") or g.startswith(APART)}
    tests = Counter(groups.values())
    ranks = {group: (group != "alone", group not in slow, -tests[group], group) for group in tests}
    items.sort(key=lambda item: ranks[groups[item]])


def scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Hands out whole groups, in the order in which they were collected.

    pytest-xdist has groups of its own (`--dist loadgroup`), which 3.8 writes into names of tests where pytest 9.2 no
    longer looks: without a word each test was its own group, and fixtures of a file were made in every process.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)
