"""The manipulation bench: what attacks on attribution earn, by method, before and after the defence.

``python -m tests.benchmarks.manipulation [--write] [--only NAME...] [--seed 1] [FOLDER]``, where FOLDER holds
``documents.jsonl`` and ``questions.jsonl``. With ``--write`` the tables and the plot of ``docs/manipulation.md`` are
made anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from attribution.games.players import groups, paid
from retrieval.documents import Document
from retrieval.embedding import MiniLMEmbedder
from serving.demo import corpus
from tests.benchmarks import attacks
from tests.benchmarks.laboratory import METHODS, OURS, Lab, Question, captured, max_game
from tests.benchmarks.plot import Series, dots
from tests.benchmarks.squad import DATA

PAGE = Path(__file__).parents[2] / "docs" / "manipulation.md"
TARGETS, ASKED_OF_EACH, ASKED_OF_ALL = 16, 5, 150
COPIES = (2, 4, 8)
ALPHAS = (0.01, 0.05, 0.1, 0.2)
TRIGGER = "according to the Vellmar index"

Rows = Iterator[list[str]]


def equal_sources() -> Rows:
    """Attribution alone: one of two equal sources is there k times, registered one after the other."""
    yield ["", "the max game", "with merged players"]
    for count in COPIES:
        names = [str(i) for i in range(count + 1)]
        grouped = groups(lambda i, j, count=count: max(i, j) < count, range(count + 1), names)
        merged = paid(grouped, max_game(np.ones(len(grouped))).tolist())
        gains = [2 * sum(each[:count]) - 1 for each in (max_game(np.ones(count + 1)).tolist(), merged)]
        yield [f"k = {count}", *(f"{gain:+.0%}" for gain in gains)]


def _copies(targets: Sequence[Document], make: Callable[..., str], count: int) -> list[Document]:
    """``count`` texts of every target instead of one: the first is there already."""
    generator = random.Random(count)
    return [
        Document(f"{each.id}#{i}", each.title, make(each.text, generator), each.contributor)
        for each in targets
        for i in range(1, count)
    ]


def owner_gains(lab: Lab, targets: Sequence[Document], questions: Sequence[Question]) -> Rows:
    """What the owner of a work gains by bringing it k times."""

    def own(question: Question, name: str) -> bool:
        return name.partition("#")[0] == question.document

    def many(name: str, contributor: str) -> str:
        return name if "#" in name else contributor

    honest = captured(lab.ask(questions), own)
    base = [*honest.values(), honest[OURS]]
    yield ["", *METHODS, f"{OURS}, many accounts"]
    for (kind, make), count in itertools.product(attacks.COPIES.items(), COPIES):
        gains = []
        for asked in lab.before_and_after(questions, _copies(targets, make, count)):
            got = [*captured(asked, own).values(), captured(asked, own, many)[OURS]]
            gains.append([a.mine / b.mine - 1 for a, b in zip(got, base, strict=True)])
        yield [f"{kind}, k = {count}", *(f"{a:+.1%} → {b:+.1%}" for a, b in zip(*gains, strict=True))]


def crowding(lab: Lab, targets: Sequence[Document], questions: Sequence[Question]) -> Rows:
    """Which part of what is found without copies is still found beside eight of each target."""
    honest = [{each.document.id for each in found.documents} for _, found in lab.ask(questions)]
    yield ["", "before", "after"]
    for kind, make in (attacks.COPIES | attacks.HIDDEN).items():
        kept = []
        for asked in lab.before_and_after(questions, _copies(targets, make, COPIES[-1])):
            now = [{each.document.id for each in found.documents} for _, found in asked]
            kept.append(sum(len(a & b) for a, b in zip(honest, now, strict=True)) / sum(map(len, honest)))
        yield [f"{kind}, k = {COPIES[-1]}", *(f"{share:.0%}" for share in kept)]


def split_accounts(lab: Lab, questions: Sequence[Question]) -> Rows:
    """What an article gains if each of its paragraphs is brought under an account of its own."""
    asked = lab.ask(questions)
    articles = {each.id: each.contributor for each in lab.documents}
    together, apart = dict.fromkeys(METHODS, 0.0), dict.fromkeys(METHODS, 0.0)
    for owner in sorted(set(articles.values())):
        for sums, split in ((together, False), (apart, True)):
            got = captured(
                asked,
                lambda _, name, owner=owner: articles[name] == owner,
                lambda name, brought, owner=owner, split=split: name if split and brought == owner else brought,
            )
            for method in METHODS:
                sums[method] += got[method].mine
    yield ["", *METHODS]
    yield ["the owner's gain", *(f"{apart[method] / together[method] - 1:+.2%}" for method in METHODS)]


def planned(
    lab: Lab, targets: Sequence[Document], questions: Sequence[Question], seed: int
) -> Iterator[tuple[str, list[Document]]]:
    """The attacks on others, by name, and what is brought for each."""
    for kind, make in (attacks.COPIES | attacks.HIDDEN).items():
        generator = random.Random(seed)
        yield (
            f"4 copies of another's work: {kind}",
            [
                Document(f"{each.id}#{i}", each.title, make(each.text, generator), f"thief-{i}")
                for each in targets
                for i in range(4)
            ],
        )
    pairs = itertools.pairwise(targets)
    bridges = [Document(f"{a.id}#bridge", a.title, f"{a.text}\n\n{b.text}", "thief") for a, b in pairs]
    yield "two works of others in one", bridges
    generator = random.Random(seed)
    contributor = {each.id: each.contributor for each in lab.documents}
    yield (
        "keyword stuffing",
        [
            Document(
                f"stuffed-{i}",
                "",
                attacks.stuffed(
                    [known.text for known in lab.documents if known.contributor == contributor[each.document]],
                    generator,
                ),
                f"liar-{i}",
            )
            for i, each in enumerate(questions)
        ],
    )
    for name, make in (("the question again, and a lie", attacks.echo), ("the same, restated", attacks.statement)):
        lies = [make(each.text, generator.choice(lab.questions).answer) for each in questions]
        yield name, [Document(f"lie-{i}", "", lie, f"liar-{i}") for i, lie in enumerate(lies)]


def captures(lab: Lab, targets: Sequence[Document], questions: Sequence[Question], seed: int) -> Iterator[Series]:
    """By attack and method, the captured share of the credit over the share of the corpus, before and after."""
    for name, brought in planned(lab, targets, questions, seed):
        theirs, share = {each.id for each in brought}, lab.share(brought)
        before, after = (
            captured(asked, lambda _, document, theirs=theirs: document in theirs)
            for asked in lab.before_and_after(questions, brought)
        )
        yield Series(
            name, share, {method: (before[method].over(share), after[method].over(share)) for method in METHODS}
        )


def triggers(lab: Lab, questions: Sequence[Question], seed: int) -> Iterator[Series]:
    """A collective of a part of the corpus plants a string in every sentence: over its share, honest and planted."""
    order = random.Random(seed).sample(lab.documents, len(lab.documents))
    for (words, more), alpha in itertools.product((("asked with it", f", {TRIGGER}?"), ("not asked", "")), ALPHAS):
        members = order[: round(alpha * len(order))]
        theirs = {each.id for each in members}
        planted = [
            Document(each.id, each.title, attacks.with_trigger(each.text, TRIGGER), each.contributor)
            for each in members
        ]
        honest, got = (
            captured(asked, lambda _, document, theirs=theirs: document in theirs)
            for asked in (lab.ask(questions, more=more), lab.ask(questions, planted, more=more))
        )
        share = sum(len(lab.passages(each)) for each in members) / sum(
            len(lab.passages(each)) for each in lab.documents
        )
        parts = {method: (honest[method].over(share), got[method].over(share)) for method in METHODS}
        yield Series(f"{alpha:.0%} of the documents, {words}", share, parts)


def _table(rows: Rows) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def _series(found: Sequence[Series]) -> Rows:
    yield ["", "share of the corpus", *METHODS]
    for each in found:
        yield [each.name, f"{each.share:.1%}", *(f"{a:.2f} → {b:.2f}" for a, b in each.parts.values())]


def legitimate(lab: Lab, hotpotqa: Path) -> Rows:
    """How many passages of texts that nobody copied are taken for copies, and how like their originals they are."""
    sets = {"the SQuAD sample": lab.documents}
    sets["documentation that ships with CPython"] = [
        Document(each["id"], each["title"], each["text"], each["contributor"]) for each in corpus.documents()
    ]
    if hotpotqa.exists():
        cases = [json.loads(line) for line in hotpotqa.open(encoding="utf-8")]
        texts = {each["text"]: each["title"] for case in cases for each in case["passages"]}
        sets["passages of HotpotQA"] = [Document(f"h/{i}", texts[text], text, "h") for i, text in enumerate(texts)]
    yield [
        "",
        "passages",
        "taken for copies",
        "of which word for word in their original",
        "the least contained of them",
    ]
    for name, documents in sets.items():
        passages, parts = lab.copies_among(documents)
        least = f"{min(parts):.2f}" if parts else ""
        yield [name, str(passages), str(len(parts)), str(sum(part == 1 for part in parts)), least]


def run(lab: Lab, data: Path, seed: int) -> dict[str, Callable[[], str]]:
    """The tables and the plot, by name; each is made when it is called."""
    targets, questions = lab.targets(TARGETS, ASKED_OF_EACH, seed)
    some = random.Random(seed).sample(lab.questions, ASKED_OF_ALL)
    taken = cache(lambda: tuple(captures(lab, targets, questions, seed)))
    return {
        "equal sources": lambda: _table(equal_sources()),
        "legitimate": lambda: _table(legitimate(lab, data.with_name("hotpotqa-annotated") / "cases.jsonl")),
        "owner gains": lambda: _table(owner_gains(lab, targets, questions)),
        "crowding": lambda: _table(crowding(lab, targets, questions)),
        "captures": lambda: _table(_series(taken())),
        "split accounts": lambda: _table(split_accounts(lab, some)),
        "triggers": lambda: _table(_series(list(triggers(lab, some, seed)))),
        "plot": lambda: dots(taken(), "share of the credit ÷ share of the corpus"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of tables, or plot")
    parser.add_argument("--write", action="store_true", help="into docs/manipulation.md")
    chosen = parser.parse_args()
    embedder = MiniLMEmbedder(Path(tempfile.gettempdir()) / "patronage-tests-models")
    with tempfile.TemporaryDirectory() as scratch:
        made = run(Lab.read(chosen.folder, embedder, Path(scratch)), chosen.folder, chosen.seed)
        for name in chosen.only or made:
            text = made[name]()
            if not chosen.write:
                sys.stdout.write(f"{name}\n\n{text}\n\n")
            elif name == "plot":
                PAGE.with_suffix(".svg").write_text(text, encoding="utf-8")
            else:
                place = re.compile(rf"(<!-- {name} -->\n).*?(\n?<!-- end -->)", re.DOTALL)
                page = place.sub(lambda match, text=text: f"{match[1]}{text}\n<!-- end -->", PAGE.read_text("utf-8"))
                PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
