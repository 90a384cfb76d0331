"""Embedding with torch, where it is installed; and that without it the packaged model gives the same."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

from retrieval.catalogue import Catalogue
from retrieval.chunking import sentences
from retrieval.embedding import EmbedderError, MiniLMEmbedder, Vector, packaged_model_folder
from retrieval.minilm_graph import _Graph
from retrieval.retriever import EmbedderMismatch, Retriever
from tests.unit.retrieval.library import TEXTS, bring, shelf

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer  # noqa: E402 # only after the check that it is there
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer  # noqa: E402
from transformers import BertConfig, BertModel, BertTokenizerFast  # noqa: E402

from retrieval.sentence_transformers import SentenceTransformersEmbedder  # noqa: E402
from tests.databases import new_sqlite  # noqa: E402

DIMENSION = 32
QUESTIONS = [
    *TEXTS.values(),
    "How do bees dance?",
    "x",
    "?",
    "Zoë cafe\u0301 \U0001f469\u200d\U0001f467",
    "word " * 400,
]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as people save theirs: a small BERT of random weights, first-token pooling, no normalisation."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=DIMENSION,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder / "transformer")
    BertTokenizerFast.from_pretrained(packaged_model_folder()).save_pretrained(folder / "transformer")
    transformer = Transformer(str(folder / "transformer"), max_seq_length=64)
    SentenceTransformer(modules=[transformer, Pooling(DIMENSION, "cls")]).save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> SentenceTransformersEmbedder:
    """The embedder of the small model."""
    return SentenceTransformersEmbedder(str(tiny_folder))


@pytest.fixture(scope="module")
def reference() -> dict[str, Vector]:
    """What sentence-transformers makes of the packaged model, in 32 bits."""
    model = SentenceTransformer(str(packaged_model_folder()), device="cpu")
    model.max_seq_length = 512
    return {text: model.encode(text, normalize_embeddings=True, show_progress_bar=False) for text in QUESTIONS}


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    """An empty catalogue."""
    engine = new_sqlite(tmp_path / "catalogue.sqlite3")
    yield Catalogue(engine)
    engine.dispose()


class TestAnyModel:
    def test_it_says_its_name_and_dimension(self, tiny: SentenceTransformersEmbedder, tiny_folder: Path):
        assert (tiny.name, tiny.dimension) == (f"sentence-transformers/{tiny_folder}", DIMENSION)

    @pytest.mark.parametrize("text", ["", *QUESTIONS], ids=range(len(QUESTIONS) + 1))
    def test_every_vector_has_length_one(self, tiny: SentenceTransformersEmbedder, text: str):
        vectors = tiny.embed_passage(text, sentences(text) or [(0, 0)])
        every = np.vstack([vectors.passage[None], vectors.sentences, tiny.embed_query(text)[None]])
        assert (every.dtype, every.shape[1]) == (np.float32, DIMENSION)
        np.testing.assert_allclose(np.linalg.norm(every, axis=1), 1, atol=1e-5)

    def test_a_passage_without_sentences_has_an_empty_table_of_them(self, tiny: SentenceTransformersEmbedder):
        assert tiny.embed_passage("Text.", []).sentences.shape == (0, DIMENSION)

    def test_each_sentence_is_embedded_by_itself(self, tiny: SentenceTransformersEmbedder):
        text = TEXTS["comet"]
        spans = sentences(text)
        vectors = tiny.embed_passage(text, spans)
        np.testing.assert_array_equal(vectors.passage, tiny.embed_query(text))
        for vector, (start, end) in zip(vectors.sentences, spans, strict=True):
            np.testing.assert_array_equal(vector, tiny.embed_query(text[start:end]))

    def test_a_vector_depends_on_nothing_but_its_text(self, tiny: SentenceTransformersEmbedder, tiny_folder: Path):
        alone = {text: tiny.embed_query(text) for text in QUESTIONS}
        other = SentenceTransformersEmbedder(str(tiny_folder))
        with ThreadPoolExecutor(8) as pool:
            for embedder in (tiny, other):
                beside = pool.map(lambda text, use=embedder: (text, use.embed_query(text)), QUESTIONS[::-1] * 2)
                for text, vector in beside:
                    np.testing.assert_array_equal(vector, alone[text])

    def test_tokens_are_counted_without_the_special_ones_and_beyond_the_reach_of_the_model(
        self, tiny: SentenceTransformersEmbedder, embedder: MiniLMEmbedder
    ):
        """Both tokenizers here are the same one."""
        for text in ["", "Hello, world!", "word " * 2_000, *QUESTIONS]:
            assert tiny.count_tokens(text) == embedder.count_tokens(text)

    def test_counting_and_embedding_at_once_do_not_disturb_each_other(self, tiny: SentenceTransformersEmbedder):
        """They share a tokenizer, whose truncation is a setting that embedding switches on and counting off."""
        text, over = "word " * 400, threading.Event()
        alone = tiny.embed_query(text)

        def embed() -> None:
            while not over.is_set():
                np.testing.assert_array_equal(tiny.embed_query(text), alone)

        with ThreadPoolExecutor(2) as pool:
            embedding = [pool.submit(embed) for _ in range(2)]
            try:
                counts = {tiny.count_tokens(text) for _ in range(1_000)}
            finally:
                over.set()
        for each in embedding:
            each.result()
        assert counts == {400}

    def test_what_is_not_there_is_an_error_that_names_it(self, tmp_path: Path):
        (tmp_path / "empty").mkdir()
        for name in (tmp_path / "empty", tmp_path / "nothing"):
            with pytest.raises(EmbedderError, match=f"embedding model {name} cannot be loaded"):
                SentenceTransformersEmbedder(str(name))

    def test_retrieval_works_with_it_and_refuses_to_mix_models(
        self, tiny: SentenceTransformersEmbedder, catalogue: Catalogue, embedder: MiniLMEmbedder
    ):
        bring(catalogue, tiny, *shelf())
        retriever = Retriever(catalogue, tiny)
        found = retriever.retrieve("famous violins of Cremona", top_k=5, purpose="answer", price=0).documents
        assert len(found) == 5
        assert "violin" in [each.document.id for each in found]
        with pytest.raises(EmbedderMismatch):
            Retriever(catalogue, embedder).refresh()


class TestThePackagedModel:
    def test_the_8_bit_graph_agrees_with_sentence_transformers(
        self, embedder: MiniLMEmbedder, reference: dict[str, Vector]
    ):
        for text in TEXTS.values():
            assert float(embedder.embed_query(text) @ reference[text]) >= 0.98, text[:40]

    def test_the_graph_in_32_bits_is_the_same_model(
        self, embedder: MiniLMEmbedder, reference: dict[str, Vector], tmp_path: Path
    ):
        """So what the 8 bits lose is all that is lost: the architecture is written down without an error."""
        folder = packaged_model_folder()
        assert folder is not None
        config = json.loads((folder / "config.json").read_text())
        (tmp_path / "graph.onnx").write_bytes(
            _Graph(load_file(folder / "model.safetensors"), config).model().SerializeToString()
        )
        session = onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
        for text, vector in reference.items():
            ids = np.asarray([embedder._tokenizer.encode(text).ids], np.int32)
            (tokens,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
            pooled = tokens[0].mean(axis=0)
            assert float(pooled @ vector) / float(np.linalg.norm(pooled)) >= 0.9999, text[:40]
