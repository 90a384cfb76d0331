"""Files that readers must read: the smallest of their kind, written by hand."""

from __future__ import annotations

from collections.abc import Sequence


def pdf(*pages: str | bytes, title: str | None = None, stream_filter: str | None = None) -> bytes:
    """A PDF with a line of text a page; ``bytes`` are taken as the page's whole content stream."""
    streams = [page if isinstance(page, bytes) else f"BT /F1 12 Tf 72 700 Td ({page}) Tj ET".encode() for page in pages]
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    dictionary = f"/Filter /{stream_filter} " if stream_filter else ""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, stream in enumerate(streams):
        resources = "/Resources << /Font << /F1 3 0 R >> >>"
        contents = f"/MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R"
        objects.append(f"<< /Type /Page /Parent 2 0 R {contents} {resources} >>".encode())
        head = f"<< {dictionary}/Length {len(stream)} >>\nstream\n".encode()
        objects.append(head + stream + b"\nendstream")
    objects.append(f"<< /Title ({title}) >>".encode() if title is not None else b"<< >>")
    return _assembled(objects)


def _assembled(objects: Sequence[bytes]) -> bytes:
    out = b"%PDF-1.4\n"
    offsets = []
    for number, each in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer << /Size %d /Root 1 0 R /Info %d 0 R >>" % (len(objects) + 1, len(objects))
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    return out + head + table + trailer + b"\nstartxref\n%d\n%%%%EOF\n" % len(out)
