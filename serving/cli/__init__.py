"""The command line: ``patronage``."""

from serving.cli.entry import main

__all__ = ["main"]
