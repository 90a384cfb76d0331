"""Every value function that can be named is made here, and gives what it gave to 679746d too."""

from __future__ import annotations

import pytest

from attribution.runs.adopted import VALUE_FUNCTIONS
from metering.records import VALUE_ONE
from serving.assembly import open_valuing
from serving.generators import extractive
from serving.generators.grounded_answer import GroundedAnswer
from serving.settings import Settings
from serving.valuing.functions import Counterfactual, Rerun
from tests.unit.serving.generators.test_extractive import made

QUESTION = "When was the tower built?"
DOCUMENTS = (
    [("The tower was built in 1802 by Ada Holm.", 0.875, 0.75, 4.0), ("It has 212 steps.", 0.25, 0.0, 0.5)],
    [("Ada Holm built the mill in 1790.", 0.625, 0.5, 2.0)],
    [("The tower of the mill was built in 1811.", 0.75, 0.75, 3.5)],
)


@pytest.fixture
def grounded():
    """An extractive answer of two sentences over three documents, as its evidence has it."""
    retrieval = made(QUESTION, *DOCUMENTS)
    found = extractive.answer(retrieval)
    assert found.slots == 2
    return GroundedAnswer(retrieval, found.text, found.worths, found.slots)


def test_whatever_was_adopted_can_be_made():
    assert set(open_valuing(Settings(), lambda: pytest.fail("nothing is loaded yet"))._makers) == set(VALUE_FUNCTIONS)


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (
            Counterfactual(),
            [0, 672_386_107, 31_832_396, 703_984_406, 276_714_010, 948_866_020, 308_546_406, 948_866_020],
        ),
        (Rerun(), [0, 666_666_666, 480_000_000, 666_666_666, 666_666_666, VALUE_ONE, 666_666_666, VALUE_ONE]),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_a_function_gives_what_it_gave(grounded, function, given):
    assert function.table(grounded).tolist() == given
