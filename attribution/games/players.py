"""Players: who plays in one query's game, and who gets what a player earns.

A player is everything that is there on one owner's account: a contributor's documents together, and near-duplicates
together, whoever brought them. A group of near-duplicates plays as one text, and what it earns goes by evidence: to
the member that was registered first; to all that were, in equal parts, where several were first or none has a date.
The splits of a document come last, and only divide what it earned.

What two texts have in common is for others to say; this module takes their relation as given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Relation = Callable[[int, int], bool]
"""``relation(i, j)`` says whether text ``i`` is a near-duplicate of text ``j``, or of a part of it."""


@dataclass(frozen=True, slots=True)
class Group:
    """Near-duplicates that play as one. Members are indexes into what was grouped."""

    original: int
    members: tuple[int, ...]
    """In the order of registration; the original comes first."""
    earners: tuple[int, ...]
    """Those of the members that no evidence puts after another."""


def groups(relation: Relation, registered: Sequence[int | None], ids: Sequence[str]) -> list[Group]:
    """Near-duplicates put together, each text with the earliest text that it repeats.

    Texts come in the order of registration, those without a date last, ties by id. A text joins the first group whose
    original it repeats, or begins one. Only originals are joined: likeness does not chain, so a text that is made
    like two others does not make the two one. Between texts of one date, either may be the one that repeats.

    Args:
        relation: which text repeats which; asked only of a text and the originals before it.
        registered: when each was registered, in any unit, or None where no one says.
        ids: distinct names, so that the order in which the texts are given does not matter.

    Raises:
        ValueError: there are not as many dates as ids, or an id comes twice.
    """
    count = len(ids)
    if len(registered) != count or len(set(ids)) != count:
        raise ValueError("a date and an id of its own is needed for each text")
    members: dict[int, list[int]] = {}
    for i in sorted(range(count), key=lambda i: (registered[i] is None, registered[i] or 0, ids[i])):
        for original, those in members.items():
            if relation(i, original) or (registered[i] == registered[original] and relation(original, i)):
                those.append(i)
                break
        else:
            members[i] = [i]
    return [
        Group(original, tuple(those), tuple(i for i in those if registered[i] == registered[original]))
        for original, those in members.items()
    ]


def paid(grouped: Sequence[Group], earned: Sequence[float]) -> list[float]:
    """Each text's part of what the groups earned; the sum stays the same."""
    result = [0.0] * sum(len(group.members) for group in grouped)
    for group, credit in zip(grouped, earned, strict=True):
        for i in group.earners:
            result[i] = credit / len(group.earners)
    return result
