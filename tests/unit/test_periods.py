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
