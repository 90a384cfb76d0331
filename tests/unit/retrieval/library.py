"""A small library for tests: short works on unlike subjects, and the shortest way from a text into a catalogue."""

from __future__ import annotations

from typing import Any, Final

from retrieval.catalogue import Catalogue, Change, prepare
from retrieval.documents import Document, DocumentError
from retrieval.embedding import Embedder

TEXTS: Final = {
    "lighthouse": "The lighthouse at Cape Hatteras was built in 1870. Its lamp is visible from twenty miles at sea. "
    "Keepers lived in the tower with their families until it was automated.",
    "sourdough": "Sourdough bread rises with wild yeast instead of baker's yeast. The starter is fed with flour and "
    "water every day. A sour taste comes from the lactic acid of bacteria.",
    "glacier": "A glacier forms where more snow falls than melts. Under its own weight the ice flows downhill. "
    "The Aletsch glacier is the longest in the Alps.",
    "violin": "A violin has four strings tuned in fifths. Antonio Stradivari made the most famous violins in Cremona. "
    "The bow is strung with horse hair.",
    "octopus": "An octopus has three hearts and blue blood. It changes the colour of its skin within a second. "
    "Most species live only one or two years.",
    "vaccine": "A vaccine trains the immune system to recognise a disease. Edward Jenner tested the first vaccine "
    "against smallpox in 1796.",
    "railway": "The first public railway with steam locomotives opened between Stockton and Darlington in 1825. "
    "It carried coal as well as passengers.",
    "chess": "In chess the bishop moves along the diagonals. Castling moves the king and a rook in one turn. "
    "A game is lost when the king is checkmated.",
    "volcano": "Mount Vesuvius buried Pompeii in the year 79. Volcanoes stand where magma rises through the crust. "
    "Ash makes the soil around them fertile.",
    "coffee": "Coffee plants grow between the tropics. The beans are roasted at about two hundred degrees. "
    "Espresso is brewed under a pressure of nine bars.",
    "comet": "A comet is a body of ice and dust that circles the sun. Halley's comet returns every 76 years. "
    "Its tail always points away from the sun.",
    "paper": "Paper was invented in China during the Han dynasty. Wood pulp replaced rags as its raw material "
    "in the nineteenth century.",
    "bees": "Honey bees tell each other with a dance where flowers are. A hive has one queen and thousands of workers. "
    "Wax comes from glands on the belly of a bee.",
    "concrete": "Roman concrete was made with volcanic ash and has lasted two thousand years. "
    "Modern concrete is reinforced with steel bars.",
}


def document(name: str, text: str | None = None, **fields: Any) -> Document:
    """A document of the library, or another text, brought by ``ana`` unless said otherwise."""
    return Document(**{"id": name, "title": name.title(), "text": text or TEXTS[name], "contributor": "ana"} | fields)


def shelf() -> list[Document]:
    """The whole library, in the order above."""
    return [document(name) for name in TEXTS]


def bring(catalogue: Catalogue, embedder: Embedder, *documents: Document) -> list[Change | DocumentError]:
    """Prepare and put documents, in one transaction."""
    return catalogue.put([(each, prepare(each, embedder)) for each in documents], embedder.name)
