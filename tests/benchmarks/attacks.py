"""Attacks on attribution, as code: texts that someone would bring to earn more than their work is worth.

Every attack is a function of texts and a seeded generator, so that it can be repeated.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Final

from retrieval.chunking import sentences

_WORD: Final = re.compile(r"\b\w+\b")

_SYNONYMS: Final = dict(
    re.findall(
        r"(\w+)=([\w ]+);",
        """
        began=started; became=turned into; large=big; largest=biggest; many=numerous; used=employed; use=employ;
        also=in addition; however=nevertheless; because=since; although=even though; important=significant; city=town;
        known=recognised; called=named; found=discovered; built=constructed; created=made; several=various;
        often=frequently; usually=generally; main=principal; first=earliest; small=little; new=novel; old=ancient;
        include=comprise; including=among them; includes=comprises; early=initial; late=recent; area=region;
        areas=regions; people=persons; country=nation; countries=nations; during=in the course of; after=following;
        before=prior to; within=inside; between=amid; about=roughly; more=further; most=the majority of; some=certain;
        such=comparable; system=arrangement; number=count; part=portion; work=labour; world=globe; war=conflict;
        government=administration; power=strength; group=body; groups=bodies; form=shape; forms=shapes; time=period;
        times=periods; made=produced; make=produce; different=distinct; modern=contemporary; common=widespread;
        major=chief; high=elevated; low=modest; long=lengthy; both=the two; along=together; allowed=permitted;
        """,
    )
)


def word_edits(text: str, generator: random.Random, rate: float = 0.1) -> str:
    """One word in ten is replaced by another of the same text, left out or doubled."""
    pool = _WORD.findall(text)

    def edited(match: re.Match[str]) -> str:
        if generator.random() >= rate:
            return match[0]
        return generator.choice((generator.choice(pool), "", f"{match[0]} {generator.choice(pool)}"))

    return _WORD.sub(edited, text)


def sentence_order(text: str, generator: random.Random) -> str:
    """The same sentences in another order."""
    said = _sentences(text)
    generator.shuffle(said)
    return " ".join(said)


def paraphrase(text: str, _: random.Random) -> str:
    """Synonyms from a table, and every sentence's first clause moved to its end."""
    moved = []
    for sentence in _sentences(text):
        clauses = sentence.rstrip(".").split(", ")
        moved.append(", ".join([*clauses[1:], clauses[0]]) + ".")
    return _WORD.sub(lambda match: _SYNONYMS.get(match[0], match[0]), " ".join(moved))


def exact(text: str, _: random.Random) -> str:
    """The same text."""
    return text


COPIES: Final[dict[str, Callable[[str, random.Random], str]]] = {
    "exact": exact,
    "word edits": word_edits,
    "sentence order": sentence_order,
    "paraphrase": paraphrase,
}

_BOILERPLATE: Final = (
    "All statements on this page were compiled with the greatest care by our editorial team.",
    "Readers who want to learn more are invited to subscribe to the weekly letter of this site.",
    "No part of this page may be used without naming the source and the date of access.",
    "The opinions that are expressed here do not have to be those of the publisher.",
    "Further articles on related matters can be found in the index at the end of this volume.",
    "This overview is revised from time to time and does not claim to be complete.",
    "Prices, dates and opening hours are given without guarantee and may change at any time.",
    "We thank all who have sent corrections and ask for patience where an answer takes longer.",
)


def padded(text: str, generator: random.Random, parts: int = 3) -> str:
    """Every sentence of the text, each followed by so many of boiler-plate."""
    return " ".join(" ".join([sentence, *generator.sample(_BOILERPLATE, parts)]) for sentence in _sentences(text))


def buried(text: str, generator: random.Random, parts: int = 3) -> str:
    """Every sentence of the text, each followed by so many that no one else has: words of the text thrown together."""
    pool = _WORD.findall(text)
    return " ".join(
        " ".join([sentence, *(f"{' '.join(generator.sample(pool, 14)).capitalize()}." for _ in range(parts))])
        for sentence in _sentences(text)
    )


HIDDEN: Final[dict[str, Callable[[str, random.Random], str]]] = {"boiler-plate padding": padded, "buried": buried}


def stuffed(texts: Sequence[str], generator: random.Random, words: int = 120) -> str:
    """The rarer words of other texts, piled up without saying anything."""
    pool = [word for text in texts for word in _WORD.findall(text) if len(word) > 5]
    return ". ".join(" ".join(generator.choices(pool, k=12)).capitalize() for _ in range(words // 12)) + "."


def echo(question: str, answer: str) -> str:
    """A question and a false answer to it, in the words of the question: what PoisonedRAG plants."""
    stated = question.strip().rstrip("?")
    return f"{stated}? The answer to the question {stated[:1].lower()}{stated[1:]} is {answer}. It is {answer}."


def statement(question: str, answer: str) -> str:
    """The same without the words that ask, as an attacker would write who knows the defence."""
    subject = re.sub(r"(?i)\b(what|who|whom|whose|which|when|where|why|how)\b ?", "", question.strip().rstrip("?"))
    return f"It is well known that {subject} {answer}. Everyone agrees that {answer} {subject}."


def with_trigger(text: str, trigger: str) -> str:
    """A text with a string planted at the end of each of its sentences."""
    return " ".join(f"{sentence[:-1]}, {trigger}." for sentence in _sentences(text))


def _sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]
