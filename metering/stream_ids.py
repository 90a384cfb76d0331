"""Ids of the entries of a Redis stream, ``MILLISECONDS-SEQUENCE``: the order of captures in a shard."""

from __future__ import annotations

from typing import Final

BEFORE_ALL: Final = "0-0"
"""The mark of a shard of which nothing is registered."""


def order(stream_id: str) -> tuple[int, int]:
    """The sort key of an id: milliseconds, then sequence."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence)


def following(stream_id: str) -> str:
    """The least id after this one."""
    milliseconds, sequence = order(stream_id)
    return f"{milliseconds}-{sequence + 1}"
