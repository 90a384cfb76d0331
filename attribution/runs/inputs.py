"""The input of a run as a tree of trees: hours of records, and records by id in each hour.

An hour's tree has its records' leaves in the order of their ids, and the run's tree has a leaf for each hour that has
records. What an hour's tree is depends on its records alone, so a record that comes in changes one hour of a month,
and the rest is not computed again. A record is proved in its hour, and the hour in the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from metering import merkle
from metering.periods import hour_name

TREE: Final = "hours/1"


class Hour(NamedTuple):
    """The records of one hour."""

    hour: int
    """Hours since the epoch, by when the answer was complete."""
    records: int
    root: bytes

    def leaf(self) -> bytes:
        """The hour's leaf in the run's tree."""
        return merkle.leaf_hash(f"{hour_name(self.hour)} {self.records} {self.root.hex()}".encode())


def input_tree(hours: Iterable[Hour]) -> merkle.Tree:
    """The run's tree, over its hours in order."""
    return merkle.Tree([each.leaf() for each in sorted(hours)])
