"""Periods are calendar months in UTC."""

from __future__ import annotations

import pytest

from metering import periods


@pytest.mark.parametrize("text", ["2026-13", "2026-00", "26-01", "2026-1", "2026/01", "", "2026-01-01", "٢٠٢٦-01"])
def test_only_months_are_periods(text):
    with pytest.raises(periods.PeriodError):
        periods.parse(text)


def test_a_moment_belongs_to_its_month_in_utc():
    assert periods.of(0) == "1970-01"
    assert periods.of(1_772_323_199_999) == "2026-02"
    assert periods.of(1_772_323_200_000) == "2026-03"
    assert periods.day_of(1_772_323_199_999) == "2026-02-28"


def test_periods_follow_each_other_across_years():
    assert periods.following("2026-11") == "2026-12"
    assert periods.following("2026-12") == "2027-01"


def test_a_day_has_a_first_and_a_last_moment():
    assert periods.first_ms("2026-02-28") == 1_772_236_800_000
    assert periods.last_ms("2026-02-28") == 1_772_323_199_999
    assert periods.first_ms("1970-01-01") == 0
    assert periods.day_of(periods.last_ms("9999-12-31")) == "9999-12-31"


@pytest.mark.parametrize("text", ["2026-02-28T23:59:59.999Z", "2026-03-01T01:59:59.999+02:00"])
def test_a_moment_is_itself(text):
    assert periods.first_ms(text) == periods.last_ms(text) == 1_772_323_199_999


@pytest.mark.parametrize(
    "text",
    ["1970-01-01T00:00:00.000Z", "2514-05-30T01:53:04.001Z", "9999-12-31T23:59:59.999Z"],
)
def test_every_moment_that_is_taken_can_be_shown_exactly(text):
    assert periods.timestamp(periods.last_ms(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "yesterday",
            "2026-02-30",
            "2026-13-01",
            "2026-02-28T12:00:00",
            "1969-12-31",
            "0001-01-01T00:00:00Z",
            "1",
        ),
        *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "9999-12-31T23:59:59.999999-00:01"),
        *("1970-01-01T00:00:00+00:01", "10000-01-01T00:00:00Z"),
    ],
)
def test_what_is_no_moment_is_refused(text):
    with pytest.raises(periods.PeriodError, match="not a day such as"):
        periods.last_ms(text)
