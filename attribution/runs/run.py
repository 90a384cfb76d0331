"""The attribution of usage records: what each document's use in each query gives to whom, in units.

A record is divided by itself, so records can be divided in any partition and order. They come in columns, and go
through numpy together: a record costs microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.games.shapley import Unions, unions_of
from attribution.games.values import TABLE_PLAYERS_MAX
from attribution.runs.adopted import NEW_RUNS, ROUNDINGS, SOLVERS, Rounding, Rules, Solver
from metering.records import PPM, VALUE_ONE, UsageRecord

Ints = npt.NDArray[np.int64]
_PATTERN_BITS = 4


class RunError(ValueError):
    """A record that cannot be attributed; the message names it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The columns of ``n`` usage records that their division takes.

    Lists inside a record lie one record's after the other's, with ``n + 1`` offsets that say where each begins.
    """

    ids: Sequence[str]
    leaves: Sequence[bytes]
    royalties: Ints
    values: Ints
    value_offsets: Ints
    owners: Ints
    """For each use, a number that stands for who owns the document in the query's game."""
    use_offsets: Ints
    ppm: Ints
    """For each split of each use."""
    split_offsets: Ints
    """Where the splits of each use begin."""

    @classmethod
    def of(cls, records: Sequence[UsageRecord]) -> Batch:
        """The columns of records."""
        numbers: dict[str, int] = {}
        uses = [use for record in records for use in record.uses]
        return cls(
            ids=[record.id for record in records],
            leaves=[record.leaf() for record in records],
            royalties=np.asarray([record.royalty for record in records], np.int64),
            values=np.asarray([value for record in records for value in record.values], np.int64),
            value_offsets=_offsets([len(record.values) for record in records]),
            owners=np.asarray([numbers.setdefault(use.contributor, len(numbers)) for use in uses], np.int64),
            use_offsets=_offsets([len(record.uses) for record in records]),
            ppm=np.asarray([split.ppm for use in uses for split in use.splits], np.int64),
            split_offsets=_offsets([len(use.splits) for use in uses]),
        )


@dataclass(frozen=True, slots=True)
class Division:
    """A batch divided. A record's units, signed, sum to what its documents earned; its residual is the rest."""

    units: Ints
    """For each split of each use, in the order of the batch."""
    earned: Ints
    """For each record."""


def divide(batch: Batch, rules: Rules = NEW_RUNS) -> Division:
    """Divide the royalty of each record among its documents and the model, exactly.

    A document's exact part of the royalty is its Owen value times its splits, and the model's is what they leave: with
    values between 0 and 1 that is ``1 - (v(all) - v(none))``. Both may be negative under a value function that finds
    documents which harm. Parts become units by :func:`attribution.apportionment.apportion`, the residual as the last.
    Both are done as ``rules`` say.

    Raises:
        RunError: a record's game is not a table over its documents.
    """
    numerators = np.zeros(len(batch.owners), np.int64)
    players, denominators = np.zeros(len(batch.ids), np.int64), np.ones(len(batch.ids), np.int64)
    rounding = ROUNDINGS[rules.rounding]
    for rows, weights, denominator in _solved(batch, SOLVERS[rules.solver]):
        players[rows], denominators[rows] = weights.shape[1], denominator
        numerators[(batch.use_offsets[rows][:, None] + np.arange(weights.shape[1])).ravel()] = weights.ravel()
    # The cells of a record are the splits of its players, which come first among its uses.
    starts = batch.split_offsets[batch.use_offsets]
    lengths = batch.split_offsets[batch.use_offsets[:-1] + players] - starts[:-1]
    cells = _ranges(starts[:-1], lengths)
    of_split = np.repeat(numerators, np.diff(batch.split_offsets))
    line = _Line(batch, of_split, starts, lengths, denominators, rounding)
    units = np.zeros(len(batch.ppm), np.int64)
    units[cells] = rounding.many(
        batch.royalties,
        lengths,
        of_split[cells]
        * batch.ppm[cells].astype(np.float64)
        / np.repeat(denominators * float(VALUE_ONE * PPM), lengths),
        batch.leaves,
        line.exactly,
    )
    reached = np.concatenate([np.zeros(1, np.int64), np.cumsum(units)])
    return Division(units, reached[starts[1:]] - reached[starts[:-1]])


@dataclass(frozen=True, slots=True)
class _Line:
    """The lines of records, to be split by integers where floats cannot tell."""

    batch: Batch
    numerators: Ints
    """For each split."""
    starts: Ints
    lengths: Ints
    denominators: Ints
    rounding: Rounding

    def exactly(self, row: int) -> list[int]:
        cells = slice(self.starts[row], self.starts[row] + self.lengths[row])
        parts = zip(self.numerators[cells].tolist(), self.batch.ppm[cells].tolist(), strict=True)
        weights = [numerator * ppm for numerator, ppm in parts]
        weights.append(int(self.denominators[row]) * VALUE_ONE * PPM - sum(weights))
        return self.rounding.one(int(self.batch.royalties[row]), weights, self.batch.leaves[row])[:-1]


def shares(record: UsageRecord) -> tuple[list[float], float]:
    """Each document's share of the query's value and the model residual; together they sum to 1."""
    weights, whole = owen_shares(record)
    found = [weight / whole for weight in weights]
    found += [0.0] * (len(record.uses) - len(found))
    return found, 1.0 - (record.values[-1] - record.values[0]) / VALUE_ONE


def owen_shares(record: UsageRecord, rules: Rules = NEW_RUNS) -> tuple[list[int], int]:
    """Numerators of the Owen values of a record's players, and the denominator that makes the whole royalty 1.

    Raises:
        RunError: the record's game is not a table over its documents.
    """
    players = len(record.values).bit_length() - 1
    if len(record.values) != 1 << max(players, 0) or players > min(TABLE_PLAYERS_MAX, len(record.uses)):
        raise _unfit(record.id, len(record.values), len(record.uses))
    unions = unions_of([use.contributor for use in record.uses[:players]])
    weights, denominator = SOLVERS[rules.solver](np.asarray([record.values], np.int64), unions)
    return weights[0].tolist(), denominator * VALUE_ONE


def _unfit(record: str, values: int, uses: int) -> RunError:
    return RunError(f"record {record}: {values} values do not fit {uses} documents")


def _solved(batch: Batch, solver: Solver) -> Iterator[tuple[Ints, Ints, int]]:
    """Records with games of the same structure together: their rows, their players' numerators, the denominator."""
    for rows, unions in _alike(batch):
        size = 1 << len(unions)
        tables = batch.values[batch.value_offsets[rows][:, None] + np.arange(size)]
        yield rows, *solver(tables, unions)


def _alike(batch: Batch) -> Iterator[tuple[Ints, Unions]]:
    """The rows of records whose players stand in the same unions, and these."""
    sizes = np.diff(batch.value_offsets)
    uses = np.diff(batch.use_offsets)
    for size in np.unique(sizes).tolist():
        players = size.bit_length() - 1
        rows = np.flatnonzero(sizes == size)
        if size != 1 << max(players, 0) or players > TABLE_PLAYERS_MAX or (uses[rows] < players).any():
            row = int(rows[np.argmin(uses[rows])])
            raise _unfit(batch.ids[row], size, int(uses[row]))
        owners = batch.owners[batch.use_offsets[rows][:, None] + np.arange(players)]
        # For each player the first of the same owner: equal rows are equal unions, whoever the owners are.
        first = np.argmax(owners[:, :, None] == owners[:, None, :], axis=1) if players else owners
        codes = (first << (_PATTERN_BITS * np.arange(players))).sum(axis=1, dtype=np.int64)
        for code in np.unique(codes).tolist():
            members = codes == code
            pattern = first[np.argmax(members)].tolist()
            yield rows[members], unions_of([str(each) for each in pattern])


def _ranges(starts: Ints, counts: Ints) -> Ints:
    """``starts[0], starts[0] + 1, ...``: ``counts[i]`` numbers from each ``starts[i]``."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


def _offsets(lengths: Sequence[int]) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)
