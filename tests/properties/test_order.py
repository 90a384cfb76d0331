"""What decides gives the same bytes alone, beside others and in any order: no sum depends on what else is summed."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.agreement import kendall_tau, linear_datamodeling_score
from attribution.arithmetic import exponential, total
from attribution.games.max_games import airport, owen
from attribution.games.semivalues import SEMIVALUES, from_tables
from attribution.games.shapley import owen_values
from attribution.games.values import counterfactual
from attribution.runs.run import Batch, divide
from attribution.value_functions.likelihood import Likelihood
from attribution.value_functions.support import Passage, support
from metering.records import VALUE_ONE
from retrieval.dense_index import DenseIndex
from retrieval.evidence import Question, weigh
from retrieval.lexical_index import LexicalEntry, LexicalIndex
from retrieval.passage_table import PreparedPassage
from retrieval.retriever import _standardised
from retrieval.similarity import cosine, cosines, stepped
from serving.generators.extractive import _softmax
from serving.valuing.text_analyzer import EmbeddingAnalyzer
from tests.deciding import DIMENSION, QUESTIONS, HashedEmbedder
from tests.records import a_record, a_use
from tests.unit.retrieval.library import TEXTS

seeds = st.integers(0, 2**32)
sizes = st.integers(1, 40)


def directions(count, seed, dimension=DIMENSION):
    """Random vectors of length 1, ``stepped``."""
    found = np.random.default_rng(seed).normal(size=(count, dimension))
    return stepped((found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32))


def shuffled(count, seed):
    return np.random.default_rng(seed).permutation(count)


def passage(seed):
    """A passage of a few sentences of random words and vectors."""
    dice = np.random.default_rng(seed)
    lengths = dice.integers(1, 40, dice.integers(1, 9)).astype(np.int32)
    return PreparedPassage(
        start=0,
        text="",
        sentences=np.zeros((len(lengths), 2), np.int32),
        terms=dice.integers(0, 30, lengths.sum()).astype(np.uint32),
        sentence_terms=lengths,
        vector=np.zeros(DIMENSION, np.float32),
        sentence_vectors=directions(len(lengths), seed).astype(np.float16),
    )


def same(found, expected):
    """To the bit, the sign of zero included."""
    assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


@given(sizes, st.integers(1, 800), seeds)
def test_cosines(count, dimension, seed):
    vectors, (vector,) = directions(count, seed, dimension), directions(1, seed + 1, dimension)
    batched, order = cosines(vectors, vector), shuffled(count, seed)
    same(batched, [cosine(each, vector) for each in vectors])
    same(cosines(vectors[order], vector), batched[order])
    same(cosines(np.asfortranarray(vectors), vector), batched)
    shifted = shuffled(dimension, seed)
    same(cosines(vectors[:, shifted], vector[shifted]), batched)
    assert np.abs(batched - vectors.astype(np.float64) @ vector).max() <= 2.0**-24


@given(st.lists(seeds, min_size=1, max_size=12, unique=True), st.integers(0, 20), seeds)
def test_evidence(passages, count, seed):
    """Sentences beside others, passages in another order, and the words of the question in another order."""
    dice = np.random.default_rng(seed)
    terms = dice.permutation(30)[:count].astype(np.uint32)
    question = Question("", directions(1, seed)[0], terms, dice.uniform(0, 15, count))
    made = [passage(each) for each in passages]
    order = shuffled(count, seed + 1)
    reworded = replace(question, terms=terms[order], idf=question.idf[order])
    backwards = weigh(question, made[::-1])[::-1]
    again = weigh(reworded, made)
    for number, together in enumerate(weigh(question, made)):
        (alone,) = weigh(question, [made[number]])
        for found in (alone, backwards[number], again[number]):
            for measure in ("similarity", "coverage", "lexical"):
                same(getattr(found, measure), getattr(together, measure))


@given(st.lists(st.floats(-100, 100), max_size=200), seeds)
def test_standardised_measures(values, seed):
    measures, order = np.asarray(values, np.float64), shuffled(len(values), seed)
    same(_standardised(measures[order]), _standardised(measures)[order])


@settings(max_examples=max(settings().max_examples // 10, 10))
@given(st.lists(st.integers(0, 1_500), max_size=3), st.integers(1, 200), seeds)
def test_search_in_rows_that_came_at_other_times(steps, limit, seed):
    """Whatever is in the snapshot and whatever in the delta; many rows differ by what float32 does not tell apart."""
    dice = np.random.default_rng(seed)
    base, query = directions(4, seed, 16), directions(1, seed + 1, 16)[0]
    near = dice.integers(-1, 2, (1_500, 16)).astype(np.float32) * np.float32(2.0**-24)
    vectors = base[dice.integers(0, 4, 1_500)] + near
    allowed = dice.random(1_500) < 0.7
    at_once = DenseIndex(16).extended(vectors).search(query, limit, allowed)
    index = DenseIndex(16)
    for start, end in zip([0, *sorted(steps)], [*sorted(steps), 1_500], strict=True):
        index = index.extended(vectors[start:end])
    for found, expected in zip(index.search(query, limit, allowed), at_once, strict=True):
        same(found, expected)


def test_the_lexical_score_of_a_passage():
    """Words of the question in another order, and passages that came in another order."""
    dice = random.Random(1)
    texts = [np.asarray(dice.choices(range(60), k=dice.randrange(5, 200)), np.uint32) for _ in range(300)]
    entries = [LexicalEntry(row, row, terms, None, 0) for row, terms in enumerate(texts)]
    once = LexicalIndex().update((), entries)
    dice.shuffle(entries)
    index = LexicalIndex()
    for start in range(0, 300, 100):
        view = index.update((), entries[start : start + 100])
    for _ in range(100):
        terms = dice.sample(range(60), dice.randrange(1, 12))
        expected = dict(zip(*(each.tolist() for each in once.search(terms, 300, "answer", 0)), strict=True))
        dice.shuffle(terms)
        for searched in (once, view):
            rows, scores = searched.search(terms, 300, "answer", 0)
            assert dict(zip(rows.tolist(), scores.tolist(), strict=True)) == expected
        assert once.idf(terms).tolist() == [once.idf([term])[0] for term in terms]


@given(st.lists(st.floats(-800, 20), min_size=1, max_size=200), seeds)
def test_exponentials_and_probabilities(values, seed):
    exponents, order = np.asarray(values), shuffled(len(values), seed)
    raised = exponential(exponents)
    same(raised, [float(exponential(each)) for each in values])
    same(exponential(exponents[order]), raised[order])
    same(_softmax(exponents[order]), _softmax(exponents)[order])


@given(sizes, st.integers(0, 40), seeds)
def test_sums_of_columns(count, columns, seed):
    terms = np.random.default_rng(seed).normal(size=(count, columns))
    same(total(terms), [total(terms[:, column]) for column in range(columns)])
    same(total(np.asfortranarray(terms)), total(terms))
    same(total(terms), sum(terms, np.zeros(columns)))


@given(sizes, st.integers(1, 60), seeds)
def test_likelihoods(coalitions, tokens, seed):
    nats = -np.random.default_rng(seed).random(coalitions) * tokens
    values = Likelihood(nats, tokens).values
    same(values, [Likelihood(nats[i : i + 1], tokens).values[0] for i in range(coalitions)])


@given(st.integers(1, 9), st.integers(1, 30), seeds)
def test_games_of_tables(players, games, seed):
    tables = np.random.default_rng(seed).integers(0, VALUE_ONE, (games, 2**players))
    order = shuffled(games, seed)
    unions = tuple(i // 2 for i in range(players))
    for semivalue in SEMIVALUES.values():
        solved = from_tables(tables, semivalue)
        same(solved, np.concatenate([from_tables(table[None], semivalue) for table in tables]))
        same(from_tables(tables[order], semivalue), solved[order])
    same(owen_values(tables[order], unions)[0], owen_values(tables, unions)[0][order])


@given(st.integers(1, 30), st.integers(1, 20), seeds)
def test_max_games(players, games, seed):
    """Many at once, and with their players in another order."""
    dice = np.random.default_rng(seed)
    heights = dice.integers(0, VALUE_ONE, (games, players)).astype(np.float64)
    unions = np.sort(dice.integers(0, players, players))
    unions = np.unique(unions, return_inverse=True)[1]
    order = shuffled(players, seed)
    renumbered = np.unique(unions[order], return_index=True, return_inverse=True)
    appearance = np.argsort(np.argsort(renumbered[1]))[renumbered[2]]
    for rule, permuted in (
        (airport, airport),
        (lambda each: owen(each, tuple(unions.tolist())), lambda each: owen(each, tuple(appearance.tolist()))),
    ):
        solved = rule(heights)
        same(solved, np.concatenate([rule(each[None]) for each in heights]))
        same(permuted(heights[:, order]), solved[:, order])


@given(st.lists(st.lists(st.floats(0, 0.02), max_size=5), min_size=1, max_size=8), st.integers(1, 3), seeds)
def test_worths_of_coalitions(worths, slots, seed):
    """The sentences of a document in another order, and the documents."""
    table = counterfactual([np.asarray(each) for each in worths], slots)
    dice = random.Random(seed)
    for each in worths:
        dice.shuffle(each)
    same(counterfactual([np.asarray(each) for each in worths], slots), table)
    order = dice.sample(range(len(worths)), len(worths))
    moved = [sum(1 << order.index(i) for i in range(len(worths)) if s >> i & 1) for s in range(len(table))]
    same(counterfactual([np.asarray(worths[i]) for i in order], slots)[moved], table)


@pytest.mark.parametrize("question", QUESTIONS)
def test_support_of_passages(question):
    passages = [Passage(text, name) for name, text in TEXTS.items()]
    analyzer, answer = EmbeddingAnalyzer(HashedEmbedder()), " ".join(passage.text for passage in passages[:3])
    game = support(question, answer, passages, analyzer)
    for seed in range(5):
        order = shuffled(len(passages), seed)
        again = support(question, answer, [passages[i] for i in order], analyzer)
        same(again.scores, game.scores[:, order])
        same(again.baseline, game.baseline)


@given(st.integers(2, 7), seeds)
def test_agreement_with_players_in_another_order(players, seed):
    dice = np.random.default_rng(seed)
    first, second = dice.integers(0, 5, (2, players)).tolist()
    order = shuffled(players, seed).tolist()
    assert kendall_tau(first, second) == kendall_tau([first[i] for i in order], [second[i] for i in order])
    table = dice.integers(0, 9, 2**players)
    moved = [sum(1 << order[place] for place in range(players) if s >> place & 1) for s in range(2**players)]
    assert linear_datamodeling_score(first, table) == linear_datamodeling_score([first[i] for i in order], table[moved])


@given(st.lists(seeds, min_size=1, max_size=12, unique=True), seeds)
def test_units_of_records(drawn, seed):
    """A record alone, beside others, and in another order."""
    records = []
    for each in drawn:
        dice = np.random.default_rng(each)
        players = int(dice.integers(1, 6))
        uses = tuple(a_use(f"d{i}", f"c{dice.integers(4)}") for i in range(players))
        values = tuple(dice.integers(0, VALUE_ONE + 1, 2**players).tolist())
        records.append(a_record(id=str(each), charge=int(dice.integers(0, 2**50)), uses=uses, values=values))
    alone = {record.id: divide(Batch.of([record])).units.tobytes() for record in records}
    for order in (range(len(records)), shuffled(len(records), seed)):
        chosen = [records[i] for i in order]
        assert divide(Batch.of(chosen)).units.tobytes() == b"".join(alone[record.id] for record in chosen)
