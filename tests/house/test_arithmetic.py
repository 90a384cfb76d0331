"""A rule of the house: what decides is computed neither by a BLAS nor by a library's exponentials and logarithms.

Their results depend on the processor: see ``docs/adr/0026-sums-that-decide.md``.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

from tests.house.test_rules import SOURCES, name

SUMS = {"dot", "vdot", "inner", "matmul", "tensordot", "einsum", "norm", "lstsq", "mean", "std", "var", "average"}
FUNCTIONS = {"exp", "expm1", "exp2", "log", "log1p", "log2", "log10", "logaddexp", "tanh"}
ALLOWED = {
    "attribution/agreement.py linear_datamodeling_score @": "integers",
    "attribution/agreement.py _cosine @": "integers, twice",
    "attribution/games/estimation.py _fitted @": "integers",
    "attribution/games/semivalues.py from_tables @": "integers",
    "attribution/games/shapley.py owen_values @": "integers",
    "attribution/value_functions/support.py _point_evidence @": "integers, twice",
    "retrieval/dense_index.py _proposed @": "proposes rows, and decides nothing",
    "retrieval/similarity.py cosines einsum": "exact, as the module says",
}


def test_what_decides_has_one_order():
    """A second one in the same function is another one."""
    found = Counter(each for path in SOURCES for each in used(ast.parse(path.read_text()), f"{name(path)} -"))
    assert found == Counter({each: 2 if "twice" in why else 1 for each, why in ALLOWED.items()})


def used(node: ast.AST, place: str) -> Iterator[str]:
    """What is computed by such a library in a node, with the function that it stands in."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        place = f"{place.split(maxsplit=1)[0]} {node.name}"
    if called := library_sum(node):
        yield f"{place} {called}"
    for child in ast.iter_child_nodes(node):
        yield from used(child, place)


def library_sum(node: ast.AST) -> str:
    """What a node computes by a library that asks the processor how, or nothing."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        return "@"
    if isinstance(node, ast.Call):
        match node.func:
            case ast.Attribute(attr=called) if called in SUMS:
                return called
            case ast.Attribute(value=ast.Name(id="np" | "math"), attr=called) if called in FUNCTIONS:
                return called
            case ast.Name(id=called) if called in SUMS | FUNCTIONS:
                return called
    return ""
