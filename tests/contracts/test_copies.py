"""Which passages are copies: by evidence, for ever, and the same whatever came and went, on every database."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from retrieval import catalogue as catalogue_module
from retrieval import passage_table
from retrieval.analysis import stems, term_ids
from retrieval.catalogue import Catalogue
from retrieval.documents import Document, Terms
from retrieval.passage_table import REPEATED, PreparedPassage, passages_table, sketches
from serving.store.migrations.versions import m0007_copies

pytestmark = pytest.mark.usefixtures("moments")

MODEL = "model/1"
_LETTERS = "abcdfghjklmnpqrstvwxz"


@pytest.fixture
def catalogue(engine: sa.Engine) -> Catalogue:
    return Catalogue(engine)


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every change is at a moment of its own."""
    ticking = itertools.count(1_000)
    monkeypatch.setattr(catalogue_module, "_now_ms", lambda: next(ticking))


def text(*sentences: int) -> str:
    """A text of numbered sentences; each has words of its own, without digits, which would be facts."""
    return " ".join(" ".join(_LETTERS[n] * 2 + _LETTERS[i] for i in range(12)) + "." for n in sentences)


def document(name: str, *sentences: int, **more: object) -> Document:
    return Document(id=name, title="T", text=text(*sentences), contributor=name.partition("/")[0], **more)


def passage(*sentences: int, start: int = 0) -> PreparedPassage:
    """One passage of those sentences, as :func:`retrieval.catalogue.prepare` would make it without a model."""
    said = [text(n) for n in sentences]
    ends = np.cumsum([len(each) + 1 for each in said])
    return PreparedPassage(
        start=start,
        text=" ".join(said),
        sentences=np.asarray([(end - len(each) - 1, end - 1) for each, end in zip(said, ends, strict=True)], np.int32),
        terms=term_ids([stem for each in said for stem in stems(each)]),
        sentence_terms=np.full(len(sentences), 12, np.int32),
        vector=np.ones(4, np.float32) / 2,
        sentence_vectors=np.ones((len(sentences), 4), np.float16),
    )


def put(catalogue: Catalogue, *given: tuple[str, tuple[int, ...]]) -> None:
    outcomes = catalogue.put([(document(name, *said), [passage(*said)]) for name, said in given], MODEL)
    assert all(isinstance(each, str) for each in outcomes), outcomes


def repeat(catalogue: Catalogue, name: str, said: tuple[int, ...], times: int) -> None:
    """Put a document that says the same in each of its passages."""
    store(catalogue, name, said * times, [passage(*said, start=1_000 * place) for place in range(times)])


def store(catalogue: Catalogue, name: str, said: tuple[int, ...], parts: Sequence[PreparedPassage]) -> None:
    (outcome,) = catalogue.put([(document(name, *said), parts)], MODEL)
    assert isinstance(outcome, str), outcome


def compared(
    catalogue: Catalogue, engine: sa.Engine, name: str, parts: Sequence[PreparedPassage]
) -> list[PreparedPassage]:
    """As passages are that are to be stored later, whatever comes meanwhile."""
    known = catalogue.get([name]).get(name)
    with engine.connect() as connection:
        return [passage_table.compare(connection, each, known and known.number) for each in parts]


def copies(catalogue: Catalogue) -> dict[str, set[str]]:
    """By document with copies of others, whose they are."""
    names = {each.number: each.id for each in catalogue.page()}
    return {names[number]: set(found) for number, found in catalogue.copies(list(names)).items()}


def test_a_later_text_of_the_same_words_is_a_copy(catalogue: Catalogue):
    put(catalogue, ("ana/a", (1, 2, 3, 4)))
    put(catalogue, ("bo/b", (1, 2, 3, 4)), ("bo/c", (5, 6, 7, 8)), ("cy/d", (4, 3, 2, 1, 9)))
    assert copies(catalogue) == {"bo/b": {"ana/a"}, "cy/d": {"ana/a"}}
    assert catalogue.copies([]) == {}


def test_copies_are_told_by_passage(catalogue: Catalogue):
    put(catalogue, ("ana/a", (1, 2, 3)), ("bo/b", (4, 5, 6)))
    both = document("cy/c", 1, 2, 3, 4, 5, 6, 7, 8, 9)
    parts = [passage(1, 2, 3), passage(4, 5, 6, start=500), passage(7, 8, 9, start=900)]
    catalogue.put([(both, parts)], MODEL)
    assert catalogue.copies([catalogue.get(["cy/c"])["cy/c"].number]) == {
        catalogue.get(["cy/c"])["cy/c"].number: {"ana/a": 1, "bo/b": 1}
    }


def test_a_copy_that_is_cut_elsewhere_is_a_copy_of_the_document(catalogue: Catalogue):
    catalogue.put([(document("ana/a", 1, 2, 3, 4), [passage(1, 2), passage(3, 4, start=300)])], MODEL)
    put(catalogue, ("bo/b", (2, 3, 7)))
    assert copies(catalogue) == {"bo/b": {"ana/a"}}


def test_a_document_is_no_copy_of_itself(catalogue: Catalogue):
    catalogue.put([(document("ana/a", 1, 2, 1, 2), [passage(1, 2), passage(1, 2, start=300)])], MODEL)
    assert copies(catalogue) == {}


def test_likeness_does_not_chain(catalogue: Catalogue):
    """So no one can make two works of others one by a text that is like both."""
    put(catalogue, ("ana/a", (1, 2)))
    put(catalogue, ("bo/bridge", (1, 2, 3, 4)))
    put(catalogue, ("cy/c", (3, 4)))
    assert copies(catalogue) == {"bo/bridge": {"ana/a"}}
    put(catalogue, ("di/d", (3, 4)))
    assert copies(catalogue) == {"bo/bridge": {"ana/a"}, "di/d": {"cy/c"}}


def test_a_withdrawal_makes_the_earliest_copy_the_original(catalogue: Catalogue):
    for name in ("ana/a", "bo/b", "cy/c"):
        put(catalogue, (name, (1, 2, 3)))
    before = catalogue.epoch()
    catalogue.withdraw(["ana/a"])
    assert copies(catalogue) == {"cy/c": {"bo/b"}}
    changed = {each.id for each in catalogue.changes(before)[1]}
    assert changed == {"ana/a", "bo/b", "cy/c"}, "every replica must hear of it"


def test_a_correction_keeps_the_date_of_what_was_there(catalogue: Catalogue):
    """Else an author who corrects a word would lose the work to whoever copied it before."""
    put(catalogue, ("ana/a", (1, 2, 3, 4, 5)))
    put(catalogue, ("bo/b", (1, 2, 3, 4, 5)))
    put(catalogue, ("ana/a", (1, 2, 3, 4, 5, 6)))
    assert copies(catalogue) == {"bo/b": {"ana/a"}}
    put(catalogue, ("ana/a", (7, 8, 9)))
    assert copies(catalogue) == {}
    put(catalogue, ("ana/a", (1, 2, 3, 4, 5)))
    assert copies(catalogue) == {"bo/b": {"ana/a"}}, "a version that comes back has its date"


def test_a_date_is_not_carried_to_another_text_step_by_step(catalogue: Catalogue):
    put(catalogue, ("bo/b", (11, 12, 13, 14, 15, 16, 17, 18, 19, 20)))
    put(catalogue, ("ana/a", tuple(range(1, 11))))
    for step in range(1, 11):
        put(catalogue, ("bo/b", (*range(1, step + 1), *range(11 + step, 21))))
    assert copies(catalogue) == {"bo/b": {"ana/a"}}


def test_new_terms_change_no_date(catalogue: Catalogue):
    put(catalogue, ("ana/a", (1, 2, 3)))
    put(catalogue, ("bo/b", (1, 2, 3)))
    catalogue.put([(document("ana/a", 1, 2, 3, terms=Terms(None, 9)), None)], MODEL)
    stored = catalogue.get(["ana/a"])["ana/a"]
    catalogue.replace_passages([(stored, [passage(1, 2, 3)])], "model/2")
    assert copies(catalogue) == {"bo/b": {"ana/a"}}


def test_what_was_brought_at_one_moment_goes_by_the_number_of_the_document(catalogue: Catalogue):
    put(catalogue, ("bo/b", (1, 2, 3)), ("ana/a", (1, 2, 3)))
    assert copies(catalogue) == {"ana/a": {"bo/b"}}
    (one,), (other,) = (list(catalogue.passages_of([n])) for n in (1, 2))
    assert one.registered_ms == other.registered_ms


def test_a_document_that_repeats_itself_costs_no_more_than_its_length_and_all_of_it_is_found(
    catalogue: Catalogue, engine: sa.Engine
):
    """Each passage was compared with each: a million characters of one paragraph held the write lock for 20 s."""
    times = 4 * REPEATED
    repeat(catalogue, "ana/a", (1, 2, 3), times)
    with engine.connect() as connection:
        counts = connection.execute(sa.select(sa.func.count(sketches.c.passage)).group_by(sketches.c.hash)).scalars()
        assert set(counts) == {REPEATED}
    repeat(catalogue, "bo/b", (1, 2, 3), times)
    number = catalogue.get(["bo/b"])["bo/b"].number
    assert catalogue.copies([number]) == {number: {"ana/a": times}}
    put(catalogue, ("ana/a", (7, 8, 9)))
    assert copies(catalogue) == {}
    repeat(catalogue, "ana/a", (1, 2, 3), times)
    assert catalogue.copies([number]) == {number: {"ana/a": times}}, "a version that comes back has its date"


def test_older_versions_are_read_before_the_write_lock_is_taken(catalogue: Catalogue, engine: sa.Engine):
    """They may be ten million characters each, thirty of them, whose words are all looked at."""
    put(catalogue, ("ana/a", (1, 2, 3, 4, 5)))
    said: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *given: said.append(given[2]))
    put(catalogue, ("ana/a", (1, 2, 3, 4, 5, 6)))
    texts = [i for i, each in enumerate(said) if each.startswith("SELECT") and "versions.text" in each]
    writes = [i for i, each in enumerate(said) if each.startswith(("INSERT", "UPDATE", "DELETE"))]
    assert texts
    assert max(texts) < min(writes)


def test_what_was_compared_before_is_not_compared_under_the_write_lock(
    catalogue: Catalogue, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
):
    """It took the most of storing a copy, so that a long one kept the database from others for minutes."""
    put(catalogue, ("ana/a", (1, 2, 3)), ("ana/b", (4, 5, 6)))
    parts = compared(catalogue, engine, "bo/b", [passage(1, 2, 3), passage(7, 8, 9, start=500)])
    with monkeypatch.context() as patched:
        patched.setattr(passage_table, "repeats", None)
        store(catalogue, "bo/b", (1, 2, 3, 7, 8, 9), parts)
    assert copies(catalogue) == {"bo/b": {"ana/a"}}


def test_sketches_go_with_their_passages(catalogue: Catalogue, engine: sa.Engine):
    put(catalogue, ("ana/a", (1, 2, 3)), ("bo/b", (1, 2, 3)), ("cy/c", (4, 5)))
    catalogue.withdraw(["ana/a", "bo/b"])
    put(catalogue, ("cy/c", (6, 7)))
    with engine.connect() as connection:
        kept = set(connection.execute(sa.select(sketches.c.passage)).scalars())
        assert kept == set(connection.execute(sa.select(passages_table.c.id)).scalars())


@pytest.mark.parametrize("seed", range(6))
def test_what_is_a_copy_depends_on_what_is_there_and_not_on_how_it_came(
    catalogue: Catalogue, engine: sa.Engine, seed: int
):
    """Documents come, compared a while before, change and go; then all is decided anew, from nothing: the same."""
    generator = random.Random(seed)
    names = [f"{owner}/{n}" for owner in ("ana", "bo", "cy") for n in range(3)]
    gone: set[str] = set()
    waiting: list[tuple[str, tuple[int, ...], list[PreparedPassage]]] = []
    for _ in range(25):
        name = generator.choice(names)
        if name in gone:
            continue
        if generator.random() < 0.15:
            catalogue.withdraw([name])
            gone |= set(catalogue.get([name]))
            continue
        said = tuple(generator.sample(range(6), generator.randint(1, 4)))
        times = generator.choice([1, 1, REPEATED + 3])
        parts = [passage(*said, start=1_000 * place) for place in range(times)]
        waiting.append((name, said * times, compared(catalogue, engine, name, parts)))
        while len(waiting) > generator.choice([0, 0, 2]):
            name, said, parts = waiting.pop(0)
            if name not in gone:
                store(catalogue, name, said, parts)
    before = copies(catalogue)
    with engine.begin() as connection:
        connection.execute(sa.update(passages_table).values(original=None))
        everything = list(connection.execute(sa.select(passages_table.c.id)).scalars())
        generator.shuffle(everything)
        passage_table.mark_copies(connection, everything)
    assert copies(catalogue) == before
    assert before, "a run without copies shows nothing"


def test_a_database_from_before_learns_what_its_copies_are(engine: sa.Engine, catalogue: Catalogue):
    """The migration dates every passage and decides, as if the documents came today in their order."""
    put(catalogue, ("ana/a", (1, 2, 3)))
    put(catalogue, ("bo/b", (1, 2, 3)), ("cy/c", (4, 5)))
    before = list(catalogue.passages_of([1, 2, 3]))
    with engine.begin() as connection:
        context = MigrationContext.configure(connection)
        with Operations.context(context):
            connection.execute(sa.text("DROP TABLE sketches"))
            connection.execute(sa.text("DROP INDEX ix_passages_original"))
            for column in ("registered_ms", "original"):
                connection.execute(sa.text(f"ALTER TABLE passages DROP COLUMN {column}"))
            m0007_copies.upgrade()
    after = list(catalogue.passages_of([1, 2, 3]))
    assert [(each.id, each.registered_ms, each.original) for each in after] == [
        (each.id, each.registered_ms, each.original) for each in before
    ]
    assert copies(catalogue) == {"bo/b": {"ana/a"}}
    catalogue.withdraw(["ana/a"])
    assert copies(catalogue) == {}
