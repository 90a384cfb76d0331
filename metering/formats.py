"""Format numbers: what is stored says which rules it was written by, and is read by those rules for ever.

A record, segment, manifest, statement, price book, policy or terms of format ``n`` keeps its bytes, its hashes and its
meaning whatever later formats add. What was stored before formats were written down has format 1.
"""

from __future__ import annotations


class UnknownFormat(ValueError):
    """Written by a newer version of the program; the message says what, and what to do."""


def check(what: str, found: object, newest: int) -> None:
    """Refuse what this version does not know how to read.

    Args:
        what: names the thing in the message.
        found: the format that it says it has.
        newest: the last format that this version knows; it knows all before it.

    Raises:
        UnknownFormat: it is not one of them.
    """
    if type(found) is not int or not 1 <= found <= newest:
        known = "format 1" if newest == 1 else f"formats 1 to {newest}"
        raise UnknownFormat(f"{what} has format {str(found)[:20]}, this version knows {known}: upgrade Patronage")
