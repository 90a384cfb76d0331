"""Merkle trees: RFC 6962's own vectors, and no proof for what is not there."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering import merkle

# The reference inputs and roots of the RFC's test suite (certificate-transparency, merkletree tests).
VECTORS = [
    b"", b"\x00", b"\x10", b"\x20\x21", b"\x30\x31", b"\x40\x41\x42\x43",
    b"\x50\x51\x52\x53\x54\x55\x56\x57", b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]

leaves = st.lists(st.binary(max_size=8).map(merkle.leaf_hash), min_size=1, max_size=40)


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_the_rfc(size):
    assert merkle.Tree([merkle.leaf_hash(each) for each in VECTORS[:size]]).root.hex() == ROOTS[size - 1]


def test_the_empty_tree_has_the_hash_of_nothing():
    assert merkle.Tree([]).root == hashlib.sha256(b"").digest()


@given(leaves, st.data())
def test_every_leaf_is_provable(hashes, data):
    index = data.draw(st.integers(0, len(hashes) - 1))
    tree = merkle.Tree(hashes)
    path = tree.inclusion_proof(index)
    assert merkle.verify_inclusion(hashes[index], index, len(hashes), path, tree.root)


@given(leaves, st.data())
def test_a_proof_proves_nothing_else(hashes, data):
    index = data.draw(st.integers(0, len(hashes) - 1))
    tree = merkle.Tree(hashes)
    path, root = tree.inclusion_proof(index), tree.root
    other = merkle.leaf_hash(b"not in the tree")
    assert not merkle.verify_inclusion(other, index, len(hashes), path, root)
    assert not merkle.verify_inclusion(hashes[index], index, len(hashes), [*path, other], root)
    assert not merkle.verify_inclusion(hashes[index], len(hashes), len(hashes), path, root)
    if path:
        assert not merkle.verify_inclusion(hashes[index], index, len(hashes), path[:-1], root)
        assert not merkle.verify_inclusion(hashes[index], index, len(hashes), [other, *path[1:]], root)
    wrong = data.draw(st.integers(0, len(hashes) - 1))
    if hashes[wrong] != hashes[index]:
        assert not merkle.verify_inclusion(hashes[wrong], index, len(hashes), path, root)


@given(leaves, st.data())
def test_a_tree_is_provably_the_beginning_of_what_it_grew_into(hashes, data):
    size = data.draw(st.integers(0, len(hashes)))
    new, old = merkle.Tree(hashes), merkle.Tree(hashes[:size])
    path = new.consistency_proof(size)
    assert merkle.verify_consistency(size, old.root, len(hashes), new.root, path)
    assert len(path) <= 2 * len(hashes).bit_length()


@given(leaves, st.data())
def test_a_rewritten_tree_is_no_continuation(hashes, data):
    """Whoever changes a leaf that was there has no proof: not the honest one, nor one with a node changed."""
    size = data.draw(st.integers(1, len(hashes)))
    changed = data.draw(st.integers(0, size - 1))
    other = merkle.leaf_hash(b"not in the tree")
    forged = merkle.Tree([*hashes[:changed], other, *hashes[changed + 1 :]])
    old = merkle.Tree(hashes[:size]).root
    path = forged.consistency_proof(size)
    assert not merkle.verify_consistency(size, old, len(hashes), forged.root, path)
    for place in range(len(path)):
        wrong = [*path[:place], other, *path[place + 1 :]]
        assert not merkle.verify_consistency(size, old, len(hashes), forged.root, wrong)


@given(leaves, st.data())
def test_a_proof_of_consistency_holds_for_nothing_else(hashes, data):
    size = data.draw(st.integers(1, len(hashes)))
    new, old = merkle.Tree(hashes), merkle.Tree(hashes[:size])
    path, many = new.consistency_proof(size), len(hashes)
    assert not merkle.verify_consistency(size, old.root, many, new.root, [*path, old.root])
    if path:
        assert not merkle.verify_consistency(size, old.root, many, new.root, path[:-1])
        assert not merkle.verify_consistency(size - 1, old.root, many, new.root, path)
    assert not merkle.verify_consistency(many + 1, old.root, many, new.root, path)
    assert not merkle.verify_consistency(0, old.root, many, new.root, [])
    with pytest.raises(IndexError):
        new.consistency_proof(many + 1)


@given(leaves)
def test_the_root_is_that_of_the_recursive_definition(hashes):
    def recursive(part):
        if len(part) == 1:
            return part[0]
        split = 1 << (len(part) - 1).bit_length() - 1
        return merkle.node_hash(recursive(part[:split]), recursive(part[split:]))

    assert merkle.Tree(hashes).root == recursive(hashes)
