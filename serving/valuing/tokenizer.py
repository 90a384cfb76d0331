"""The tokenizer of a causal language model, from its ``tokenizer.json``: the same for a local model and an upstream."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from attribution.value_functions.likelihood import LikelihoodError, Span
from retrieval.model_files import tokenizer_file


class ModelTokenizer:
    """Tokens with their places in the text. Thread-safe.

    ``model`` is the model's name without the folder that it lies in: what may be shown.
    """

    def __init__(self, name: str) -> None:
        """``name`` is a folder with a ``tokenizer.json``, or a model of the hub.

        Raises:
            LikelihoodError: there is none.
        """
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file(name)))
        except Exception as error:  # plain Exception is what the library raises
            raise LikelihoodError(f"there is no tokenizer.json of {name}: {error}") from error
        self.model = Path(name).name if Path(name).is_dir() else name
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def tokenize(self, text: str) -> tuple[list[int], list[Span]]:
        """See :data:`attribution.value_functions.likelihood.Tokenize`."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    @property
    def opening(self) -> list[int]:
        """The special tokens before any text."""
        found = self._tokenizer.encode("a")
        special = 0
        while special < len(found.ids) and found.special_tokens_mask[special]:
            special += 1
        return list(found.ids[:special])
