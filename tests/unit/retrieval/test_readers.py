from __future__ import annotations

import io
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader, PdfWriter

from metering.money import Currency
from retrieval import readers
from retrieval.documents import Document, DocumentError, SplitShare, Terms, check
from retrieval.files import FOLDER_DEPTH_MAX, Skipped
from retrieval.readers import Found, Rejection, read
from tests.unit.retrieval.files import pdf

USD = Currency.of("USD")


def everything(*paths: Path, contributor: str | None = "ana") -> list[Found | Rejection | Skipped]:
    return list(read(paths, contributor, USD.parse_amount))


def only(path: Path) -> Document:
    (found,) = everything(path)
    assert isinstance(found, Found), found
    assert found.path == str(path)
    return found.document


def refused(path: Path, contributor: str | None = "ana") -> str:
    (rejection,) = everything(path, contributor=contributor)
    assert isinstance(rejection, Rejection), rejection
    assert rejection.path == str(path)
    return rejection.reason


def written(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


class TestText:
    def test_the_text_is_kept_character_by_character(self, tmp_path: Path):
        text = "  Zoë said:\n\n\t“e\u0301” \U0001f469\u200d\U0001f467 \u2028 end \n"
        found = only(written(tmp_path / "note.txt", text))
        assert (found.id, found.title, found.text, found.contributor) == ("ana/note.txt", "note", text, "ana")

    def test_a_byte_order_mark_is_not_part_of_the_text(self, tmp_path: Path):
        assert only(written(tmp_path / "a.txt", b"\xef\xbb\xbfHello")).text == "Hello"

    def test_windows_line_ends_give_the_same_version_as_unix_ones(self, tmp_path: Path):
        windows = only(written(tmp_path / "a.txt", b"One.\r\n\r\nTwo.\r\n"))
        assert windows.text == "One.\n\nTwo.\n"
        assert windows.version == only(written(tmp_path / "b.txt", b"One.\n\nTwo.\n")).version

    def test_latin_1_is_refused_by_byte_and_offset(self, tmp_path: Path):
        reason = refused(written(tmp_path / "a.txt", "un café noir".encode("latin-1")))
        assert reason == "not UTF-8: byte 0xe9 at offset 6; convert it first"

    def test_the_offset_counts_from_the_start_of_the_file_even_after_a_byte_order_mark(self, tmp_path: Path):
        reason = refused(written(tmp_path / "a.txt", b"\xef\xbb\xbfcaf\xe9"))
        assert "byte 0xe9 at offset 6;" in reason

    def test_utf_16_is_refused(self, tmp_path: Path):
        assert "binary" in refused(written(tmp_path / "a.txt", "Hello".encode("utf-16")))

    @pytest.mark.parametrize("data", [b"\x00", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"])
    def test_binary_data_is_refused(self, tmp_path: Path, data: bytes):
        assert refused(written(tmp_path / "a.txt", data)) == "the file is binary, not text"

    def test_a_nul_far_into_the_file_is_refused_too(self, tmp_path: Path):
        """By the reader or by the check that follows it: by one of them it must be."""
        (found,) = everything(written(tmp_path / "a.txt", b"a" * 100_000 + b"\x00"))
        if isinstance(found, Found):
            with pytest.raises(DocumentError, match="NUL"):
                check(found.document)

    def test_an_empty_file_gives_an_empty_document_that_the_check_refuses(self, tmp_path: Path):
        with pytest.raises(DocumentError, match="empty"):
            check(only(written(tmp_path / "a.txt", b"")))

    def test_one_huge_line_is_read_whole(self, tmp_path: Path):
        text = "word " * 1_000_000
        assert only(written(tmp_path / "a.txt", text)).text == text

    def test_a_file_above_the_limit_is_refused_without_being_read(self, tmp_path: Path):
        path = tmp_path / "a.txt"
        with path.open("wb") as file:
            file.truncate(readers.FILE_BYTES_MAX + 1)
        assert refused(path) == f"the file is larger than {readers.FILE_BYTES_MAX} bytes"


class TestMarkdown:
    @pytest.mark.parametrize(
        ("text", "title"),
        [
            ("# The Title #\n\nBody.", "The Title"),
            ("Intro.\n\n## Second level\n", "Second level"),
            ("# C#\n", "C"),
            ("### Third level\n\nBody.", "page"),
            ("#hashtag\n", "page"),
            ("Body only.", "page"),
        ],
    )
    def test_the_first_heading_is_the_title_or_else_the_name_of_the_file(self, tmp_path: Path, text: str, title: str):
        found = only(written(tmp_path / "page.md", text))
        assert (found.title, found.text) == (title, text)

    @pytest.mark.parametrize("text", ["#\n\nA paragraph that is no heading.\n", "#   \n\nA paragraph.\n", "# \n"])
    def test_an_empty_heading_is_no_title(self, tmp_path: Path, text: str):
        assert only(written(tmp_path / "page.md", text)).title == "page"

    @pytest.mark.parametrize("filler", [" ", "#"])
    def test_a_long_heading_is_read_in_time_proportional_to_its_length(self, tmp_path: Path, filler: str):
        path = written(tmp_path / "page.md", "# a" + filler * 20_000 + "b\n\nBody.\n")
        began = time.process_time()
        only(path)
        assert time.process_time() - began < 0.5


class TestHtml:
    PAGE = (
        "<!doctype html><html><head><title> Tea \n &amp; Cake </title><style>p {}</style></head><body>"
        "<nav>Home</nav><header>Banner</header><h1>Heading</h1><p>One <b>bold</b> word &mdash; caf&eacute;.</p>"
        "<p>Second.<br>After a break.</p><script>var x = 1;</script><ul><li>First</li><li>Last</li></ul>"
        "<table><tr><td>Cell</td></tr></table><footer>Imprint</footer></body></html>"
    )

    @pytest.mark.parametrize("suffix", [".html", ".htm", ".HTML"])
    def test_the_text_is_what_a_reader_sees_of_the_page(self, tmp_path: Path, suffix: str):
        found = only(written(tmp_path / f"page{suffix}", self.PAGE))
        assert found.title == "Tea & Cake"
        assert found.text.split("\n\n") == [
            "Heading",
            "One bold word \u2014 café.",
            "Second.",
            "After a break.",
            "First",
            "Last",
            "Cell",
        ]

    def test_a_page_without_a_title_has_the_name_of_its_file(self, tmp_path: Path):
        found = only(written(tmp_path / "page.html", "<p>Body.</p>"))
        assert (found.title, found.text) == ("page", "Body.")

    def test_broken_markup_is_read_as_a_browser_reads_it(self, tmp_path: Path):
        assert only(written(tmp_path / "a.html", "<p>One <i>two<p>three </b> four")).text == "One two\n\nthree four"

    def test_many_blank_lines_become_one(self, tmp_path: Path):
        assert only(written(tmp_path / "a.html", "<p>a" + "\n \t" * 50_000 + "b</p>")).text == "a\n\nb"

    def test_elements_that_lie_too_deep_are_refused_before_they_are_parsed(self, tmp_path: Path):
        """The time of a parser grows with the square of their depth."""
        page = "<div>" * 50_000 + "text" + "</div>" * 50_000
        assert refused(written(tmp_path / "a.html", page)) == "its elements lie 25000 deep on average; the limit is 512"

    def test_latin_1_is_refused_by_byte_and_offset(self, tmp_path: Path):
        assert "byte 0xe9 at offset 6;" in refused(written(tmp_path / "a.html", b"<p>caf\xe9</p>"))

    def test_a_page_without_text_is_refused_by_the_check(self, tmp_path: Path):
        with pytest.raises(DocumentError, match="empty"):
            check(only(written(tmp_path / "a.html", "<html><body><script>x</script></body></html>")))


class TestPdf:
    def test_the_text_of_every_page_and_the_title(self, tmp_path: Path):
        found = only(written(tmp_path / "a.pdf", pdf("The first page.", "The second page.", title="On Pages")))
        assert (found.id, found.title) == ("ana/a.pdf", "On Pages")
        assert found.text.split("\n\n") == ["The first page.", "The second page."]

    @pytest.mark.parametrize("title", [None, ""])
    def test_without_a_title_it_has_the_name_of_its_file(self, tmp_path: Path, title: str | None):
        assert only(written(tmp_path / "report.pdf", pdf("Text.", title=title))).title == "report"

    def test_one_that_an_ordinary_program_compressed(self, tmp_path: Path):
        writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("Compressed text."))))
        for page in writer.pages:
            page.compress_content_streams()
        writer.write(tmp_path / "a.pdf")
        assert only(tmp_path / "a.pdf").text == "Compressed text."

    def test_an_encrypted_one_is_refused(self, tmp_path: Path):
        writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("Secret."))))
        writer.encrypt("password", algorithm="AES-256")
        writer.write(tmp_path / "a.pdf")
        assert refused(tmp_path / "a.pdf") == "the PDF is encrypted"

    def test_a_scan_is_refused(self, tmp_path: Path):
        assert "has no text" in refused(written(tmp_path / "a.pdf", pdf(b"0 0 m 100 100 l S")))

    @pytest.mark.parametrize("data", [b"", b"Not a PDF.", b"%PDF-1.4\n", b"\x00" * 1000, pdf("Text.")[:200]])
    def test_what_is_no_pdf_is_refused(self, tmp_path: Path, data: bytes):
        assert "PDF" in refused(written(tmp_path / "a.pdf", data))

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(pdf("Text.", stream_filter="NoSuchDecode"), id="unknown filter"),
            pytest.param(pdf(b"x\x9c", stream_filter="Fl"), id="abbreviated filter"),
            pytest.param(pdf(b"BT (Text.) Tj ET /Parent 2 0 R /M"), id="a reference in a content stream"),
        ],
    )
    def test_one_that_breaks_the_library_is_refused_and_the_next_file_is_read(self, tmp_path: Path, data: bytes):
        broken, good = written(tmp_path / "a.pdf", data), written(tmp_path / "b.txt", "Good.")
        first, second = everything(broken, good)
        assert isinstance(first, Rejection)
        assert isinstance(second, Found)


def line(**fields: Any) -> bytes:
    return json.dumps({"id": "d", "text": "Some text.", "contributor": "bo"} | fields).encode() + b"\n"


def amount(decimal: str, currency: str = "USD") -> dict[str, str]:
    return {"amount": decimal, "currency": currency}


class TestJsonLines:
    def test_every_field(self, tmp_path: Path):
        splits = [{"contributor": "bo", "role": "author", "share": 700_000}, {"contributor": "cy", "share": 300_000}]
        terms = {"purposes": ["answer", "research"], "floor": "0.002"}
        data = line(title="T", url="https://example.org/", splits=splits, terms=terms, unknown={"deep": [1, None]})
        (found,) = everything(written(tmp_path / "a.jsonl", data))
        assert found == Found(
            Document(
                id="d",
                title="T",
                text="Some text.",
                contributor="bo",
                url="https://example.org/",
                splits=(SplitShare("bo", "author", 700_000), SplitShare("cy", "author", 300_000)),
                terms=Terms(("answer", "research"), 2_000_000),
            ),
            str(tmp_path / "a.jsonl"),
            1,
        )

    @pytest.mark.parametrize("floor", ["0.002", amount("0.002")])
    def test_a_floor_is_a_string_or_an_amount(self, tmp_path: Path, floor: Any):
        assert only(written(tmp_path / "a.jsonl", line(terms={"floor": floor}))).terms == Terms(None, 2_000_000)

    @pytest.mark.parametrize("terms", [None, {}, {"floor": None}, {"purposes": None}])
    def test_what_the_terms_leave_out_is_not_restricted(self, tmp_path: Path, terms: Any):
        assert only(written(tmp_path / "a.jsonl", line(terms=terms))).terms == Terms()

    @pytest.mark.parametrize("floor", ["cheap", "", "1e-3", "0.0000000001", amount("NaN"), amount("0.002", "EUR")])
    def test_a_floor_that_is_no_amount_is_refused(self, tmp_path: Path, floor: Any):
        assert refused(written(tmp_path / "a.jsonl", line(terms={"floor": floor}))).startswith("price floor: ")

    @pytest.mark.parametrize("floor", [0.002, 1, True, {}, {"amount": 1, "currency": "USD"}])
    def test_a_floor_of_another_type_is_refused(self, tmp_path: Path, floor: Any):
        """A number has been through a float before it gets here."""
        assert refused(written(tmp_path / "a.jsonl", line(terms={"floor": floor}))).startswith("not a document: ")

    def test_the_contributor_of_the_line_goes_before_that_of_the_command(self, tmp_path: Path):
        data = line(id="own") + line(id="default", contributor=None)
        found = [each.document.contributor for each in everything(written(tmp_path / "a.jsonl", data))]
        assert found == ["bo", "ana"]

    def test_without_any_contributor_only_that_line_is_refused(self, tmp_path: Path):
        path = written(tmp_path / "a.jsonl", line(contributor=None) + line())
        first, second = everything(path, contributor=None)
        assert first == Rejection(str(path), 1, "the document has no contributor: add the field, or pass --contributor")
        assert isinstance(second, Found)

    def test_the_title_is_the_id_where_there_is_none(self, tmp_path: Path):
        assert only(written(tmp_path / "a.jsonl", line())).title == "d"

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            (b'{"text": "x"}', "no id"),
            (b'{"id": "", "text": "x"}', "no id"),
            (b'{"id": "d"}', "text"),
            (b'{"id": 5, "text": "x"}', "id"),
            (b'{"id": "d", "text": null}', "text"),
            (b'{"id": "d", "text": "x", "splits": [{"contributor": "a"}]}', "share"),
            (b'{"id": "d", "text": "x", "splits": [{"contributor": "a", "share": 0.5}]}', "share"),
            (b'["d", "x"]', "object"),
            (b'{"id": "d", "text": "x"', "JSON"),
            (b"id,text", "JSON"),
            (b'{"id": "d", "text": "\\ud800"}', "JSON"),
            (b"\x00\x01\x02", "JSON"),
        ],
    )
    def test_a_bad_line_is_reported_by_number_and_reason_and_loses_nothing_else(
        self, tmp_path: Path, bad: bytes, reason: str
    ):
        path = written(tmp_path / "a.jsonl", line(id="before") + bad + b"\n" + line(id="after"))
        before, rejection, after = everything(path)
        assert isinstance(rejection, Rejection)
        assert (rejection.path, rejection.line) == (str(path), 2)
        assert reason in rejection.reason
        assert isinstance(before, Found)
        assert isinstance(after, Found)
        assert [(each.document.id, each.line) for each in (before, after)] == [("before", 1), ("after", 3)]

    def test_nesting_without_end_is_a_bad_line_like_any_other(self, tmp_path: Path):
        nested = line(id="before") + b'{"id": "d", "text": "x", "junk": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
        results = everything(written(tmp_path / "a.jsonl", nested + line(id="after")))
        assert [each.document.id for each in results if isinstance(each, Found)] == ["before", "after"]
        assert [each.line for each in results if isinstance(each, Rejection)] == [2]

    def test_latin_1_is_refused_by_byte_and_by_its_offset_in_the_line(self, tmp_path: Path):
        bad = b'{"id": "d", "text": "caf\xe9"}'
        assert f"byte 0xe9 at offset {bad.index(0xE9)};" in refused(written(tmp_path / "a.jsonl", bad))

    def test_byte_order_mark_windows_line_ends_and_blank_lines(self, tmp_path: Path):
        lines = (line(id=name).strip() for name in "abc")
        data = b"\xef\xbb\xbf" + b"\r\n\r\n   \r\n".join(lines)
        found = everything(written(tmp_path / "a.jsonl", data))
        assert [(each.document.id, each.line) for each in found if isinstance(each, Found)] == [
            ("a", 1),
            ("b", 4),
            ("c", 7),
        ]

    def test_an_empty_file_has_no_documents_and_no_errors(self, tmp_path: Path):
        assert everything(written(tmp_path / "a.jsonl", b"")) == []

    def test_a_line_above_the_limit_is_refused_and_the_next_one_read(self, tmp_path: Path):
        path = tmp_path / "a.jsonl"
        with path.open("wb") as file:
            file.write(b'{"id": "d", "text": "')
            file.seek(3 * readers.LINE_BYTES_MAX)  # a hole: read as NULs, and taking no space
            file.write(b'"}\n' + line(id="after"))
        first, second = everything(path)
        assert first == Rejection(str(path), 1, f"the line is longer than {readers.LINE_BYTES_MAX} bytes")
        assert isinstance(second, Found)
        assert (second.document.id, second.line) == ("after", 2)

    def test_a_line_of_exactly_the_limit_is_read(self, tmp_path: Path):
        short = line(text="")
        data = line(text="x" * (readers.LINE_BYTES_MAX - len(short)))
        assert len(data) == readers.LINE_BYTES_MAX
        found = everything(written(tmp_path / "a.jsonl", data + line(id="after")))
        assert [type(each) for each in found] == [Found, Found]


class TestFolders:
    def test_files_are_read_in_a_stable_order_and_named_by_their_path(self, tmp_path: Path):
        for name in ("b.txt", "a.md", "sub/c.txt", "sub/deeper/d.html", "Zoë's notes.txt"):
            written(tmp_path / "library" / name, "<p>Text.</p>")
        written(tmp_path / "library" / "e.jsonl", line())
        found = [each.document.id for each in everything(tmp_path / "library") if isinstance(each, Found)]
        assert found == [
            "ana/library/Zoë_s_notes.txt",
            "ana/library/a.md",
            "ana/library/b.txt",
            "d",
            "ana/library/sub/c.txt",
            "ana/library/sub/deeper/d.html",
        ]
        assert found == [each.document.id for each in everything(tmp_path / "library") if isinstance(each, Found)]

    def test_the_id_depends_on_the_folder_that_is_given_and_not_on_where_it_lies(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        written(tmp_path / "here" / "library" / "a.txt", "Text.")
        written(tmp_path / "there" / "library" / "a.txt", "Text.")
        monkeypatch.chdir(tmp_path / "here" / "library")
        places = (tmp_path / "here" / "library", tmp_path / "there" / "library", Path(), Path("../library/"))
        assert {each.document.id for each in everything(*places) if isinstance(each, Found)} == {"ana/library/a.txt"}

    def test_hidden_files_and_folders_are_skipped(self, tmp_path: Path):
        for name in (".hidden.txt", ".git/notes.txt", "seen.txt"):
            written(tmp_path / "library" / name, "Text.")
        assert [(type(each), each.path) for each in everything(tmp_path / "library")] == [
            (Skipped, str(tmp_path / "library" / ".git")),
            (Skipped, str(tmp_path / "library" / ".hidden.txt")),
            (Found, str(tmp_path / "library" / "seen.txt")),
        ]

    def test_files_of_other_types_are_skipped_in_a_folder_and_refused_by_name(self, tmp_path: Path):
        path = written(tmp_path / "library" / "image.png", b"\x89PNG")
        assert everything(tmp_path / "library") == [Skipped(str(path), "files of type .png are not read")]
        assert "files of type .png are not read" in refused(path)
        assert "files of type none are not read" in refused(written(tmp_path / "README", "Text."))

    def test_an_empty_folder_has_no_documents(self, tmp_path: Path):
        assert everything(tmp_path) == []

    def test_what_does_not_exist_is_refused_and_the_rest_is_read(self, tmp_path: Path):
        missing, present = tmp_path / "missing.txt", written(tmp_path / "a.txt", "Text.")
        first, second = everything(missing, present)
        assert first == Rejection(str(missing), None, "no such file or folder")
        assert isinstance(second, Found)

    def test_a_file_without_a_contributor_is_refused(self, tmp_path: Path):
        assert "--contributor" in refused(written(tmp_path / "a.txt", "Text."), contributor=None)

    def test_a_dangling_link_and_an_unreadable_file_lose_nothing_else(self, tmp_path: Path):
        written(tmp_path / "b.txt", "Text.")
        (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere")
        (tmp_path / "c.txt").mkdir()
        (tmp_path / "d.txt").symlink_to(tmp_path / "c.txt")
        results = everything(tmp_path)
        assert [each.document.id for each in results if isinstance(each, Found)] == [f"ana/{tmp_path.name}/b.txt"]
        assert [each.reason for each in results if isinstance(each, Rejection)] == [
            "cannot be read: No such file or directory"
        ]

    def test_a_name_that_is_not_utf_8_is_refused_and_can_be_shown(self, tmp_path: Path):
        path = os.path.join(os.fsencode(tmp_path), b"caf\xe9\n.md")  # noqa: PTH118 # paths are text, this is bytes
        try:
            with open(path, "wb") as file:  # noqa: PTH123
                file.write(b"# Coffee\n\nText.")
        except OSError:
            pytest.skip("this file system takes only UTF-8 names")
        for named in (Path(os.fsdecode(path)), tmp_path):
            assert everything(named) == [
                Rejection(f"{tmp_path}/caf\\xe9\\n.md", None, "its name is not UTF-8: rename it")
            ]

    @pytest.mark.timeout(30)
    def test_what_is_no_regular_file_is_never_opened(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """A pipe would be waited for, a device has no end."""
        monkeypatch.chdir(tmp_path)
        os.mkfifo("pipe.txt")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("socket.md")
        Path("linked.html").symlink_to("pipe.txt")
        Path("lines.jsonl").symlink_to("pipe.txt")
        written(Path("good.txt"), "Text.")
        expected = {
            "lines.jsonl": "a pipe, not a regular file",
            "linked.html": "a pipe, not a regular file",
            "pipe.txt": "a pipe, not a regular file",
            "socket.md": "a socket, not a regular file",
        }
        found = everything(Path())
        assert {each.path: each.reason for each in found if isinstance(each, Rejection)} == expected
        assert [each.path for each in found if isinstance(each, Found)] == ["good.txt"]
        named = everything(*map(Path, expected))
        assert {each.path: each.reason for each in named if isinstance(each, Rejection)} == expected
        Path("zero.txt").symlink_to("/dev/zero")
        assert refused(Path("zero.txt")) == "a device, not a regular file"

    def test_a_link_is_followed_inside_the_folder_and_not_out_of_it(self, tmp_path: Path):
        library = tmp_path / "library"
        written(tmp_path / "outside.txt", "Not offered.")
        written(tmp_path / "library-2" / "beside.txt", "Not offered.")
        written(library / "sub" / "a.txt", "Text.")
        for name, target in {
            "inside.txt": "sub/a.txt", "out.txt": "../outside.txt", "beside.txt": "../library-2/beside.txt",
            "absolute.txt": str(tmp_path / "outside.txt"), "round.txt": "round.txt", "folder": "../library-2",
            "up": "..", "device.txt": "/dev/zero",
        }.items():  # fmt: skip
            (library / name).symlink_to(target)
        found = {Path(each.path).name: each for each in everything(library)}
        assert {name for name, each in found.items() if isinstance(each, Found)} == {"inside.txt", "a.txt"}
        for name in ("out.txt", "beside.txt", "absolute.txt", "device.txt"):
            assert found[name].reason == "a link that leads out of the folder"
        assert "symbolic links" in found["round.txt"].reason
        for name in ("folder", "up"):
            assert found[name] == Skipped(str(library / name), "a link to a folder: name that folder itself")
        # Who names a link means what it leads to.
        assert only(library / "out.txt").text == "Not offered."
        (tmp_path / "alias").symlink_to(library)
        assert {type(each) for each in everything(tmp_path / "alias") if each.path.endswith("a.txt")} == {Found}

    def test_folders_are_looked_into_to_a_depth_that_is_told(self, tmp_path: Path):
        deep = tmp_path.joinpath(*["d"] * (FOLDER_DEPTH_MAX - 1))
        written(deep / "last.txt", "Text.")
        written(deep / "d" / "beyond.txt", "Text.")
        first, second = everything(tmp_path)
        assert first.path == str(deep / "last.txt")
        assert second == Skipped(str(deep / "d"), f"more than {FOLDER_DEPTH_MAX} folders inside one another")

    def test_a_file_that_grows_while_it_is_read_is_refused_at_the_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """Files of /proc say that they are empty, and are not."""
        monkeypatch.setattr(readers, "FILE_BYTES_MAX", 5)
        monkeypatch.setattr(readers, "open_regular", lambda *_: (io.BytesIO(b"Text that goes on."), 0))
        assert refused(written(tmp_path / "a.txt", "")) == "the file is larger than 5 bytes"
