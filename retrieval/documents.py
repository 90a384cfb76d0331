"""Documents as contributors bring them, and the rules that a document must satisfy."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

TERMS_FORMAT: Final = 1
"""The format of terms: what of them says what is allowed."""
PPM: Final = 1_000_000
TEXT_CHARS_MAX: Final = 10_000_000
TITLE_CHARS_MAX: Final = 500
URL_CHARS_MAX: Final = 2_000
ID_CHARS_MAX: Final = 200
SPLITS_MAX: Final = 100
PURPOSES_MAX: Final = 32

_ID = re.compile(r"[^\s\x00-\x1f\x7f\"'<>\\]{1,200}")
_URL = re.compile(r"https?://[^\s/]", re.IGNORECASE)
_WORD = re.compile(r"[a-z0-9][a-z0-9_.:-]{0,63}", re.ASCII)


class DocumentError(ValueError):
    """A document that cannot be taken, with the reason in words that its contributor understands."""


class DocumentConflict(DocumentError):
    """A document that cannot be taken because of what is there: another's, or withdrawn."""


@dataclass(frozen=True, slots=True)
class SplitShare:
    """The share of a document's credit, in parts per million, that goes to a contributor in a role."""

    contributor: str
    role: str
    ppm: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What a contributor allows.

    ``purposes`` are those a query may have (``None``: any); ``floor`` is the least price, in units, of a query
    that may use the document.
    """

    purposes: tuple[str, ...] | None = None
    floor: int = 0
    format: int = TERMS_FORMAT


@dataclass(frozen=True, slots=True)
class Document:
    """One document as it is brought, before it is stored."""

    id: str
    title: str
    text: str
    contributor: str
    url: str | None = None
    splits: tuple[SplitShare, ...] = ()
    terms: Terms = Terms()

    @property
    def version(self) -> str:
        """SHA-256 of the text, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def effective_splits(self) -> tuple[SplitShare, ...]:
        """The splits, or all of it to the contributor as author."""
        return self.splits or (SplitShare(self.contributor, "author", PPM),)


def check_id(kind: str, value: str) -> str:
    """``value`` if it can be an id of a ``document``, or of a person of some other kind.

    Raises:
        DocumentError: it is empty, too long, or has characters that no id has. Only documents may have slashes.
    """
    if _ID.fullmatch(value) is None or value in (".", ".."):  # dot segments cannot be written in a URL
        raise DocumentError(
            f"{kind} id {value[:40]!r} must be 1 to {ID_CHARS_MAX} characters without spaces, quotes or <>\\"
        )
    _check_characters(f"{kind} id", value)
    if kind != "document" and "/" in value:
        raise DocumentError(f"{kind} id {value[:40]!r} must not have slashes")
    return value


def check(document: Document) -> Document:
    """``document`` if it can be taken.

    Raises:
        DocumentError: with the first thing that is wrong.
    """
    check_id("document", document.id)
    check_id("contributor", document.contributor)
    if not document.text.strip():
        raise DocumentError("the text is empty")
    if len(document.text) > TEXT_CHARS_MAX:
        raise DocumentError(f"the text has {len(document.text)} characters; the limit is {TEXT_CHARS_MAX}")
    if len(document.title) > TITLE_CHARS_MAX:
        raise DocumentError(f"the title has {len(document.title)} characters; the limit is {TITLE_CHARS_MAX}")
    for name, value in (("text", document.text), ("title", document.title), ("url", document.url or "")):
        _check_characters(name, value)
    if document.url is not None and (len(document.url) > URL_CHARS_MAX or _URL.match(document.url) is None):
        raise DocumentError("the url must be absolute and of the web, such as https://example.org/page")
    _check_splits(document.splits)
    check_terms(document.terms)
    return document


def _check_characters(name: str, value: str) -> None:
    if "\x00" in value:
        raise DocumentError(f"the {name} has NUL characters: it is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DocumentError(f"the {name} has unpaired surrogates: it is not valid Unicode") from None


def _check_splits(splits: tuple[SplitShare, ...]) -> None:
    if not splits:
        return
    if len(splits) > SPLITS_MAX:
        raise DocumentError(f"{len(splits)} splits; the limit is {SPLITS_MAX}")
    for split in splits:
        check_id("contributor", split.contributor)
        if _WORD.fullmatch(split.role) is None:
            raise DocumentError(f"role {split.role[:40]!r} must be a word such as author or translator")
        if split.ppm <= 0:
            raise DocumentError(f"the share of {split.contributor} must be above zero")
    total = sum(split.ppm for split in splits)
    if total != PPM:
        raise DocumentError(f"the splits sum to {total}, not to {PPM} (parts per million)")
    if len({(split.contributor, split.role) for split in splits}) < len(splits):
        raise DocumentError("the splits name a contributor twice in the same role")


def check_terms(terms: Terms) -> Terms:
    """``terms`` if they can be kept to.

    Raises:
        DocumentError: with the first thing that is wrong. Who cannot read all of them must not use the document.
    """
    if terms.format != TERMS_FORMAT:
        raise DocumentError(
            f"the terms have format {terms.format}, this version knows format {TERMS_FORMAT}: upgrade Patronage"
        )
    if terms.floor < 0:
        raise DocumentError("the price floor must not be negative")
    purposes = terms.purposes or ()
    if len(purposes) > PURPOSES_MAX:
        raise DocumentError(f"{len(purposes)} purposes; the limit is {PURPOSES_MAX}")
    for purpose in purposes:
        if _WORD.fullmatch(purpose) is None:
            raise DocumentError(f"purpose {purpose[:40]!r} must be a word such as answer or research")
    return terms
