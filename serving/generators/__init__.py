"""Generators: from what was retrieved to an answer."""
