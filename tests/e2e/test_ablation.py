"""The audit by ablation: what is drawn is kept sealed, recomputed once, shown on statements, and destroyed in time."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from attribution.games.values import Table
from attribution.value_functions.likelihood import Unscorable
from serving.answering import sampled_texts
from serving.answering.sampled_texts import DAY_MS, SampleError
from serving.assembly import open_ablation_function, open_books, open_metering
from serving.books import Books
from serving.closing import ablation, closing
from serving.closing.ablation import AblationError
from serving.generators.grounded_answer import GroundedAnswer
from serving.settings import Settings
from serving.upkeep.audit import audit
from serving.valuing.functions import Rerun
from tests.e2e.world import World, open_world
from tests.servers import Server, cli, run, this_period, wait_for

QUESTIONS = (
    "When was the Vellmar lighthouse built?",
    "How tall is the Tarn Point lighthouse?",
    "What name do guests call the great owl?",
    "How much is a return ticket of the ferry?",
    "Who restored the clock tower of Vellmar?",
)
UNANSWERED = "Which mosquito writes novels?"


@dataclass(frozen=True, slots=True)
class Month:
    """A data directory with queries, a copy of it that tests leave alone, and the answers."""

    data_dir: Path
    pristine: Path
    answers: list[str]
    period: str


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory, e2e_env: dict[str, str]) -> Month:
    """A data directory with answered queries, every one of them drawn; the server has ended."""
    data_dir, period = tmp_path_factory.mktemp("ablation") / "data", this_period()
    with open_world(data_dir, e2e_env) as world:
        draw_all(world)
        account = world.customer()
        answers = [account.ask(question, top_k=3)["answer"] for question in (*QUESTIONS, UNANSWERED)]
        account.usage(len(answers))
    pristine = data_dir.with_name("pristine")
    shutil.copytree(data_dir, pristine)
    return Month(data_dir, pristine, answers, period)


@pytest.fixture
def period(month: Month) -> str:
    """The month in which the questions were asked."""
    return month.period


def draw_all(world: World) -> None:
    adopted = world.operator().post("/v1/admin/policy", json={"data_share_ppm": 500_000, "ablation_ppm": 1_000_000})
    assert adopted.status_code == 201, adopted.text
    wait_for(lambda: world.operator().get("/v1/admin/policy").json() == adopted.json())


@pytest.fixture
def settings(month: Month, tmp_path: Path, model_cache: Path) -> Settings:
    """The settings of a copy of it."""
    shutil.copytree(month.pristine, tmp_path / "data")
    return Settings(data_dir=tmp_path / "data", model_cache=model_cache)


@pytest.fixture
def copy(settings: Settings) -> Iterator[Books]:
    """The books of a copy of it."""
    with open_books(settings) as books:
        yield books


def count(books, what: str) -> int:
    with books.engine.connect() as connection:
        return int(connection.execute(sa.text(f"SELECT count(*) FROM {what}")).scalar_one())  # ours


def failed(books) -> list[str]:
    async def checks() -> list[str]:
        async with open_metering(books) as metering:
            return [check["name"] for check in await audit(books, metering) if not check["ok"]]

    return asyncio.run(checks())


def test_a_new_policy_keeps_the_sample_of_the_one_before(world: World):
    before = world.operator().get("/v1/admin/policy").json()
    assert before["ablation_ppm"] == 10_000
    after = world.operator().post("/v1/admin/policy", json={"data_share_ppm": before["data_share_ppm"]}).json()
    assert after["ablation_ppm"] == 10_000


@pytest.mark.parametrize("wrong", [-1, 1_000_001, 0.5, "all"])
def test_a_sample_that_is_no_part_is_refused(world: World, wrong):
    reply = world.operator().post("/v1/admin/policy", json={"data_share_ppm": 1, "ablation_ppm": wrong})
    assert reply.status_code == 422, reply.text


def test_the_period_is_audited_from_the_command_line_and_the_audit_stands_on_the_statements(
    month, e2e_env, tmp_path, period
):
    data_dir = month.data_dir
    found = cli(data_dir, "ablation", "run", "--period", period, env=e2e_env)
    drawn = len(QUESTIONS)
    expected = {
        "period": period, "sampled": drawn, "recomputed": drawn, "value_functions": {"rerun/1": drawn},
        "masks": sum(each["masks"] for each in found["queries"]), "low": 0, "new": drawn, "destroyed": 0,
        "unscorable": [],
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected, found
    assert all(each["masks"] == 8 for each in found["queries"])
    assert 0 < found["lds"] <= 1
    assert 0 < found["kendall_tau"] <= 1
    again = cli(data_dir, "ablation", "run", "--period", period, env=e2e_env)
    assert again == {**found, "new": 0}, "what is recomputed is not recomputed again"
    shown = run(data_dir, "ablation", "run", "--period", period, env=e2e_env)
    assert f"{drawn} of {drawn} drawn queries recomputed" in shown.stdout

    summary = {name: found[name] for name in ("sampled", "recomputed", "kendall_tau", "lds", "masks", "low")}
    preview = cli(data_dir, "period", "preview", period, env=e2e_env)
    closed = cli(data_dir, "period", "close", period, "--early", env=e2e_env)
    assert preview["ablation"] == closed["ablation"]
    assert summary.items() <= closed["ablation"].items()
    listed = {}
    for each in closed["statements"]:
        name = each["contributor"]
        file = tmp_path / f"{name}.json"
        cli(data_dir, "statement", "--contributor", name, "--period", period, "-o", str(file), env=e2e_env)
        assert cli(data_dir, "verify", str(file), env=e2e_env)["valid"]
        bundle = json.loads(file.read_text())
        assert bundle["run"]["ablation"] == closed["ablation"]
        assert bundle["statement"]["ablation"]["recomputed"] == len(bundle["statement"]["ablation"]["queries"])
        listed |= {query["record"]: query for query in bundle["statement"]["ablation"]["queries"]}
        assert not any(question in file.read_text() for question in QUESTIONS)
    assert sorted(listed) == sorted(query["record"] for query in found["queries"])
    page = run(data_dir, "statement", "--contributor", name, "--period", period, "--format", "html", env=e2e_env)
    assert "Audit by ablation" in page.stdout
    late = run(data_dir, "ablation", "run", "--period", period, env=e2e_env)
    assert late.returncode == 1
    assert f"period {period} is closed" in late.stderr
    assert cli(data_dir, "audit", env=e2e_env)["balanced"], "the closed period recomputes to the same bytes"


def test_no_text_lies_open_in_the_data_directory(month):
    data_dir = month.pristine
    with sqlite3.connect(data_dir / "patronage.sqlite3") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sealed = [row[0] for row in database.execute("SELECT sealed FROM ablation_samples")]
    database.close()
    assert len(sealed) == len(QUESTIONS), "what nobody earned from is not drawn"
    assert all(len(each) > 1_000 for each in sealed)
    for path in data_dir.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(question.encode() in data for question in QUESTIONS), path
    assert month.answers[-1].startswith("The documents do not answer")


class Dying(Rerun):
    """Is killed at its third answer."""

    def __init__(self) -> None:
        self.scored = 0

    def table(self, grounded: GroundedAnswer) -> Table:
        self.scored += 1
        if self.scored == 3:
            raise KeyboardInterrupt
        return super().table(grounded)


def test_an_audit_that_is_killed_goes_on_where_it_stopped(copy: Books, period: str):
    with pytest.raises(KeyboardInterrupt):
        ablation.run(copy, period, Dying())
    assert count(copy, "ablations") == 2
    progress = []
    done = ablation.run(copy, period, Rerun(), lambda *each: progress.append(each))
    assert (done.new, done.to_json()["recomputed"]) == (len(QUESTIONS) - 2, len(QUESTIONS))
    assert progress == [(i, 3) for i in (1, 2, 3)]


def test_a_close_in_the_middle_ends_the_audit_and_keeps_what_is_on_its_statements(copy: Books, period: str):
    class Closing(Rerun):
        def table(self, grounded: GroundedAnswer) -> Table:
            if count(copy, "ablations") == 2 and not count(copy, "closed_periods"):
                closing.close(copy, period, early=True)
            return super().table(grounded)

    with pytest.raises(AblationError, match="closed meanwhile"):
        ablation.run(copy, period, Closing())
    assert count(copy, "ablations") == 2
    bundle = closing.statement(copy, "mary", period)
    assert bundle is not None
    assert (bundle["run"]["ablation"]["sampled"], bundle["run"]["ablation"]["recomputed"]) == (len(QUESTIONS), 2)
    assert failed(copy) == []


def test_an_answer_that_cannot_be_scored_waits_for_another_function(copy: Books, period: str):
    class Choosy(Rerun):
        def table(self, grounded: GroundedAnswer) -> Table:
            if "owl" in grounded.answer:
                raise Unscorable("too long for this model")
            return super().table(grounded)

    done = ablation.run(copy, period, Choosy())
    assert [reason.split(": ")[1] for reason in done.unscorable] == ["too long for this model"]
    assert ablation.run(copy, period, Rerun()).new == 1


def test_text_is_destroyed_when_its_time_is_over_and_that_it_was_drawn_is_kept(copy: Books, period: str):
    assert copy.samples.destroy() == 0
    with pytest.raises(KeyboardInterrupt):
        ablation.run(copy, period, Dying())
    early = sa.update(sampled_texts.table).values(at_ms=sampled_texts.table.c.at_ms - 91 * DAY_MS - 60_000)
    with copy.engine.begin() as connection:
        connection.execute(early)
    assert failed(copy) == ["no sampled text is kept for longer than the dispute window"]
    assert copy.samples.destroy() == len(QUESTIONS)
    assert count(copy, "ablation_samples WHERE sealed IS NOT NULL") == 0
    done = ablation.run(copy, period, Rerun())
    assert (done.new, done.destroyed, done.to_json()["sampled"]) == (0, len(QUESTIONS) - 2, len(QUESTIONS))
    assert failed(copy) == []


def test_destroyed_text_is_overwritten_and_not_only_forgotten(copy: Books):
    with copy.engine.begin() as connection:
        sealed = connection.execute(sa.select(sampled_texts.table.c.sealed)).scalars().all()
        connection.execute(sa.update(sampled_texts.table).values(at_ms=0))
    assert copy.samples.destroy() == len(sealed)
    copy.engine.dispose()
    with sqlite3.connect(copy.directory.database) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    data = copy.directory.database.read_bytes()
    assert not any(each[:64] in data or each[-64:] in data for each in sealed)


def test_a_closed_period_recomputes_to_the_same_bytes_after_its_texts_are_destroyed(copy: Books, period: str):
    ablation.run(copy, period, Rerun())
    closing.close(copy, period, early=True)
    with copy.engine.begin() as connection:
        connection.execute(sa.update(sampled_texts.table).values(sealed=None))
    assert failed(copy) == []


def test_a_running_server_destroys_what_is_over(settings: Settings, e2e_env: dict[str, str]):
    with open_books(settings) as books, books.engine.begin() as connection:
        connection.execute(sa.update(sampled_texts.table).values(at_ms=sampled_texts.table.c.at_ms - 91 * DAY_MS))
    with Server(settings.data_dir, e2e_env), open_books(settings) as books:
        wait_for(lambda: not count(books, "ablation_samples WHERE sealed IS NOT NULL"))


def test_a_text_that_another_key_sealed_is_named_and_nothing_is_guessed(copy: Books, period: str):
    with copy.engine.begin() as connection:
        connection.execute(sa.update(sampled_texts.table).values(sealed=b"x" * 100))
    with pytest.raises(SampleError, match="cannot be read"):
        ablation.run(copy, period, Rerun())


@pytest.mark.parametrize("counted", ["run", "close"])
def test_a_text_that_waits_on_disk_is_in_the_sample(copy: Books, period: str, counted: str):
    with copy.engine.begin() as connection:
        (record, at_ms, _), *others = connection.execute(sa.select(sampled_texts.table)).all()
        grounded = copy.samples.open(record)
        assert grounded is not None
        connection.execute(sa.delete(sampled_texts.table).where(sampled_texts.table.c.record == record))
    copy.samples.keep(record, at_ms, grounded, sent=False)
    copy.samples.keep(others[0].record, others[0].at_ms, grounded, sent=False)  # killed before its file was deleted
    if counted == "run":
        assert ablation.run(copy, period, Rerun()).new == len(QUESTIONS)
    else:
        closing.close(copy, period, early=True)
        assert ablation.ablation_of(copy.engine, period).sampled == len(QUESTIONS)
        bundle = closing.statement(copy, "mary", period)
        assert bundle is not None
        assert bundle["run"]["ablation"]["sampled"] == len(QUESTIONS)
    opened = copy.samples.open(record)
    assert opened is not None
    assert opened.encode() == grounded.encode()
    assert copy.samples.store() == 0


def test_a_text_is_bound_to_its_record(copy: Books):
    """Swapped rows do not open: nobody can have another query audited in a record's name."""
    with copy.engine.begin() as connection:
        rows = connection.execute(sa.select(sampled_texts.table)).all()
        change = sa.update(sampled_texts.table).where(sampled_texts.table.c.record == rows[0].record)
        connection.execute(change.values(sealed=rows[1].sealed))
    with pytest.raises(SampleError):
        copy.samples.open(rows[0].record)


@pytest.mark.parametrize("period", ["2026-13", "soon", ""])
def test_what_is_no_period_is_refused(month: Month, e2e_env: dict[str, str], period: str):
    done = run(month.data_dir, "ablation", "run", "--period", period, env=e2e_env)
    assert done.returncode == 1
    assert "period" in done.stderr


def test_settings_that_do_not_fit_together_are_refused(
    month: Month, e2e_env: dict[str, str], tmp_path: Path, period: str
):
    for given, said in (
        ({"PATRONAGE_LIKELIHOOD_URL": "http://127.0.0.1:9/v1"}, "needs PATRONAGE_LIKELIHOOD_MODEL"),
        (
            {"PATRONAGE_LIKELIHOOD_URL": "http://127.0.0.1:9/v1", "PATRONAGE_LIKELIHOOD_MODEL": str(tmp_path)},
            "no tokenizer.json",
        ),
    ):
        done = run(month.data_dir, "ablation", "run", "--period", period, env={**e2e_env, **given})
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert said in done.stderr


def test_an_empty_period_has_an_empty_audit(books: Books):
    found = ablation.run(books, "2026-01", Rerun()).to_json()
    assert (found["sampled"], found["recomputed"], found["kendall_tau"]) == (0, 0, None)


def test_the_same_audit_by_a_language_model_in_this_process_and_at_a_server(
    settings: Settings, tmp_path: Path, period: str
):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.language_models import babbler, vllm_like  # noqa: PLC0415 # needs torch

    folder = babbler(tmp_path / "babbler", "llama", positions=8_192)
    with open_books(settings) as books, books.engine.begin() as connection:
        first = sa.select(sa.func.min(sampled_texts.table.c.record)).scalar_subquery()
        connection.execute(
            sa.update(sampled_texts.table).where(sampled_texts.table.c.record > first).values(sealed=None)
        )
    model = settings.model_copy(update={"likelihood_model": str(folder)})
    with vllm_like(folder, str(folder)) as url:
        there = shutil.copytree(settings.data_dir, settings.data_dir.with_name("there"))
        served = model.model_copy(update={"likelihood_url": url, "data_dir": there})
        found = []
        for each in (model, served):
            with open_books(each) as books:
                done = ablation.run(books, period, open_ablation_function(books.settings))
                assert done.to_json()["value_functions"] == {"log_likelihood/1": 1}
                found.append(done.ablation.agreements)
    assert {each.model for each in found[0]} == {"transformers/babbler"}
    assert {each.model for each in found[1]} == {"upstream/babbler"}
    for here, elsewhere in zip(*found, strict=True):
        assert (here.record, here.masks) == (elsewhere.record, elsewhere.masks)
        assert here.lds == pytest.approx(elsewhere.lds, abs=0.02), "a rank may change where two values touch"
