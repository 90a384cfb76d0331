"""Readers: from files to documents.

What cannot be read is reported by path, line and reason, and loses nothing else.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from selectolax.lexbor import LexborHTMLParser

from retrieval.documents import Document, DocumentError, SplitShare, Terms
from retrieval.files import Skipped, open_regular, placed, shown, unread, walk
from retrieval.nesting import NESTING_MAX, too_deep

FILE_BYTES_MAX: Final = 100_000_000
LINE_BYTES_MAX: Final = 40_000_000
SUFFIXES: Final = (".txt", ".md", ".html", ".htm", ".pdf", ".jsonl")

ParseAmount = Callable[[str, str | None], int]
"""Turns a decimal string, and its currency if it names one, into units of the deployment's; raises ValueError."""

_HTML_NOISE: Final = "script, style, noscript, template, nav, header, footer, aside, iframe, svg, form"
_HTML_BLOCKS: Final = (
    "p, div, li, ul, ol, dl, dt, dd, h1, h2, h3, h4, h5, h6, pre, blockquote, section, article, table, tr, br, hr, "
    "figure, figcaption, main"
)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Something that was not taken. ``line`` counts from 1 and is None for a whole file."""

    path: str
    line: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """A document, and where it was found."""

    document: Document
    path: str
    line: int | None
    source: str | None = None
    """Of a file that is one document: its path from the root, as :func:`retrieval.files.placed` gives it."""


class MalformedError(DocumentError):
    """Bytes that are no JSON at all."""


class _Amount(msgspec.Struct):
    amount: str
    currency: str


class _SplitLine(msgspec.Struct):
    contributor: str
    share: int
    role: str = "author"


class _TermsLine(msgspec.Struct):
    purposes: list[str] | None = None
    floor: str | _Amount | None = None


class DocumentLine(msgspec.Struct):
    """A document as JSON: a line of ``.jsonl``, or the body of ``POST /v1/documents``. Unknown fields are ignored."""

    text: str
    id: str | None = None
    title: str | None = None
    contributor: str | None = None
    url: str | None = None
    splits: list[_SplitLine] | None = None
    terms: _TermsLine | None = None

    def document(self, default_contributor: str | None, parse_amount: ParseAmount) -> Document:
        """The document that the line describes.

        Raises:
            DocumentError: it has no id or no contributor, or its price floor is not an amount.
        """
        contributor = self.contributor or default_contributor
        if not self.id:
            raise DocumentError("the document has no id")
        if not contributor:
            raise DocumentError("the document has no contributor: add the field, or pass --contributor")
        terms = self.terms or _TermsLine()
        floor = terms.floor
        try:
            if isinstance(floor, _Amount):
                units = parse_amount(floor.amount, floor.currency)
            else:
                units = 0 if floor is None else parse_amount(floor, None)
        except ValueError as error:
            raise DocumentError(f"price floor: {error}") from error
        return Document(
            id=self.id,
            title=self.title or self.id,
            text=self.text,
            contributor=contributor,
            url=self.url,
            splits=tuple(SplitShare(each.contributor, each.role, each.share) for each in self.splits or ()),
            terms=Terms(None if terms.purposes is None else tuple(terms.purposes), units),
        )


_LINES = msgspec.json.Decoder(DocumentLine)


def decode_line(data: bytes) -> DocumentLine:
    """One document in JSON.

    Raises:
        DocumentError: it is not JSON, or a field is missing or of the wrong type.
    """
    try:
        return _LINES.decode(data.decode().removeprefix("\ufeff"))
    except msgspec.ValidationError as error:
        raise DocumentError(f"not a document: {error}") from error
    except msgspec.DecodeError as error:
        raise MalformedError(f"not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise MalformedError(_not_utf8(error)) from error
    except RecursionError as error:
        raise MalformedError("not a document: the JSON is nested too deeply") from error


def read(
    paths: Sequence[Path], contributor: str | None, parse_amount: ParseAmount
) -> Iterator[Found | Rejection | Skipped]:
    """Every document in the files and folders, in a stable order, and what was not read and why.

    A file's document id is made from the contributor and the path below the folder that was given.
    """
    for path in paths:
        try:
            is_folder, folder = path.is_dir(), path.resolve()
        except (OSError, RuntimeError) as error:
            yield Rejection(shown(path), None, f"cannot be read: {getattr(error, 'strerror', None) or error}")
            continue
        if is_folder:
            for file in walk(path, SUFFIXES):
                if isinstance(file, Skipped):
                    yield file
                    continue
                name = f"{folder.name}/{file.relative_to(path).as_posix()}"
                yield from _read_file(file, name, folder, contributor, parse_amount)
        elif path.exists():
            yield from _read_file(path, path.name, None, contributor, parse_amount)
        else:
            yield Rejection(shown(path), None, "no such file or folder")


def _read_file(
    path: Path, name: str, folder: Path | None, contributor: str | None, parse_amount: ParseAmount
) -> Iterator[Found | Rejection]:
    suffix = path.suffix.lower()
    try:
        if suffix not in SUFFIXES:
            raise DocumentError(f"{unread(path)}; known are {', '.join(SUFFIXES)}")
        file, size = open_regular(path, folder)
        with file:
            if suffix == ".jsonl":
                yield from _read_jsonl(file, shown(path), contributor, parse_amount)
                return
            if contributor is None:
                raise DocumentError("whose is it? pass --contributor")
            _check_name(name)
            data = b"" if size > FILE_BYTES_MAX else file.read(FILE_BYTES_MAX + 1)
            if max(size, len(data)) > FILE_BYTES_MAX:
                raise DocumentError(f"the file is larger than {FILE_BYTES_MAX} bytes")
        title, text = _TEXTS[suffix](data)
    except OSError as error:
        yield Rejection(shown(path), None, f"cannot be read: {error.strerror or error}")
    except DocumentError as error:
        yield Rejection(shown(path), None, str(error))
    else:
        identifier = re.sub(r"[\s\"'<>\\\x00-\x1f\x7f]+", "_", f"{contributor}/{name}")
        yield Found(Document(identifier, title or path.stem, text, contributor), shown(path), None, placed(path))


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DocumentError("its name is not UTF-8: rename it") from None


def _read_jsonl(
    file: BinaryIO, path: str, contributor: str | None, parse_amount: ParseAmount
) -> Iterator[Found | Rejection]:
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            while line and not line.endswith(b"\n"):
                line = file.readline(LINE_BYTES_MAX)
            yield Rejection(path, number, f"the line is longer than {LINE_BYTES_MAX} bytes")
            continue
        if not line.strip():
            continue
        try:
            document = decode_line(line).document(contributor, parse_amount)
            yield Found(document, path, number)
        except DocumentError as error:
            yield Rejection(path, number, str(error))


def _plain(data: bytes) -> tuple[str | None, str]:
    return None, _decode(data)


def _markdown(data: bytes) -> tuple[str | None, str]:
    text = _decode(data)
    heading = re.search(r"^#{1,2}[ \t]+(\S.*)$", text, re.MULTILINE)
    return (heading.group(1).rstrip().rstrip("#").rstrip() if heading else None), text


def _html(data: bytes) -> tuple[str | None, str]:
    page = _decode(data)
    if deep := too_deep(page):
        raise DocumentError(f"its elements lie {deep} deep on average; the limit is {NESTING_MAX}")
    tree = LexborHTMLParser(page)
    title = tree.css_first("title")
    name = re.sub(r"\s+", " ", title.text()).strip() if title else None
    for node in tree.css(_HTML_NOISE):
        node.decompose()
    for node in tree.css(_HTML_BLOCKS):
        node.insert_before("\n\n")
        node.insert_after("\n\n")
    text = tree.body.text() if tree.body else ""
    text = re.sub(r"[^\S\n]+", " ", text)
    return name, re.sub(r" ?\n ?(?:\s*\n)+ ?", "\n\n", text).strip()


def _pdf(data: bytes) -> tuple[str | None, str]:
    from pypdf import PdfReader  # noqa: PLC0415 # a tenth of a second that only PDFs need

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its warnings are about the file, and reported by us
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted:
            raise DocumentError("the PDF is encrypted")
        text = "\n\n".join(page.extract_text() for page in reader.pages)
        title = reader.metadata.title if reader.metadata else None
    except DocumentError:
        raise
    except Exception as error:  # a file can break the library in any way, and must not stop the others
        raise DocumentError(f"not a readable PDF: {error}") from error
    if not text.strip():
        raise DocumentError("the PDF has no text (is it a scan?)")
    return title, text.encode("utf-8", "replace").decode()


_TEXTS: Final[dict[str, Callable[[bytes], tuple[str | None, str]]]] = {
    ".txt": _plain,
    ".md": _markdown,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
}


def _decode(data: bytes) -> str:
    if b"\x00" in data[:8192]:
        raise DocumentError("the file is binary, not text")
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DocumentError(_not_utf8(error)) from error
    return text.replace("\r\n", "\n")


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}; convert it first"
