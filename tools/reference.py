"""The reference pages, made from the program itself: ``python -m tools.reference`` writes them.

``docs/reference/cli.md`` comes from the command line, ``docs/reference/settings.md`` from :class:`Settings`. A test
fails if the files in the checkout are not what this module makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, Final, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperArgument, TyperGroup, TyperOption

from serving.cli.entry import app
from serving.settings import Settings

FOLDER: Final = Path(__file__).parents[1] / "docs" / "reference"
"""Where the pages lie in a checkout."""

_MADE: Final = "<!-- Made by `python -m tools.reference`; change the program, not this page. -->"
_TYPES: Final = {bool: "`true` or `false`", str: "text", int: "whole number", float: "number", Path: "path"}
_BOUNDS: Final = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def commands() -> list[str]:
    """Every command, as it is typed: ``patronage customer add``."""
    return [name for name, _ in _walk()]


def cli_page() -> str:
    """The markdown of ``cli.md``."""
    top = typer.main.get_command(app)
    lines = ["# Command line", "", _MADE, "", str(top.help), ""]
    lines += ["Exit status: 0 done, 1 it could not be done (one line on standard error says why), 2 wrong usage.", ""]
    lines += ["These go with every command, anywhere on the line:", "", *_options(top.params)]
    for name, command in _walk():
        lines += [f"## {name}", "", f"    {_usage(name, command.params)}", "", *_paragraphs(command.help)]
        lines += _options(command.params)
        if command.epilog:
            lines += [_code(command.epilog), ""]
    return "\n".join(lines).rstrip() + "\n"


def settings_page() -> str:
    """The markdown of ``settings.md``."""
    lines = ["# Settings", "", _MADE, ""]
    lines += ["Every setting is an environment variable, read when a command starts; there is no file of settings.", ""]
    lines += ["| variable | value | default | what it sets |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "not set" if field.default is None else f"`{field.default}`"
        lines.append(_row([f"`{variable(name)}`", _values(field), default, str(field.description)]))
    return "\n".join(lines) + "\n"


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{Settings.model_config['env_prefix']}{name}".upper()


def pages() -> dict[str, str]:
    """Every reference page by its file name."""
    return {"cli.md": cli_page(), "settings.md": settings_page()}


def write(folder: Path) -> None:
    """Write every page into ``folder``, made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


def _walk() -> Iterator[tuple[str, Any]]:
    """Every command that does something, groups opened, with its full name."""
    waiting: list[tuple[str, Any]] = [("patronage", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop(0)
        if isinstance(command, TyperGroup):
            waiting[:0] = [(f"{name} {each}", part) for each, part in command.commands.items()]
        else:
            yield name, command


def _usage(name: str, params: Sequence[Any]) -> str:
    arguments = [_argument(each) for each in params if isinstance(each, TyperArgument)]
    required = [
        f"{each.opts[0]} {str(each.name).upper()}" for each in params if isinstance(each, TyperOption) and each.required
    ]
    optional = any(isinstance(each, TyperOption) and not each.required for each in params)
    return " ".join([name, *arguments, *required, *(["[OPTIONS]"] if optional else [])])


def _argument(argument: TyperArgument) -> str:
    return f"{str(argument.name).upper()}{'...' if argument.nargs != 1 else ''}"


def _options(params: Sequence[Any]) -> list[str]:
    """A table of the arguments and options that have something to say, and an empty line; or nothing."""
    rows = []
    for each in params:
        if isinstance(each, TyperArgument) and each.help:
            rows.append([f"`{_argument(each)}`", each.help, _default(each)])
        elif isinstance(each, TyperOption):
            names = ", ".join(f"`{name}`" for name in each.opts)
            rows.append([names, str(each.help), _default(each)])
    if not rows:
        return []
    return ["| option | meaning | default |", "|---|---|---|", *map(_row, rows), ""]


def _default(param: TyperArgument | TyperOption) -> str:
    if param.required:
        return "required"
    if param.default is None or param.default is False:
        return "not set"
    return f"`{param.default.value if isinstance(param.default, Enum) else param.default}`"


def _values(field: FieldInfo) -> str:
    """What a setting may be: a kind, a list of choices, a range."""
    kinds = [kind for kind in _members(field.annotation) if kind is not NoneType]
    shown = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            shown += [f"`{choice}`" for choice in get_args(kind)]
        else:
            shown.append(_TYPES.get(kind, kind.__name__))
    bounds = [
        f"{sign} {getattr(bound, name):,}"
        for bound in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(bound, name, None) is not None
    ]
    return ", ".join(shown + bounds)


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)


def _paragraphs(text: str | None) -> list[str]:
    return [] if not text else [" ".join(text.split()), ""]


def _code(epilog: str) -> str:
    """``Example: patronage ...`` with the command as code."""
    head, separator, command = epilog.partition(": ")
    return f"{head}: `{command}`" if separator else epilog


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    write(FOLDER)
    sys.stderr.write(f"written: {', '.join(str(PurePath('docs', 'reference', name)) for name in pages())}\n")
