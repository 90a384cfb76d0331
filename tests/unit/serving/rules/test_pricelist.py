"""Times in price lists: what can be shown again, and nothing else."""

from __future__ import annotations

import pytest

from metering import periods
from metering.periods import PeriodError
from metering.pricing import PriceError
from serving.rules.pricelist import moment

BEYOND = [
    "9999-12-31T23:59:59-12:00",
    "9999-12-31T23:59:59.999-00:01",
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00+00:01",
]
WRONG = [*BEYOND, "10000-01-01", "2026-13-01", "tomorrow", "", None, 5, [], "2026-12-01T00:00:00+99:00"]


@pytest.mark.parametrize("text", WRONG, ids=repr)
def test_what_is_no_time_is_refused(text: object):
    with pytest.raises(PriceError, match="not a time such as"):
        moment(text)


@pytest.mark.parametrize("text", BEYOND)
def test_so_it_is_where_time_is_asked_for_elsewhere(text: str):
    with pytest.raises(PeriodError):
        periods.first_ms(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
        ("9999-12-31T23:59:59+12:00", "9999-12-31T11:59:59.000Z"),
        ("2026-12-01", "2026-12-01T00:00:00.000Z"),
        ("2026-12-01T00:00:00.001", "2026-12-01T00:00:00.001Z"),
    ],
)
def test_a_time_is_shown_as_it_was_given(text: str, shown: str):
    assert periods.timestamp(moment(text)) == shown
