"""A page of the documentation, typed as a reader would type it, and what it says is printed compared by its shape.

Blocks of ``sh`` and ``python`` are typed, in order, into one shell. A block of ``text`` is what the block before it
prints; a line ``[...]`` stands for any lines, ``[...]`` in a line for anything in it. What differs from one run to the
next (ids, keys, hashes, times, versions, amounts) has to be of the same kind; an id that is shown again has to be the
same again. Every word, every name and every whole number has to be as printed.

Three things are done for the reader: ``make serve`` starts the server, on a free port that stands in for 8080, and no
other target is made; an API key that ends in ``...`` is the one that was shown last; and an id that the page shows is,
where it is typed, the one of this run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import unified_diff
from itertools import islice, pairwise
from pathlib import Path
from typing import Self

from tests.servers import PATIENCE_SECONDS, Server, this_period

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ADDRESS = "127.0.0.1:8080"
_END = "the block ended with status "
_CUT = "[...]"
MONTH = "2026-11"
"""The month of which the pages tell."""

_KINDS = {
    "key": r"patronage-(operator|contributor|customer)-[0-9a-f]{12}-[\w-]+",
    "time": r"\d{4}-\d\d-\d\dT[\d:]{8}(?:\.\d+)?Z",
    "day": r"\b20\d\d-\d\d-\d\d\b",
    "month": r"\b20\d\d-\d\d\b",
    "id": r"(?<![0-9A-Za-z])(?:[0-9a-f]{12,64}(?![0-9A-Za-z])|[0-9A-Za-z+/]{43,}=+)",
    "second": r"\b1[789]\d{8}\b",
    "number": r"\b\d+(?:(?:\.\d+)+(?:e-\d+)?|e-\d+)\b",
    "bar": r"[█░]+",
    "rule": r"─+",
}
"""What differs from run to run, first match first. A number with a point is an amount, a score or a version."""
_TOKEN = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _KINDS.items()))
_SAME_AGAIN = ("key", "id", "month")


@dataclass(frozen=True, slots=True)
class Step:
    """What is typed, and what the page says is printed, if it says so."""

    language: str
    typed: str
    printed: str | None
    line: int


def steps(page: Path) -> list[Step]:
    """The blocks of a page in order.

    Raises:
        AssertionError: an output that nothing was typed for.
    """
    text = page.read_text(encoding="utf-8")
    blocks = [(found[1], found[2], text[: found.start()].count("\n") + 1) for found in _FENCE.finditer(text)]
    found = []
    for (language, typed, line), (following, printed, _) in pairwise([("text", "", 0), *blocks, ("sh", "", 0)]):
        if language == "text":
            assert following != "text", f"{page.name}, after line {line}: nothing is typed for this output"
        else:
            found.append(Step(language, typed, printed if following == "text" else None, line))
    return found


@dataclass
class Likeness:
    """Compares what is printed with what a page says, and remembers which id stands for which."""

    whole_numbers_differ: bool = False
    actual: dict[str, str] = field(default_factory=dict)
    """This run's ids by those of the page."""

    def compare(self, said: str | None, printed: str) -> str | None:
        """How what was printed differs from what is said, line by line; None if it does not, or nothing is said."""
        if said is None:
            return None
        ours, theirs = said.rstrip().splitlines(), printed.rstrip().splitlines()
        pattern = "".join(r"((?:.*\n)*?)" if line.strip() == _CUT else self._pattern(line) + r"\n" for line in ours)
        found = re.fullmatch(pattern, "".join(f"{self._shape(line)}\n" for line in theirs))
        if found is None:
            shapes = ([self._shape(line) for line in lines] for lines in (ours, theirs))
            return "\n" + "\n".join(unified_diff(*shapes, "on the page", "printed", lineterm=""))
        cuts, left = iter(found.groups()), iter(theirs)
        for line in ours:
            if line.strip() == _CUT:
                deque(islice(left, next(cuts).count("\n")), maxlen=0)
            elif (fault := self._remember(line, next(left))) is not None:
                return fault
        return None

    def of_this_run(self, typed: str) -> str:
        """What is typed, with this run's ids."""
        return _TOKEN.sub(lambda found: self.actual.get(found[0], found[0]), typed)

    def _pattern(self, line: str) -> str:
        return ".*".join(re.escape(self._shape(part)) for part in line.split(_CUT))

    def _remember(self, said: str, printed: str) -> str | None:
        """What stands for what in a line; or what stood for something else before."""
        if _CUT not in said:
            for ours, theirs in zip(_same_again(said), _same_again(printed), strict=True):
                if self.actual.setdefault(ours, theirs) != theirs:
                    return f"{ours} is {self.actual[ours]} before, and {theirs} here"
        return None

    def _shape(self, line: str) -> str:
        shape = _TOKEN.sub(lambda found: f"<{found.lastgroup}>", line)
        if self.whole_numbers_differ:
            shape = re.sub(r"\d+", "<whole>", shape)
        return re.sub(r"\s+", " ", shape).rstrip()


def _same_again(line: str) -> list[str]:
    return [found[0] for found in _TOKEN.finditer(line) if found.lastgroup in _SAME_AGAIN]


class Reader:
    """Somebody at a shell, in an empty folder with the checkout's ``.venv`` in it."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        folder.mkdir()
        (folder / ".venv").symlink_to(sys.prefix)
        self._folder = folder
        self._env = dict(env)
        self._shell = subprocess.Popen(
            ["bash"], cwd=folder, env={**os.environ, **env, "HOME": str(folder), "COLUMNS": "200"}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._server: Server | None = None
        self._keys: dict[str, str] = {}
        """The last key that was shown, by role."""
        self._program = ""
        """The blocks of Python that printed nothing: those after them on the page go on from there."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.communicate("exit\n")
        if self._server is not None:
            self._server.stop()

    def follow(self, page: Path) -> None:
        """Type every block of a page, and compare.

        Raises:
            AssertionError: a command fails, or prints something else.
        """
        likeness = Likeness(actual={MONTH: this_period()})
        self._program = ""
        for step in steps(page):
            place = f"{page.relative_to(ROOT)}, line {step.line}"
            assert step.printed or "curl" not in step.typed, f"{place}: curl's output alone says whether it was refused"
            fault, printed = self.perform(step, likeness)
            assert fault is None, f"{place}: {fault}\n{printed}"

    def perform(self, step: Step, likeness: Likeness) -> tuple[str | None, str]:
        """What is not as the page says, or None; and what was printed.

        What only reads is typed again for as long as it is not as it should be: earnings and usage are a second old.
        """
        typed = likeness.of_this_run(step.typed)
        if re.search(r"^make serve\b", typed, re.MULTILINE):
            self._serve()
        command = self._command(step.language, typed)
        if not command:
            return None, ""
        only_reads = re.fullmatch(r"(?:curl (?!.* -[dX] ).*\n)+", command) is not None
        deadline = time.monotonic() + (PATIENCE_SECONDS if only_reads else 0)
        while True:
            status, printed = self._type(command)
            fault = f"status {status}" if status else likeness.compare(step.printed, printed)
            if fault is None or time.monotonic() > deadline:
                break
        self._keys |= {found[1]: found[0] for found in re.finditer(_KINDS["key"], printed)}
        if step.language == "python" and not printed:
            self._program += typed
        return fault, printed

    def _command(self, language: str, typed: str) -> str:
        """What is typed, with this run's keys and address; what make does is done already."""
        text = re.sub(r"^make .*\n", "", typed, flags=re.MULTILINE)
        text = re.sub(r"patronage-(\w+)-\.\.\.", lambda found: self._keys[found[1]], text)
        if language == "python":
            text = f"python3 - <<'END OF PROGRAM'\n{self._program}{text}END OF PROGRAM\n"
        return text if self._server is None else text.replace(_ADDRESS, self._server.url.removeprefix("http://"))

    def _serve(self) -> None:
        if self._server is not None:
            self._server.stop()
        _, place = self._type('echo "${PATRONAGE_DATA_DIR:-patronage-data}"')
        self._server = Server(self._folder / place.strip(), self._env)
        self._server.start()

    def _type(self, text: str) -> tuple[int, str]:
        """The status of the last command that failed, or 0; and what was printed."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        before, after = (
            "failed=0; set -o pipefail; trap 'failed=$?' ERR",
            f"trap - ERR; printf '\\n{_END}%s\\n' $failed",
        )
        self._shell.stdin.write(f"{before}\n{text}\n{after}\n")
        self._shell.stdin.flush()
        lines: list[str] = []
        for line in self._shell.stdout:
            if line.startswith(_END):
                return int(line.removeprefix(_END)), "".join(lines).removesuffix("\n")
            lines.append(line)
        raise AssertionError(f"the shell ended\n{''.join(lines)}")
