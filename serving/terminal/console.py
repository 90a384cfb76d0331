"""What the commands print, and how: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from serving.settings import Settings


@dataclass(frozen=True, slots=True)
class Options:
    """The options that go with every command."""

    data_dir: Path | None
    json: bool

    def settings(self) -> Settings:
        """The settings, with the data directory of the command line before that of the environment."""
        return Settings() if self.data_dir is None else Settings(data_dir=self.data_dir)


_OPTIONS: ContextVar[Options] = ContextVar("options")


class CommandError(Exception):
    """It could not be done: one line that says why and what to do."""


class Out:
    """The output of one command."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.text = Console(highlight=False, soft_wrap=True)
        self.aside = Console(stderr=True, highlight=False)

    @property
    def data_dir(self) -> Path | None:
        """The data directory that the command line names, if it does."""
        return self._options.data_dir

    @property
    def is_json(self) -> bool:
        """Whether one JSON object is wanted."""
        return self._options.json

    def for_people(self) -> Out:
        """The same for people only: on standard error where standard output is one JSON object."""
        if not self.is_json:
            return self
        out = Out(replace(self._options, json=False))
        out.text = Console(stderr=True, highlight=False, soft_wrap=True)
        return out

    def result(self, value: dict[str, Any]) -> bool:
        """Print the result as JSON if that is wanted; False says that the command prints it for people."""
        if self._options.json:
            text = json.dumps(value, ensure_ascii=False)
            try:
                text.encode(sys.stdout.encoding or "ascii")
            except UnicodeEncodeError:  # no terminal shows it, or nothing can: a name on disk need not be UTF-8
                text = json.dumps(value)
            sys.stdout.write(text + "\n")
        return self._options.json

    def print(self, *lines: str) -> None:
        """Print text for people."""
        for line in lines:
            self.text.print(line.encode("utf-8", "backslashreplace").decode(), markup=False)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = ()) -> None:
        """Print a table; ``numbers`` are the columns that are aligned to the right."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index in numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*[str(cell) for cell in row])
        self.text.print(table, markup=False)

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """A progress bar on standard error, gone when it is over; silent where that is no terminal."""
        with Progress(
            SpinnerColumn(),
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self.aside,
            transient=True,
            disable=not self.aside.is_terminal,
        ) as bar:
            yield bar


def choose(options: Options) -> None:
    """Set the global options of the command that is about to run."""
    _OPTIONS.set(options)


def current() -> tuple[Settings, Out]:
    """The settings and the output of the command that runs."""
    options = _OPTIONS.get()
    return options.settings(), Out(options)
