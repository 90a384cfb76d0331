"""The queue of jobs on both databases: what is promised is kept, in order, and has effect once or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from retrieval.documents import Document, DocumentError
from serving.books import Books
from serving.store.jobs import (
    ATTEMPTS_MAX,
    Job,
    JobOver,
    Jobs,
    Kind,
    Owner,
    State,
    TooMuchWaits,
    Wish,
    finish,
    requests,
    table,
)
from serving.store.migrations.versions import m0014_job_requests

MARY, BO = Owner("contributor", "mary"), Owner("contributor", "bo")
PLENTY = {"count_max": 100, "size_max": 1_000}


@pytest.fixture
def jobs(any_books: Books) -> Jobs:
    return any_books.jobs


def add(jobs: Jobs, owner: Owner = MARY, subject: str = "mary/light", request: str = "{}", size: int = 1) -> Job:
    return jobs.add(owner, Wish(Kind.DOCUMENT, subject, request, size), **PLENTY)


def begun(jobs: Jobs, **fields) -> Job:
    job = add(jobs, **fields)
    assert jobs.begin(job) is not None
    return job


def state(jobs: Jobs, job: Job) -> State:
    found = jobs.get(job.owner, job.id)
    assert found is not None
    return found.state


def request_of(books: Books, job: Job) -> str | None:
    with books.engine.connect() as connection:
        query = sa.select(requests.c.request).join(table, table.c.number == requests.c.number)
        return connection.execute(query.where(table.c.id == job.id)).scalar()


def test_a_job_is_queued_begun_followed_and_done_and_its_request_is_destroyed(any_books: Books, jobs: Jobs):
    job = add(jobs, request='{"text": "A light"}')
    assert (job.state, job.done, job.total, job.ended_ms) == (State.QUEUED, 0, 0, None)
    assert jobs.begin(job) == '{"text": "A light"}'
    jobs.advance(job, 2, 5)
    seen = jobs.get(MARY, job.id)
    assert seen is not None
    assert (seen.state, seen.done, seen.total, seen.attempts) == (State.RUNNING, 2, 5, 1)
    with any_books.engine.begin() as connection:
        finish(connection, job, {"run": 1})
    done = jobs.get(MARY, job.id)
    assert done is not None
    assert (done.state, done.result, done.error) == (State.DONE, {"run": 1}, None)
    assert done.ended_ms is not None
    assert request_of(any_books, job) is None


def test_a_job_is_its_owners_only(jobs: Jobs):
    job = add(jobs)
    for other in (BO, Owner("operator", "mary"), Owner("customer", "mary")):
        assert jobs.get(other, job.id) is None
        assert jobs.cancel(other, job.id) is None
        assert jobs.newest(other, 10) == []
    assert state(jobs, job) is State.QUEUED
    assert [each.id for each in jobs.newest(MARY, 10)] == [job.id]


@pytest.mark.parametrize("is_begun", [False, True], ids=["queued", "in work"])
def test_a_cancelled_job_has_no_effect_however_far_it_was(any_books: Books, jobs: Jobs, is_begun):
    job = begun(jobs) if is_begun else add(jobs)
    cancelled = jobs.cancel(MARY, job.id)
    assert cancelled is not None
    assert (cancelled.state, (cancelled.error or {})["code"]) == (State.CANCELLED, "cancelled")
    assert jobs.begin(job) is None
    for change in (
        lambda: jobs.advance(job, 1, 2),
        lambda: jobs.fail(job, {}),
        lambda: jobs.release(job, counted=True),
    ):
        with pytest.raises(JobOver):
            change()
    with pytest.raises(JobOver), any_books.engine.begin() as connection:
        finish(connection, job)
    assert state(jobs, job) is State.CANCELLED
    assert request_of(any_books, job) is None


def test_what_has_ended_is_not_cancelled(any_books: Books, jobs: Jobs):
    job = begun(jobs)
    with any_books.engine.begin() as connection:
        finish(connection, job)
    cancelled = jobs.cancel(MARY, job.id)
    assert cancelled is not None
    assert (cancelled.state, cancelled.error) == (State.DONE, None)


@pytest.mark.parametrize("is_begun", [False, True], ids=["queued", "in work"])
def test_the_same_request_again_is_the_same_job_and_another_takes_its_place(jobs: Jobs, is_begun):
    first = begun(jobs) if is_begun else add(jobs)
    assert add(jobs).id == first.id
    other = add(jobs, subject="mary/other")
    later = add(jobs, request='{"text": "another"}')
    assert later.id != first.id
    superseded = jobs.get(MARY, first.id)
    assert superseded is not None
    assert (superseded.state, (superseded.error or {})["code"]) == (State.CANCELLED, "superseded")
    assert (state(jobs, other), state(jobs, later)) == (State.QUEUED, State.QUEUED)


def test_the_same_request_after_it_was_done_is_a_new_job(any_books: Books, jobs: Jobs):
    first = begun(jobs)
    with any_books.engine.begin() as connection:
        finish(connection, first)
    assert add(jobs).id != first.id


def test_the_same_request_after_its_subject_changed_is_a_new_job_for_the_one_before_would_fail(jobs: Jobs):
    wish = Wish(Kind.DOCUMENT, "mary/light", "{}", 1)
    first = jobs.add(MARY, wish, **PLENTY, basis=lambda _: "before")
    assert jobs.add(MARY, wish, **PLENTY, basis=lambda _: "before").id == first.id
    again = jobs.add(MARY, wish, **PLENTY, basis=lambda _: "after")
    assert (again.basis, state(jobs, again), state(jobs, first)) == ("after", State.QUEUED, State.CANCELLED)


def test_requests_at_once_are_as_if_one_came_after_the_other(jobs: Jobs):
    with ThreadPoolExecutor(8) as threads:
        same = {each.id for each in threads.map(lambda _: add(jobs), range(24))}
        others = list(threads.map(lambda number: add(jobs, subject="mary/other", request=str(number)), range(24)))
    assert len(same) == 1
    assert [state(jobs, each) for each in others].count(State.QUEUED) == 1


@pytest.mark.parametrize("is_there", [False, True], ids=["gone", "changed"])
def test_a_job_whose_document_is_refused_after_all_is_not_done(any_books: Books, jobs: Jobs, is_there):
    """Where its text was found unchanged, and was changed and changed back by the time it is stored."""
    books = any_books
    books.catalogue.add_contributor("mary", "Mary")
    if is_there:
        books.catalogue.put([(Document("mary/light", "Light", "Another text.", "mary"), [])], "none")
    job = begun(jobs)
    document = Document("mary/light", "Light", "A light.", "mary")
    with pytest.raises(DocumentError, match="try again"):
        books.catalogue.put([(document, None)], "none", guard=lambda connection, _: finish(connection, job))
    assert state(jobs, job) is State.RUNNING


def test_an_owner_has_a_bound_on_count_and_size_and_what_is_refused_changes_nothing(jobs: Jobs):
    first, second = add(jobs, subject="a", size=400), add(jobs, subject="b", size=400)
    with pytest.raises(TooMuchWaits, match="2 may"):
        jobs.add(MARY, Wish(Kind.DOCUMENT, "c", "{}", 1), count_max=2, size_max=1_000)
    with pytest.raises(TooMuchWaits, match="1,000 characters"):
        add(jobs, subject="c", size=201)
    with pytest.raises(TooMuchWaits):
        add(jobs, subject="a", request="more", size=601)
    assert (state(jobs, first), state(jobs, second)) == (State.QUEUED, State.QUEUED)
    assert add(jobs, owner=BO, subject="c", size=1_000).state is State.QUEUED, "of another"
    assert add(jobs, subject="a", request="larger", size=600).state is State.QUEUED, "the one before makes room"
    jobs.cancel(MARY, second.id)
    assert add(jobs, subject="d", size=400).state is State.QUEUED


def test_what_stands_against_a_job_is_said_before_it_is_promised(jobs: Jobs):
    before = add(jobs)

    def taken(_: sa.Connection) -> str:
        raise ValueError("taken")

    with pytest.raises(ValueError, match="taken"):
        jobs.add(MARY, Wish(Kind.DOCUMENT, "mary/light", "other", 1), **PLENTY, basis=taken)
    assert [each.id for each in jobs.newest(MARY, 10)] == [before.id]
    assert state(jobs, before) is State.QUEUED


def test_each_owner_has_one_of_a_kind_at_a_time_in_order(jobs: Jobs):
    first, second = add(jobs, subject="a"), add(jobs, subject="b")
    other = add(jobs, owner=BO, subject="c")
    assert [each.id for each in jobs.next(Kind.DOCUMENT, [], 8)] == [first.id, other.id]
    assert [each.id for each in jobs.next(Kind.DOCUMENT, [], 1)] == [first.id]
    assert jobs.next(Kind.DOCUMENT, [MARY, BO], 8) == []
    assert jobs.next(Kind.CLOSE, [], 8) == []
    assert jobs.begin(first) is not None
    assert [each.id for each in jobs.next(Kind.DOCUMENT, [BO], 8)] == [second.id], "whose turn it is, the caller knows"


def test_what_was_in_work_at_a_crash_is_queued_again_and_counted_unless_it_was_given_back(jobs: Jobs):
    job = begun(jobs)
    assert jobs.recover([job.id]) == 0, "it is worked on"
    assert state(jobs, job) is State.RUNNING
    assert jobs.recover([]) == 1
    assert jobs.begin(job) is not None
    jobs.release(job, counted=False)
    assert jobs.begin(job) is not None
    jobs.release(job, counted=True)
    found = jobs.get(MARY, job.id)
    assert found is not None
    assert (found.state, found.attempts) == (State.QUEUED, 2)
    assert found.attempts < ATTEMPTS_MAX


def test_a_failed_job_says_why(jobs: Jobs):
    job = begun(jobs)
    jobs.fail(job, {"code": "invalid", "message": "é is not it"})
    found = jobs.get(MARY, job.id)
    assert found is not None
    assert (found.state, found.error) == (State.FAILED, {"code": "invalid", "message": "é is not it"})


def test_jobs_that_ended_long_ago_are_forgotten_and_no_other(any_books: Books, jobs: Jobs):
    old, new, waiting = add(jobs, subject="old"), add(jobs, subject="new"), add(jobs, subject="waiting")
    for job in (old, new):
        jobs.cancel(MARY, job.id)
    day_ms = 86_400_000
    with any_books.engine.begin() as connection:
        shift = (any_books.settings.job_days + 1) * day_ms
        aged = sa.update(table).where(table.c.id.in_([old.id, waiting.id]))
        connection.execute(aged.values(created_ms=table.c.created_ms - shift, ended_ms=table.c.ended_ms - shift))
    assert jobs.prune() == 1
    assert {each.id for each in jobs.newest(MARY, 10)} == {new.id, waiting.id}
    assert jobs.unfinished() == 1


def test_what_was_queued_before_requests_had_a_table_is_done_after(any_books: Books, jobs: Jobs):
    job = add(jobs, request='{"text": "A light"}')
    over = add(jobs, owner=BO)
    jobs.cancel(BO, over.id)
    with any_books.engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        connection.execute(sa.text("ALTER TABLE jobs ADD COLUMN request TEXT"))
        connection.execute(
            sa.text("UPDATE jobs SET request = (SELECT request FROM job_requests WHERE number = jobs.number)")
        )
        connection.execute(sa.text("DROP TABLE job_requests"))
        m0014_job_requests.upgrade()
    assert jobs.begin(job) == '{"text": "A light"}'
    assert request_of(any_books, over) is None
