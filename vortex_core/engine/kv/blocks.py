"""Who owns which block of the KV pool.

A block is 128 tokens, a multiple of every legal page size, so the page table of any flow follows from the
block table and a flow with another page size needs no KV copied. Pure bookkeeping: no tensors here.

A block is in one of three places: *free*; *referenced* by one or more owners; or *idle*, referenced by nobody
but kept because its content is known (a prefix some later prompt may share) until the space is needed.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from vortex_core.ir.knobs import PAGE_SIZES

BLOCK_TOKENS = 128
assert all(BLOCK_TOKENS % size == 0 for size in PAGE_SIZES)


def blocks_for(tokens: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // BLOCK_TOKENS)


class BlockPool:
    """Reference-counted blocks with a content index.

    Allocation prefers one contiguous run (first fit), and one that continues a given block: a sequence in one
    run is a plain slice of the pool, which dense attention reads without a gather.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._references = [0] * total
        self._free = bytearray(b"\x01" * total)  # bytes, because a run of free blocks is then a substring
        self._free_count = total
        self._idle: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        # The radix tree's edges: blocks that continue a prefix, by its digest, with their tokens.
        self._children: dict[bytes, dict[int, array[int]]] = {}
        self._parent_of: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """Blocks that an allocation could get: free ones, and idle ones it would evict."""
        return self._free_count + len(self._idle)

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Take `count` blocks with one reference each; `after`: continue that block where possible.

        The caller has checked `available`.
        """
        assert 0 <= count <= self.available, f"{count} blocks asked, {self.available} available"
        while self._free_count < count:
            self._evict()
        blocks: list[int] = []
        last = after
        while len(blocks) < count:
            start, length = self._free_run(count - len(blocks), None if last is None else last + 1)
            run = range(start, start + length)
            self._free[start : start + length] = bytes(length)
            blocks += run
            last = run[-1]
        for block in blocks:
            assert not self._references[block], block
            self._references[block] = 1
        self._free_count -= count
        return blocks

    def _free_run(self, count: int, preferred: int | None) -> tuple[int, int]:
        """First block and length (at most `count`) of a free run: the one that starts at `preferred`, else
        the first that is long enough, else the longest."""
        if preferred is not None and preferred < self.total and self._free[preferred]:
            end = self._free.find(0, preferred, preferred + count)
            return preferred, (end if end >= 0 else min(preferred + count, self.total)) - preferred
        start = self._free.find(b"\x01" * count)
        if start >= 0:
            return start, count
        longest = max(bytes(self._free).split(b"\x00"), key=len)
        return self._free.find(longest), len(longest)

    def share(self, blocks: Iterable[int]) -> None:
        """One more owner for each block, which must be referenced or idle."""
        for block in blocks:
            assert self._references[block] or block in self._idle, f"block {block} is free"
            self._idle.pop(block, None)
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One owner fewer. Blocks of known content become idle, the others free."""
        # Backwards, so that the end of a prefix is evicted before what it continues.
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} released more often than taken"
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._digest_of:
                self._idle[block] = None
            else:
                self._free[block] = 1
                self._free_count += 1

    def publish(self, block: int, digest: bytes, parent: bytes = b"", token_ids: Sequence[int] = ()) -> None:
        """Make a full, referenced block findable by the digest of everything up to its end.

        Where another block already has that content, it stays the one that is found.

        Args:
            parent: digest of everything before the block, under which `continuing` finds it by its `token_ids`.
        """
        assert self._references[block] > 0, block
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest
            self._parent_of[block] = parent
            self._children.setdefault(parent, {})[block] = array("q", token_ids)

    def continuing(self, parent: bytes, token_ids: Sequence[int]) -> tuple[int, int]:
        """The known block after a prefix that begins with most of `token_ids`, and how many tokens they share.

        Whole pages of the smallest size are counted; `(-1, 0)` where no block shares one.
        """
        best = (-1, 0)
        wanted = array("q", token_ids)
        for block, known in self._children.get(parent, {}).items():
            longest = min(len(known), len(wanted))
            same = next((i for i in range(longest) if known[i] != wanted[i]), longest)
            same -= same % min(PAGE_SIZES)
            if same > best[1]:
                best = (block, same)
        return best

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """Blocks of the longest known prefix of a chain of digests."""
        found: list[int] = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def forget_idle(self) -> None:
        """Evict everything that nobody references."""
        while self._idle:
            self._evict()

    def _evict(self) -> None:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._digest_of.pop(block)]
        parent = self._parent_of.pop(block)
        del self._children[parent][block]
        if not self._children[parent]:
            del self._children[parent]
        self._free[block] = 1
        self._free_count += 1

    def check_integrity(self, owners: Iterable[Sequence[int]] | None = None) -> None:
        """Assert conservation: free + idle + referenced = total, and the content index agrees.

        Args:
            owners: the block lists of everyone who holds references; then each count must match exactly.
        """
        referenced = sum(1 for count in self._references if count)
        free = sum(self._free)
        assert free == self._free_count, f"free map has {free}, counter says {self._free_count}"
        assert free + len(self._idle) + referenced == self.total, (
            f"free {free} + idle {len(self._idle)} + referenced {referenced} != total {self.total}"
        )
        assert not any(self._free[b] or self._references[b] for b in self._idle), (
            "an idle block has another state"
        )
        assert {b: d for d, b in self._block_of.items()} == self._digest_of, "content index is not one-to-one"
        assert not any(self._free[b] for b in self._digest_of), "a free block is in the content index"
        edges = {(parent, b) for parent, children in self._children.items() for b in children}
        assert edges == {(parent, b) for b, parent in self._parent_of.items()}, "the tree has lost an edge"
        assert self._parent_of.keys() == self._digest_of.keys(), "the tree and the index differ"
        if owners is not None:
            held = Counter(block for blocks in owners for block in blocks)
            wrong = {b: (held[b], n) for b, n in enumerate(self._references) if held[b] != n}
            assert not wrong, f"blocks with (owners, references): {wrong}"


def runs_of(blocks: Sequence[int], tokens: int) -> list[tuple[int, int]]:
    """`(first slot, tokens)` of each contiguous stretch of the first `tokens` tokens of a sequence."""
    runs: list[tuple[int, int]] = []
    start = previous = -2
    for block in blocks[: blocks_for(tokens)]:
        if block != previous + 1:
            runs.append((block * BLOCK_TOKENS, 0))
            start = block
        runs[-1] = (start * BLOCK_TOKENS, (block + 1 - start) * BLOCK_TOKENS)
        previous = block
    if runs:
        excess = blocks_for(tokens) * BLOCK_TOKENS - tokens
        runs[-1] = (runs[-1][0], runs[-1][1] - excess)
    return runs


def digests_of(token_ids: Sequence[int]) -> list[bytes]:
    """Digest of every full block with all before it: equal digests, equal keys and values."""
    chain: list[bytes] = []
    previous = b""
    for end in range(BLOCK_TOKENS, len(token_ids) + 1, BLOCK_TOKENS):
        block = array("q", token_ids[end - BLOCK_TOKENS : end]).tobytes()
        previous = blake2b(previous + block, digest_size=16).digest()
        chain.append(previous)
    return chain
