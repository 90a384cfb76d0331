"""Merkle trees as in RFC 6962 (and RFC 9162), over SHA-256.

Leaves and nodes are hashed with different prefixes, so that a node can never pass for a leaf.
All hashes are 32 raw bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_LEAF = b"\x00"
_NODE = b"\x01"

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """The hash of one leaf's content."""
    return hashlib.sha256(_LEAF + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(_NODE + left + right).digest()


class Tree:
    """A tree over leaf hashes, in order; every level is kept, so each proof costs its length.

    Pairing neighbours level by level and promoting an odd last node gives the tree of RFC 6962,
    section 2.1, whose left subtree is the largest power of two below n.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            self._levels.append(_parents(self._levels[-1]))

    def __len__(self) -> int:
        """The number of leaves."""
        return len(self._levels[0])

    @property
    def root(self) -> bytes:
        """The root; the hash of nothing for an empty tree."""
        return self._levels[-1][0] if self._levels[0] else EMPTY_ROOT

    def inclusion_proof(self, index: int) -> list[bytes]:
        """The audit path of leaf ``index``, from the leaf's sibling up to below the root.

        Raises:
            IndexError: ``index`` is not in the tree.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"leaf {index} is not in a tree of {len(self)}")
        path: list[bytes] = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                path.append(level[sibling])
            index >>= 1
        return path

    def consistency_proof(self, size: int) -> list[bytes]:
        """The proof that this tree only adds leaves to the one that its first ``size`` leaves make.

        RFC 6962, section 2.1.2; empty where the trees are the same, or ``size`` is 0.

        Raises:
            IndexError: this tree has fewer leaves.
        """
        if not 0 <= size <= len(self):
            raise IndexError(f"a tree of {len(self)} leaves cannot be compared with one of {size}")
        if size == 0:
            return []
        path: list[bytes] = []
        begin, end = 0, len(self)
        while size != end:
            split = begin + (1 << (end - begin - 1).bit_length() - 1)
            if size <= split:
                path.append(self._node(split, end))
                end = split
            else:
                path.append(self._node(begin, split))
                begin = split
        if begin:
            path.append(self._node(begin, end))
        return path[::-1]

    def _node(self, begin: int, end: int) -> bytes:
        """The root over leaves ``begin`` to ``end``: a power of two of them, or those up to the last."""
        level = (end - begin - 1).bit_length()
        return self._levels[level][begin >> level]


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], expected_root: bytes) -> bool:
    """Whether ``path`` proves that ``leaf`` is at ``index`` of the tree of ``size`` leaves.

    The algorithm of RFC 9162, section 2.1.3.2.
    """
    if not 0 <= index < size:
        return False
    position, last = index, size - 1
    current = leaf
    for sibling in path:
        if last == 0:
            return False
        if position & 1 or position == last:
            current = node_hash(sibling, current)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            current = node_hash(current, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and current == expected_root


def verify_consistency(first: int, first_root: bytes, second: int, second_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether ``path`` proves that the tree of ``second`` leaves begins with the tree of ``first`` leaves.

    The algorithm of RFC 9162, section 2.1.4.2. Every tree begins with the empty one.
    """
    if first in (0, second):
        known = EMPTY_ROOT if first == 0 else second_root
        return first <= second and not path and first_root == known
    if not 0 < first < second or not path:
        return False
    nodes = [first_root, *path] if first & (first - 1) == 0 else list(path)
    position, last = first - 1, second - 1
    while position & 1:
        position >>= 1
        last >>= 1
    old = new = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old, new = node_hash(node, old), node_hash(node, new)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            new = node_hash(new, node)
        position >>= 1
        last >>= 1
    return last == 0 and (old, new) == (first_root, second_root)


def _parents(level: list[bytes]) -> list[bytes]:
    paired = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    if len(level) % 2:
        paired.append(level[-1])
    return paired
