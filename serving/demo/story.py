"""The demo: the main job on real input, told as a story. Everything in it is the product itself, run for real."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import openai

from serving.assembly import open_books
from serving.closing import closing
from serving.demo import corpus
from serving.portal import statement_pages
from serving.portal.pages import render
from serving.rules.rulebook import EXTRACTIVE
from serving.settings import Settings
from serving.terminal import summaries
from serving.terminal.console import CommandError, Out

_START_SECONDS: Final = 60
_STOP_SECONDS: Final = 30
_CUSTOMER: Final = "acme"


def tell(out: Out, data_dir: Path | None) -> dict[str, Any]:
    """Run the story in ``data_dir``, or in a new throw-away one.

    Raises:
        CommandError: something in it does not hold.
    """
    folder = data_dir or Path(tempfile.mkdtemp(prefix="patronage-demo-"))
    return _Story(out, folder).tell()


class _Story:
    def __init__(self, out: Out, folder: Path) -> None:
        self._out = out.for_people()
        self._folder = folder
        self._began = time.monotonic()

    def tell(self) -> dict[str, Any]:
        self._say("Patronage answers questions from documents that people contributed, and pays them for it.", "")
        self._say(f"Everything below is real and stays in {self._folder}", "")
        ingested = self._ingest()
        self._chapter("A customer pays in 5.00 USD")
        customer = self._run("customer", "add", "Acme Research", "--id", _CUSTOMER, "--credit", "5.00")
        self._say(f"balance {customer['balance']['amount']} {customer['balance']['currency']}")
        with self._server() as url:
            answers = self._ask(url, customer["api_key"])
            account = self._get(url, "/v1/account", customer["api_key"])
        spent = sum(float(each["receipt"]["charge"]["amount"]) for each in answers)
        self._say("", f"{len(answers)} queries for {spent:.6f} USD; balance {account['balance']['amount']} USD")
        closed = self._close()
        audit, verified = self._prove(closed)
        pages = self._pages(answers, closed)
        seconds = time.monotonic() - self._began
        self._chapter("Where to look")
        self._say(*[f"  {page}" for page in pages], "", f"The whole story took {seconds:.1f} s.")
        return {
            "data_dir": str(self._folder),
            "documents": ingested["documents"],
            "queries": len(answers),
            "period": closed,
            "balanced": audit["balanced"],
            "valid": verified["valid"],
            "pages": [str(page) for page in pages],
            "seconds": round(seconds, 1),
        }

    def _ingest(self) -> dict[str, Any]:
        self._chapter("Contributors bring documents: the reference documentation that ships with CPython")
        path = self._folder / "corpus.jsonl"
        self._folder.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            for document in corpus.documents():
                file.write(json.dumps(document) + "\n")
        found = self._run("ingest", str(path), "--create-contributors")
        if found["rejected"] or not found["documents"] + found["unchanged"]:
            raise CommandError(f"the demo's documents were not taken: {found['rejected'][:1]}")
        self._say(f"{found['documents']} documents in {found['passages']} passages, cut, embedded and indexed")
        return found

    def _ask(self, url: str, key: str) -> list[dict[str, Any]]:
        self._chapter("The customer asks, with the official openai client")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
        first = corpus.QUESTIONS[0]
        self._say(
            f"  client = openai.OpenAI(base_url='{url}/v1', api_key='patronage-customer-...')",
            f"  client.chat.completions.create(model='{EXTRACTIVE}', messages=[{{'role': 'user', 'content': ...}}])",
            "",
            f"Question: {first}",
            "",
        )
        reply = client.chat.completions.with_raw_response.create(
            model=EXTRACTIVE, messages=[{"role": "user", "content": first}]
        )
        message = reply.parse().choices[0].message
        if not message.content or not message.annotations:
            raise CommandError("the first question of the demo was not answered with a citation")
        receipt = self._get(url, f"/v1/receipts/{reply.headers['x-patronage-receipt']}", key)
        self._say(f"Answer: {' '.join(message.content.split())}", "")
        for number, annotation in enumerate(message.annotations, 1):
            cited = annotation.url_citation
            self._say(f"  [{number}] {cited.title}, {cited.url}")
        amounts = ", ".join(f"{name} {receipt[name]['amount']}" for name in ("charge", "cost", "platform", "pool"))
        self._say(
            "",
            f"Receipt {receipt['id']}: {amounts} USD",
            "",
            "More questions, each with its price and who earns:",
            "",
        )
        answers = [self._query(url, key, question) for question in corpus.QUESTIONS]
        rows = [(each["question"], _best(each), each["receipt"]["charge"]["amount"]) for each in answers]
        self._out.table(["question", "earns most", "charge"], rows, numbers=[2])
        self._say("", "In full, the fifth:", "")
        summaries.answer(self._out, answers[4])
        return [{"question": first, "receipt": receipt, "answer": message.content}, *answers]

    def _close(self) -> dict[str, Any]:
        period = datetime.now(UTC).strftime("%Y-%m")
        self._chapter(
            f"The period {period} is closed: every query's royalty goes to the documents that made its answer"
        )
        closed = self._run("period", "close", period, "--early")
        summaries.earned(self._out, closed)
        units = [closed[name]["amount"] for name in ("charged", "cost", "platform", "credited", "residual")]
        self._say("", "charged {} = cost {} + platform {} + credited {} + residual {} USD".format(*units))
        return closed

    def _prove(self, closed: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        self._chapter("Every contributor gets a statement, and can check it without us")
        self._write_statements(closed)
        earner = max(closed["statements"], key=lambda each: float(each["credited"]["amount"]))["contributor"]
        file = str(self._folder / "statements" / f"{earner}.json")
        self._run("statement", "--contributor", earner, "--period", closed["period"], "-o", file)
        verified = self._run("verify", file)
        self._checks(verified["checks"])
        self._chapter("And the books are recomputed from everything that is stored")
        audit = self._run("audit")
        self._checks(audit["checks"])
        return audit, verified

    def _write_statements(self, closed: dict[str, Any]) -> None:
        folder = self._folder / "statements"
        folder.mkdir(exist_ok=True)
        with open_books(Settings(data_dir=self._folder)) as books:
            for each in closed["statements"]:
                name = each["contributor"]
                bundle = closing.statement(books, name, closed["period"])
                if bundle is None:
                    raise CommandError(f"{name} has no statement")
                (folder / f"{name}.html").write_text(statement_pages.as_html(bundle))
                lines = bundle["statement"]["documents"]
                used, cited = (sum(line[count] for line in lines) for count in ("retrieved", "cited"))
                credited = bundle["statement"]["credited"]["amount"]
                self._say(f"  {name}: retrieved {used} times, cited {cited} times, credited {credited} USD")

    def _pages(self, answers: Sequence[dict[str, Any]], closed: dict[str, Any]) -> list[Path]:
        rows = [(each["contributor"], each["credited"]["amount"]) for each in closed["statements"]]
        rows.sort(key=lambda row: (-float(row[1]), row[0]))
        largest = max([float(amount) for _, amount in rows] + [float(closed["residual"]["amount"])]) or 1.0
        page = self._folder / "demo.html"
        page.write_text(
            render(
                "demo.html",
                closed=closed,
                rows=[(name, amount, float(amount) / largest * 100) for name, amount in rows],
                residual_width=float(closed["residual"]["amount"]) / largest * 100,
                answers=answers[1:],
            )
        )
        return [page, *sorted((self._folder / "statements").glob("*.html"))]

    @contextmanager
    def _server(self) -> Iterator[str]:
        """The server as an operator would run it."""
        self._say("", "$ patronage serve")
        command = [
            sys.executable,
            "-m",
            "serving.cli",
            "--data-dir",
            str(self._folder),
            "serve",
            "--port",
            "0",
        ]
        log = self._folder / "server.log"
        with log.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=sink) as process:  # our own
            try:
                url = self._wait(process, log)
                self._say(f"{url} is ready, with a Redis of its own")
                yield url
            finally:
                process.terminate()
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> str:
        deadline = time.monotonic() + _START_SECONDS
        lock = self._folder / "server.lock"
        while time.monotonic() < deadline and process.poll() is None:
            try:
                url = str(json.loads(lock.read_text())["url"])
                if httpx.get(f"{url}/health/ready", timeout=5).status_code == httpx.codes.OK:
                    return url
            except (OSError, ValueError, httpx.HTTPError):
                pass
            time.sleep(0.05)
        raise CommandError(f"the server did not become ready; see {log}")

    def _run(self, *arguments: str) -> dict[str, Any]:
        """One command of ``patronage``, as a user would type it."""
        shown = " ".join(f"'{each}'" if " " in each else each for each in arguments)
        self._say(f"$ patronage {shown}".replace(f"{self._folder}/", ""))
        command = [sys.executable, "-m", "serving.cli", "--data-dir", str(self._folder), "--json", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # our own
        if done.returncode:
            raise CommandError(f"`patronage {shown}` failed: {done.stderr.strip()}")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def _query(self, url: str, key: str, question: str) -> dict[str, Any]:
        reply = httpx.post(
            f"{url}/v1/query",
            json={"question": question},
            headers={"authorization": f"Bearer {key}"},
            timeout=30,
        )
        if reply.status_code != httpx.codes.OK:
            raise CommandError(f"a query of the demo failed: {reply.text}")
        return {"question": question, **reply.json()}

    def _get(self, url: str, path: str, key: str) -> dict[str, Any]:
        reply = httpx.get(f"{url}{path}", headers={"authorization": f"Bearer {key}"}, timeout=30)
        if reply.status_code != httpx.codes.OK:
            raise CommandError(f"{path} failed: {reply.text}")
        found: dict[str, Any] = reply.json()
        return found

    def _chapter(self, title: str) -> None:
        self._say("", title, "─" * min(len(title), 100))

    def _checks(self, checks: Sequence[dict[str, Any]]) -> None:
        for check in checks:
            self._say(f"  {'ok' if check['ok'] else 'FAILED'}  {check['name']} ({check['detail']})")

    def _say(self, *lines: str) -> None:
        self._out.print(*lines)


def _best(answer: dict[str, Any]) -> str:
    if not answer["citations"]:
        return "nobody: the documents do not answer"
    best = max(answer["sources"], key=lambda source: float(source["share"]))
    return f"{best['document_id']} ({best['share']:.0%})"
