"""Block bookkeeping: conservation under random use, contiguity, sharing, eviction."""

from __future__ import annotations

import random

import pytest

from vortex_core.engine.kv.blocks import BLOCK_TOKENS, BlockPool, blocks_for, digests_of, runs_of


@pytest.mark.parametrize("seed", range(5))
def test_random_use_conserves_blocks(seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(40)
    owners: list[list[int]] = []
    published = 0
    for _ in range(600):
        action = rng.choice(["allocate", "allocate", "share", "release", "release", "publish", "find"])
        if action == "allocate":
            count = rng.randint(0, min(9, pool.available))
            after = rng.choice(owners)[-1] if owners and rng.random() < 0.5 else None
            blocks = pool.allocate(count, after)
            assert len(blocks) == len(set(blocks)) == count
            if blocks:
                owners.append(blocks)
        elif action == "share" and owners:
            owners.append(list(rng.choice(owners)))
            pool.share(owners[-1])
        elif action == "release" and owners:
            pool.release(owners.pop(rng.randrange(len(owners))))
        elif action == "publish" and owners:
            published += 1
            pool.publish(rng.choice(rng.choice(owners)), published.to_bytes(16, "big"))
        elif action == "find" and published:
            found = pool.find([rng.randint(1, published).to_bytes(16, "big")])
            if found:
                pool.share(found)
                owners.append(found)
        pool.check_integrity(owners)
    for blocks in owners:
        pool.release(blocks)
    pool.check_integrity([])
    assert pool.available == pool.total
    pool.forget_idle()
    pool.check_integrity([])
    assert sorted(pool.allocate(40)) == list(range(40))


def test_integrity_check_sees_a_leak_and_a_double_count() -> None:
    pool = BlockPool(8)
    blocks = pool.allocate(3)
    with pytest.raises(AssertionError, match="owners, references"):
        pool.check_integrity([])
    with pytest.raises(AssertionError, match="owners, references"):
        pool.check_integrity([blocks, blocks])
    pool._free_count += 1
    with pytest.raises(AssertionError, match="free map has 5, counter says 6"):
        pool.check_integrity([blocks])


def test_allocation_is_contiguous_and_continues_a_sequence() -> None:
    pool = BlockPool(16)
    first, hole, last = pool.allocate(4), pool.allocate(2), pool.allocate(4)
    pool.release(hole)
    assert pool.allocate(6) == list(range(10, 16)), "a long run, not the hole first"
    assert pool.allocate(1, after=first[-1]) == [4]
    pool.release(last)
    assert pool.allocate(5, after=4) == [5, 6, 7, 8, 9]


def test_allocation_falls_back_to_the_longest_runs() -> None:
    pool = BlockPool(10)
    held = pool.allocate(10)
    for block in (0, 1, 2, 5, 7, 8):
        pool.release([held[block]])
    assert pool.allocate(5) == [0, 1, 2, 7, 8]


def test_prefixes_are_found_until_evicted_from_their_end() -> None:
    pool = BlockPool(4)
    digests = digests_of(list(range(3 * BLOCK_TOKENS + 5)))
    assert len(digests) == 3
    blocks = pool.allocate(3)
    for block, digest in zip(blocks, digests, strict=True):
        pool.publish(block, digest)
    pool.release(blocks)
    assert pool.find(digests) == blocks
    assert pool.available == 4
    pool.allocate(2)  # one free, one evicted
    assert pool.find(digests) == blocks[:2], "the end of the chain goes first"


def test_digests_depend_on_everything_before() -> None:
    a = list(range(2 * BLOCK_TOKENS))
    b = [7, *a[1:]]
    assert digests_of(a)[0] != digests_of(b)[0]
    assert digests_of(a)[1] != digests_of(b)[1], "equal second blocks with another past are not equal"
    assert digests_of([*a, 1])[:2] == digests_of(a)


def test_runs_join_neighbours_and_stop_at_the_length() -> None:
    t = BLOCK_TOKENS
    assert runs_of([3, 4, 5], 3 * t) == [(3 * t, 3 * t)]
    assert runs_of([3, 4, 9, 1, 2], 4 * t + 10) == [(3 * t, 2 * t), (9 * t, t), (t, t + 10)]
    assert runs_of([0, 5], 1) == [(0, 1)]
    assert runs_of([0, 1, 2], t) == [(0, t)], "reserved blocks without tokens are no run"
    assert runs_of([4], 0) == []
    assert [blocks_for(n) for n in (0, 1, t, t + 1)] == [0, 1, 1, 2]


def test_the_block_after_a_prefix_is_found_by_its_first_pages() -> None:
    pool = BlockPool(4)
    root, left, right = pool.allocate(3)
    pool.publish(root, b"r", b"", range(128))
    pool.publish(left, b"l", b"r", [*range(40), *range(1000, 1088)])
    pool.publish(right, b"m", b"r", [*range(50), *range(2000, 2078)])
    assert pool.continuing(b"r", range(51)) == (right, 48), "whole pages of eight tokens"
    assert pool.continuing(b"r", [*range(40), *range(1000, 1008)]) == (left, 48)
    assert pool.continuing(b"r", [*range(7), 9]) == (-1, 0)
    assert pool.continuing(b"unknown", range(45)) == (-1, 0)
    pool.release([root, left, right])
    pool.allocate(4)  # evicts all
    pool.check_integrity()
    assert pool.continuing(b"r", range(45)) == (-1, 0)
