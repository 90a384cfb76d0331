"""How many values the JSON of a request has, without reading it."""

from __future__ import annotations

import importlib
import json
import pkgutil
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from hypothesis import example, given
from hypothesis import strategies as st

import serving.api
from serving.api.bodies import VALUES_MAX, BoundedRoute, is_above

TEXTS = st.text(alphabet=st.sampled_from('"\\,[{}]: aé\U0001f600\n'))
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=30,
)
OPERATORS_LISTS = {"/v1/admin/prices"}
"""Long, and theirs."""


def count(value: Any) -> int:
    """What opens, and what separates."""
    if not isinstance(value, dict | list):
        return 0
    inner = list(value.values()) if isinstance(value, dict) else value
    return max(1, len(inner)) + sum(map(count, inner))


@given(value=VALUES, ascii_only=st.booleans())
@example(value=['\\","', "\\\\", '\\"'], ascii_only=False)
def test_values_are_counted_as_they_are_read(*, value: Any, ascii_only: bool):
    text = json.dumps(value, ensure_ascii=ascii_only)
    values = max(1, count(value))
    assert not is_above(text, values)
    assert values == 1 or is_above(text, values - 1)


@pytest.mark.parametrize("item", ["1", "[]", "{}", '"a"', '""', r'"\\"', r'"\","', '{"a":1}'])
def test_the_limit_is_where_it_is(item: str):
    assert not is_above("[" + ",".join([item] * (VALUES_MAX // 2 - 1)) + "]")
    assert is_above("[" + ",".join([item] * (VALUES_MAX + 1)) + "]")


@pytest.mark.parametrize("text", ["a, b, c. " * 500_000, "[{" * 500_000, '"' * 1_000_000, "\\" * 1_000_001])
def test_what_is_in_a_text_does_not_count(text: str):
    assert not is_above(json.dumps({"input": [text]}))


def test_every_body_that_is_read_for_a_route_has_the_limit():
    routers = (getattr(importlib.import_module(f"serving.api.{each.name}"), "router", None)
               for each in pkgutil.iter_modules(serving.api.__path__))  # fmt: skip
    routes = [route for router in routers if isinstance(router, APIRouter) for route in router.routes]
    read = [route for route in routes if isinstance(route, APIRoute) and route.body_field is not None]
    assert {route.path for route in read if not isinstance(route, BoundedRoute)} == OPERATORS_LISTS
    assert len(read) > 15
