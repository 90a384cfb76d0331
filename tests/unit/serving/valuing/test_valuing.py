"""Valuing: the games of a paid query, by each function, and what becomes of an answer that cannot be valued."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from math import floor
from pathlib import Path

import numpy as np
import pytest

from attribution.games.values import TABLE_PLAYERS_MAX
from attribution.policy import Policy
from attribution.value_functions.likelihood import LikelihoodError, Unscorable
from attribution.value_functions.support import Passage, support
from metering.records import VALUE_ONE
from retrieval.catalogue import Catalogue
from retrieval.documents import Document
from retrieval.embedding import MiniLMEmbedder
from retrieval.retriever import Retrieval, Retriever
from serving.generators import extractive
from serving.generators.grounded_answer import GroundedAnswer, own_text
from serving.generators.query import Query
from serving.valuing import functions
from serving.valuing.functions import Counterfactual, LogLikelihood, NotComputable, NotValued, Support, Valuing
from serving.valuing.scoring_server import ScoringServer
from serving.valuing.text_analyzer import EmbeddingAnalyzer
from tests.databases import new_sqlite
from tests.scorer import Scorer
from tests.unit.retrieval.library import bring, document, shelf

QUESTION = "When was the lighthouse at Cape Hatteras built?"
ANSWER = "The lighthouse at Cape Hatteras was built in 1870."
BARN = (
    "A storm took the roof of the old barn beside the harbour, and nobody ever put another one on. The fishermen of "
    "the cape dry their nets there in the summer. In the winter a family of foxes comes in from the dunes."
)


def opened(folder: Path, embedder: MiniLMEmbedder, *documents: Document) -> Iterator[Retriever]:
    engine = new_sqlite(folder / "catalogue.sqlite3")
    bring(Catalogue(engine), embedder, *documents)
    yield Retriever(Catalogue(engine), embedder)
    engine.dispose()


@pytest.fixture(scope="module")
def retriever(embedder: MiniLMEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    yield from opened(tmp_path_factory.mktemp("library"), embedder, *shelf())


@pytest.fixture(scope="module")
def grounded(embedder: MiniLMEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GroundedAnswer]:
    """Five documents, of which the last has the answer too, and had it later."""
    again = document("copy", f"{ANSWER} {BARN}", contributor="ben")
    for found in opened(tmp_path_factory.mktemp("few"), embedder, *shelf()[:4], again):
        yield GroundedAnswer(found.retrieve(QUESTION, top_k=5, purpose="answer", price=0), ANSWER)


@pytest.fixture
def by_support(embedder: MiniLMEmbedder) -> Support:
    return Support(EmbeddingAnalyzer(embedder))


def place(grounded: GroundedAnswer, name: str) -> int:
    return [each.document.id for each in grounded.read].index(name)


def alone(table: np.ndarray, member: int) -> float:
    return float(table[1 << member] - table[0]) / VALUE_ONE


class Broken:
    """A function that fails as it is told."""

    name = "log_likelihood/1"
    model = "broken"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def table(self, grounded: GroundedAnswer):  # noqa: ARG002 # it fails whatever it is
        raise self.error


def missing():
    raise LikelihoodError("it needs a model")


class TestSupport:
    def test_the_game_is_that_of_the_documents_texts(self, grounded: GroundedAnswer, by_support: Support, embedder):
        passages = [Passage(own_text(each), each.document.title) for each in grounded.read]
        expected = support(QUESTION, ANSWER, passages, EmbeddingAnalyzer(embedder)).table()
        np.testing.assert_array_equal(by_support.table(grounded), expected)
        assert alone(expected, place(grounded, "lighthouse")) > 0.9

    def test_a_sentence_that_another_document_had_before_earns_nothing(
        self, grounded: GroundedAnswer, by_support: Support
    ):
        table = by_support.table(grounded)
        copy = place(grounded, "copy")
        assert "1870" not in own_text(grounded.read[copy])
        assert "A storm" in own_text(grounded.read[copy])
        assert alone(table, copy) < 0.1

    def test_a_document_that_the_generator_was_not_given_is_a_null_player(
        self, grounded: GroundedAnswer, by_support: Support
    ):
        documents = [replace(grounded.read[0], passages=()), *grounded.read[1:]]
        table = by_support.table(replace(grounded, retrieval=Retrieval(grounded.retrieval.question, tuple(documents))))
        assert len(table) == 2 ** len(documents)
        np.testing.assert_array_equal(table[1::2], table[::2])

    def test_twelve_documents_play_and_no_document_is_no_game(self, retriever: Retriever, by_support: Support):
        retrieval = retriever.retrieve(QUESTION, top_k=15, purpose="answer", price=0)
        assert len(by_support.table(GroundedAnswer(retrieval, ANSWER))) == 2**TABLE_PLAYERS_MAX
        assert by_support.table(GroundedAnswer(Retrieval(retrieval.question, ()), ANSWER)).tolist() == [0]

    def test_an_answer_is_stored_with_all_that_it_is_valued_by(self, grounded: GroundedAnswer, by_support: Support):
        again = GroundedAnswer.decode(grounded.encode())
        np.testing.assert_array_equal(by_support.table(again), by_support.table(grounded))


def test_the_counterfactual_is_that_of_the_answer_that_was_given(grounded: GroundedAnswer):
    found = extractive.answer(grounded.retrieval)
    made = extractive.Extractive().begin(Query(QUESTION, "patronage-extractive"), grounded.retrieval)
    table = Counterfactual().table(made.grounded)

    def best(coalition: int) -> int:
        """The sum of the sentences that the answer would have, of these documents alone."""
        own = np.concatenate([worths for i, worths in enumerate(found.worths) if coalition >> i & 1] or [[]])
        return sum(sorted((floor(worth * VALUE_ONE) for worth in own), reverse=True)[: found.slots])

    assert table.tolist() == [best(coalition) for coalition in range(2 ** len(found.worths))]
    assert table[-1] > table[0] == 0
    np.testing.assert_array_equal(Counterfactual().table(GroundedAnswer.decode(made.grounded.encode())), table)


def test_documents_that_do_not_answer_are_worth_nothing_by_any_function(retriever: Retriever, by_support: Support):
    retrieval = retriever.retrieve("Which team won the football world cup in 1994?", top_k=5, purpose="a", price=0)
    made = extractive.Extractive().begin(Query("Who?", ""), retrieval)
    found = Valuing({"support/1": lambda: by_support, "counterfactual/1": Counterfactual})
    assert made.text == extractive.NO_ANSWER
    for name in ("support/1", "counterfactual/1"):
        assert found.value(name, made.grounded, sent=False)[1].tolist() == [0] * 2**5


class TestFailures:
    def test_what_was_not_sent_is_not_valued_and_says_nothing_of_the_reason(self, grounded: GroundedAnswer):
        found = Valuing({"log_likelihood/1": lambda: Broken(LikelihoodError("http://inside refuses"))})
        with pytest.raises(NotValued) as caught:
            found.value("log_likelihood/1", grounded, sent=False)
        assert "inside" not in str(caught.value)
        assert found.unvalued == 0

    @pytest.mark.parametrize("error", [LikelihoodError("down"), Unscorable("long"), MemoryError(), KeyError("bug")])
    def test_what_was_sent_is_a_game_of_nobody_whatever_fails(self, grounded: GroundedAnswer, error: Exception):
        found = Valuing({"log_likelihood/1": lambda: Broken(error)})
        name, table = found.value("log_likelihood/1", grounded, sent=True)
        assert (name, table.tolist(), found.unvalued) == ("unvalued", [0], 1)

    def test_a_function_that_cannot_be_made_is_never_another(self, grounded: GroundedAnswer):
        found = Valuing({"log_likelihood/1": missing, "support/1": lambda: Broken(KeyError())})
        assert found.value("log_likelihood/1", grounded, sent=True)[0] == "unvalued"
        with pytest.raises(NotValued):
            found.ensure_available("log_likelihood/1")

    def test_after_a_failure_nothing_is_begun_for_a_while(
        self, grounded: GroundedAnswer, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(functions, "REST_SECONDS", 0.2)
        found = Valuing(
            {"log_likelihood/1": lambda: Broken(LikelihoodError("down")), "counterfactual/1": Counterfactual}
        )
        found.ensure_available("log_likelihood/1")
        found.value("log_likelihood/1", grounded, sent=True)
        with pytest.raises(NotValued):
            found.ensure_available("log_likelihood/1")
        found.ensure_available("counterfactual/1")
        time.sleep(0.25)
        found.ensure_available("log_likelihood/1")

    def test_an_answer_that_one_model_cannot_score_does_not_stop_the_next(self, grounded: GroundedAnswer):
        found = Valuing({"log_likelihood/1": lambda: Broken(Unscorable("too long"))})
        name, table = found.value("log_likelihood/1", grounded, sent=True)
        assert (name, table.tolist(), found.unvalued) == ("unvalued", [0], 1)
        found.ensure_available("log_likelihood/1")  # raises while a model that failed has its rest


class TestPolicies:
    LIKELY = Policy(4, 500_000, generated_value_function="log_likelihood/1")

    def test_a_policy_in_force_that_cannot_be_computed_says_what_to_do(self):
        found = Valuing({"counterfactual/1": Counterfactual, "log_likelihood/1": missing})
        with pytest.raises(NotComputable, match=r"policy 4 is in force: log_likelihood/1 .* needs a model; or choose"):
            found.load(self.LIKELY)

    def test_a_model_that_does_not_work_proves_nothing(self):
        down = Valuing({"counterfactual/1": Counterfactual, "log_likelihood/1": lambda: Broken(LikelihoodError("no"))})
        down.load(self.LIKELY)
        with pytest.raises(NotComputable, match="cannot be computed here: no"):
            down.prove(self.LIKELY)

    def test_a_model_that_works_proves_it(self, tmp_path: Path):
        with Scorer(tmp_path / "scorer") as scorer:
            found = Valuing(
                {"counterfactual/1": Counterfactual, "log_likelihood/1": lambda: LogLikelihood(served(scorer))}
            )
            found.prove(self.LIKELY)
            assert scorer.asked == 1


def served(scorer: Scorer, seconds: float = 60.0) -> ScoringServer:
    url, model = scorer.env["PATRONAGE_LIKELIHOOD_URL"], scorer.env["PATRONAGE_LIKELIHOOD_MODEL"]
    return ScoringServer(url, model, key=None, batch_tokens=16_384, seconds=seconds)


def test_the_likelihood_reads_what_each_document_brings(grounded: GroundedAnswer, tmp_path: Path):
    with Scorer(tmp_path / "scorer") as scorer:
        table = LogLikelihood(served(scorer)).table(grounded)
    assert alone(table, place(grounded, "lighthouse")) > 0.3
    assert abs(alone(table, place(grounded, "copy"))) < 0.1, "it was said before"


def test_a_scorer_that_hangs_is_given_up(grounded: GroundedAnswer, tmp_path: Path):
    with Scorer(tmp_path / "scorer") as scorer:
        scorer.go.clear()
        began = time.monotonic()
        with pytest.raises(LikelihoodError):
            LogLikelihood(served(scorer, 0.3)).table(grounded)
        assert time.monotonic() - began < 5


def test_a_scorer_that_is_slow_in_many_small_requests_is_given_up_too(grounded: GroundedAnswer, tmp_path: Path):
    with Scorer(tmp_path / "scorer") as scorer:
        slow = served(scorer, 0.05)
        slow._batch_tokens = 1
        with pytest.raises(LikelihoodError, match=r"took longer than 0\.05 s|cannot be reached"):
            LogLikelihood(slow).table(grounded)
        assert scorer.asked < 2 ** len(grounded.read)


def test_a_scorer_that_is_not_there_is_an_error(grounded: GroundedAnswer, tmp_path: Path):
    with Scorer(tmp_path / "scorer") as scorer:
        found = served(scorer)
    with socket.socket(), pytest.raises(LikelihoodError, match="cannot be reached"):
        LogLikelihood(found).table(grounded)
