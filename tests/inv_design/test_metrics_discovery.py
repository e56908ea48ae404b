"""Discovery metrics on campaigns that can be counted by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inv_design.metrics.discovery import (
    Acceleration,
    acceleration_factor,
    area_under_discovery_curve,
    discovery_curve,
    enhancement_factor,
    labels_to_reach,
)

EARLY = [True, True, False, False]
LATE = [False, False, True, True]
NONE = [False] * 4

campaigns = st.lists(st.booleans(), min_size=1, max_size=30)


def test_curve_counts_hits_and_stays_flat_where_labels_were_not_spent() -> None:
    assert discovery_curve(LATE).tolist() == [0, 0, 1, 2]
    assert discovery_curve([True], 3).tolist() == [1, 1, 1]
    assert discovery_curve([], 2).tolist() == [0, 0]
    with pytest.raises(ValueError, match="4 labels were spent with a budget of 3"):
        discovery_curve(EARLY, 3)


def test_area_by_hand() -> None:
    # of 1 + 2 + 3 + 4 = 10: 1 + 2 + 2 + 2 = 7 and 0 + 0 + 1 + 2 = 3
    assert area_under_discovery_curve(EARLY) == pytest.approx(0.7)
    assert area_under_discovery_curve(LATE) == pytest.approx(0.3)
    assert area_under_discovery_curve(NONE) == 0.0
    assert area_under_discovery_curve([True] * 7) == 1.0
    assert area_under_discovery_curve([True, True], 4) == pytest.approx(0.7)
    assert math.isnan(area_under_discovery_curve([]))


def test_enhancement_is_the_ratio_of_hits_at_equal_labels() -> None:
    assert enhancement_factor([True] * 3 + [False], [True, False, False, False]) == 3.0
    assert enhancement_factor(EARLY, LATE) == 1.0
    assert enhancement_factor(EARLY, LATE, 3) == 2.0
    assert enhancement_factor(EARLY, NONE) == math.inf
    assert enhancement_factor(NONE, EARLY) == 0.0
    assert math.isnan(enhancement_factor(NONE, NONE))
    # the longer one is cut: no arm gains by labels that the other did not have
    assert enhancement_factor([*NONE, True, True], EARLY) == 0.0


def test_acceleration_is_the_ratio_of_labels_for_equal_hits() -> None:
    assert labels_to_reach(LATE, 1) == 3
    assert labels_to_reach(LATE, 3) is None
    assert acceleration_factor(EARLY, LATE, 1) == Acceleration(3.0, "exact")
    assert acceleration_factor(EARLY, LATE, 2) == Acceleration(2.0, "exact")
    assert acceleration_factor(LATE, EARLY, 2) == Acceleration(0.5, "exact")


def test_acceleration_is_a_bound_where_one_never_came_that_far() -> None:
    assert acceleration_factor(EARLY, NONE, 2) == Acceleration(2.0, "at least")
    assert acceleration_factor(NONE, EARLY, 2) == Acceleration(0.5, "at most")
    never = acceleration_factor(NONE, NONE, 1)
    assert math.isnan(never.value)
    assert never.bound == "unknown"
    with pytest.raises(ValueError, match="at least 1 hit"):
        acceleration_factor(EARLY, LATE, 0)


@given(campaigns)
def test_against_itself_nothing_is_faster_or_richer(hits: list[bool]) -> None:
    assert 0.0 <= area_under_discovery_curve(hits) <= 1.0
    if any(hits):
        assert enhancement_factor(hits, hits) == 1.0
        assert acceleration_factor(hits, hits, sum(hits)) == Acceleration(1.0, "exact")


@given(campaigns, st.data())
def test_a_hit_more_or_earlier_never_lowers_the_area(hits: list[bool], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(hits) - 1))
    better = [*hits[:place], True, *hits[place + 1 :]]
    assert area_under_discovery_curve(better) >= area_under_discovery_curve(hits)
    assert area_under_discovery_curve(sorted(hits, reverse=True)) >= area_under_discovery_curve(hits)
