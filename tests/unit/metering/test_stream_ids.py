from __future__ import annotations

from metering.stream_ids import BEFORE_ALL, following, order


def test_ids_are_ordered_by_their_numbers_and_not_by_their_text():
    ids = ["9-11", "10-0", "9-2", BEFORE_ALL, "10-9"]
    assert sorted(ids, key=order) == [BEFORE_ALL, "9-2", "9-11", "10-0", "10-9"]


def test_nothing_is_between_an_id_and_the_following_one():
    assert following("1700000000000-9") == "1700000000000-10"
    assert order("9-2") < order(following("9-2")) < order("10-0")
