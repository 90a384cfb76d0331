"""The demo's corpus: documentation that ships with every CPython, by the people who look after it.

The language reference is the text that ``help()`` shows; the library documents are the docstrings of the standard
library's own source files.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Final

_LANGUAGE: Final = "language-reference"
_LIBRARY: Final[dict[str, tuple[str, ...]]] = {
    "data-formats": ("json/__init__", "json/decoder", "csv", "configparser", "tomllib/_parser", "zipfile", "base64"),
    "numbers-and-time": ("statistics", "fractions", "random", "_pydatetime", "datetime", "calendar"),
    "system": ("pathlib", "pathlib/__init__", "shutil", "subprocess", "tempfile", "argparse", "logging/__init__"),
    "concurrency": ("threading", "queue", "asyncio/tasks", "asyncio/locks", "concurrent/futures/_base", "contextlib"),
}  # fmt: skip
_TOPIC_CHARS_MAX: Final = 12_000

QUESTIONS: Final = (
    "How can I copy a whole directory tree?",
    "What does the nonlocal statement do?",
    "How do I compute the median of numbers?",
    "What does the else clause of a for loop mean?",
    "How does the with statement handle an exception that is raised in its body?",
    "What happens when yield is used in a function body?",
    "Which exception does a queue raise when it is empty?",
    "How do I run another program and capture its output?",
    "What is a lambda expression?",
    "How do I wait for several tasks to finish?",
    "How is a JSON document turned into Python objects?",
    "How do I bake sourdough bread?",
)
"""The last one is asked to see that nothing is invented."""


def documents() -> Iterator[dict[str, Any]]:
    """The corpus as lines of the ingest format."""
    for name, text in sorted(topics.items()):
        if len(text) <= _TOPIC_CHARS_MAX:
            title = text.strip().split("\n", 1)[0]
            yield {
                "id": f"{_LANGUAGE}/{name}",
                "title": title,
                "text": text.strip(),
                "contributor": _LANGUAGE,
            }
    library = Path(sysconfig.get_path("stdlib"))
    for contributor, modules in _LIBRARY.items():
        for module in modules:
            source = library / f"{module}.py"
            if source.exists():
                yield {
                    "id": f"{contributor}/{module}",
                    "title": module.removesuffix("/__init__").replace("/", "."),
                    "text": _docstrings(ast.parse(source.read_text(encoding="utf-8"))),
                    "contributor": contributor,
                }


def _docstrings(tree: ast.Module) -> str:
    parts = [ast.get_docstring(tree) or ""]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            text = ast.get_docstring(node)
            if text:
                parts.append(f"{node.name}: {text}")
    return "\n\n".join(part for part in parts if part)
