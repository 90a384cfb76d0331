"""A rule of the house: what decides is computed neither by a BLAS nor by a library's exponentials and logarithms.

Their results depend on the processor: see ``docs/adr/0026-sums-that-decide.md``.
"""

from __future__ import annotations

import ast

from tests.house.test_rules import SOURCES, name

SUMS = {"dot", "vdot", "inner", "matmul", "tensordot", "einsum", "norm", "lstsq", "mean", "std", "var", "average"}
FUNCTIONS = {"exp", "expm1", "exp2", "log", "log1p", "log2", "log10", "logaddexp", "tanh"}
ALLOWED = {
    "attribution/agreement.py linear_datamodeling_score @": "integers",
    "attribution/agreement.py _cosine @": "integers",
    "attribution/games/estimation.py _fitted @": "integers",
    "attribution/games/semivalues.py from_tables @": "integers",
    "attribution/games/shapley.py owen_values @": "integers",
    "attribution/value_functions/support.py _point_evidence @": "integers",
    "retrieval/dense_index.py _proposed @": "proposes rows, and decides nothing",
    "retrieval/similarity.py cosines einsum": "exact, as the module says",
}


def test_what_decides_has_one_order():
    found = set()
    for path in SOURCES:
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                used = {f"{name(path)} {function.name} {each}" for each in map(library_sum, ast.walk(function)) if each}
                found |= used
    assert found == set(ALLOWED)


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
