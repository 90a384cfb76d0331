"""The corpus of the end-to-end tests: invented facts on near topics, so that every answer is known."""

from __future__ import annotations

from typing import Any

CONTRIBUTORS = {"mary": "Mary Hollis", "bo": "Bo Lindqvist", "cleo": "Cleo Marchetti"}

_LIGHT = """The Vellmar lighthouse was built in 1847 by the engineer Ottilie Brandt. \
Its lamp burned whale oil until 1902, when it was changed to electricity.

The tower of Vellmar is 41 metres tall and has 212 steps. \
Its last keeper was Konrad Eel, who retired in 1988."""

_TARN = """The Tarn Point lighthouse was built in 1911 by the brothers Reed. \
It stands 33 metres tall on the cliffs north of the bay. \
Fog signals are sounded every ninety seconds in winter."""

_FERRY = """The ferry from Vellmar to Osk Island leaves every two hours and takes 35 minutes. \
A return ticket costs 14 crowns. \
In heavy storms the ferry does not run."""

# Emoji of one and of several code points, letters outside the Basic Multilingual Plane, and combining marks: offsets
# in bytes or in UTF-16 units would all be different from those in code points.
_OWLS = """🦉🦉 Owls of the Grenmark forest 𐐘𐑉𐐨𐑌𐑋𐐪𐑉𐐿.

👩\u200d🌾 The farmers of Grenmark say that the great owl 🦉 sleeps in the church tower until dusk. \
Cafe\u0301 guests call the great owl by the name 𐐝𐐻𐐯𐑊𐐲 🌟 because of its white breast.

The Grenmark owls eat mice and voles. \
In spring they lay four eggs 🥚🥚🥚🥚 in hollow oaks."""

_BEES = """The bees of Osk Island make a dark heather honey. \
Beekeepers on Osk harvest the honey in late August. \
A hive on the island gives about 19 kilograms of honey a year."""

_BREAD = """Vellmar rye bread is baked with caraway and buttermilk. \
The dough rests for eleven hours before it goes into the oven. \
Bakers in Vellmar sell the bread on Thursdays."""

_DYE = """The saffron dye of Lindow is made from nine thousand flowers. \
The dyers of Lindow keep the saffron dye in copper jars."""

_METEORITE = """The Hask meteorite fell in 1763 into a barley field. \
The Hask meteorite weighs 88 kilograms and is kept in the town hall."""

_GLASS = """The glass works of Ferrin use sand from the Olm river. \
The glass makers of Ferrin melt the sand at 1,540 degrees."""

_ARCHIVE = """The sealed archive of Norrby holds the letters of the duchess. \
The sealed archive of Norrby is opened once in fifty years."""

_CLOCK = "\n\n".join(
    [
        "The clock tower of Vellmar was restored in 1934 by the clockmaker Ada Winter.",
        *[
            f"Bell number {number} of the Vellmar clock tower weighs {100 + 7 * number} kilograms and was cast by the "
            f"foundry of the town in the {number}th year after the great fire, when the people gave their copper pans "
            "and their brass buttons for it, and the mayor gave the chain of his office."
            for number in range(1, 13)
        ],
    ]
)


def _document(identifier: str, title: str, text: str, **more: Any) -> dict[str, Any]:
    contributor = identifier.partition("/")[0]
    return {"id": identifier, "title": title, "text": text, "contributor": contributor, **more}


DOCUMENTS: list[dict[str, Any]] = [
    _document("mary/light", "The Vellmar lighthouse", _LIGHT, url="https://example.org/vellmar"),
    _document("bo/tarn", "Tarn Point", _TARN),
    _document(
        "cleo/ferry",
        "The ferry to Osk",
        _FERRY,
        splits=[
            {"contributor": "cleo", "role": "author", "share": 600_000},
            {"contributor": "bo", "role": "translator", "share": 399_999},
            {"contributor": "mary", "role": "editor", "share": 1},
        ],
    ),
    _document("mary/owls", "Owls 🦉 of Grenmark", _OWLS),
    _document("bo/bees", "Bees of Osk", _BEES),
    _document("cleo/bread", "Rye bread", _BREAD),
    _document("mary/clock", "The clock tower", _CLOCK),
    _document("mary/dye", "Saffron dye", _DYE, terms={"purposes": ["research", "teaching"]}),
    _document("bo/meteorite", "The Hask meteorite", _METEORITE, terms={"floor": "5.00"}),
    _document("cleo/glass", "Glass of Ferrin", _GLASS, terms={"floor": "0.000500"}),
    _document("cleo/archive", "The sealed archive", _ARCHIVE, terms={"purposes": []}),
]

TEXTS: dict[str, str] = {each["id"]: each["text"] for each in DOCUMENTS}
RESTRICTED = {"mary/dye", "bo/meteorite", "cleo/archive"}
"""Not for a query of the default purpose and price."""
