"""Serving: the application. Settings, assembly, the answering of paid queries, HTTP, pages and the command line."""

from importlib.metadata import version

__version__ = version("patronage")
