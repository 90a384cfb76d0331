"""Retrieval: from files to the passages that answer a question, terms and withdrawals applied before ranking."""
