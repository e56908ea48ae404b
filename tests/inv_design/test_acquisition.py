"""The value of an uncertain candidate: cases by hand, limits, and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inv_design.config import PredictorConfig
from inv_design.predictors.calibration import half_width
from inv_design.screening.acquisition import (
    PRIOR_STD,
    combine,
    expected_gains,
    interval_probability,
    judge_error,
    log_std,
    target_probability,
)
from inv_design.screening.predictor import probability_reasons
from inv_design.screening.priority import rank

moduli, spreads = st.floats(20, 600), st.floats(0.1, 300)


def test_log_std_inverts_the_predictors_half_width():
    width = half_width(np.array([2.5]), np.array([0.06]))[0]
    assert log_std(10**2.5, width) == pytest.approx(0.06 * math.log(10))


def test_probability_of_one_sigma_is_68_percent():
    """Bounds at e^±s around the value are one standard deviation away."""
    s = 0.1
    found = interval_probability(300, 300 * math.sinh(s), low=300 * math.exp(-s), high=300 * math.exp(s))
    assert found == pytest.approx(0.682689, abs=1e-6)


def test_probability_agrees_with_simulation():
    value, std, target, tolerance = 300.0, 60.0, 350.0, 0.2
    drawn = value * np.exp(log_std(value, std) * np.random.default_rng(0).standard_normal(400_000))
    inside = np.mean(np.abs(drawn - target) / target <= tolerance)
    assert target_probability(value, std, target=target, tolerance=tolerance) == pytest.approx(inside, abs=0.004)


@pytest.mark.parametrize("std", [None, 0.0, math.nan, math.inf])
def test_without_an_uncertainty_it_is_the_plain_threshold(std):
    assert target_probability(281.0, std, target=350.0, tolerance=0.2) == 1.0
    assert target_probability(279.0, std, target=350.0, tolerance=0.2) == 0.0


@pytest.mark.parametrize("value", [None, math.nan, 0.0, -3.0])
def test_without_a_value_it_is_zero(value):
    assert target_probability(value, 10.0, target=350.0, tolerance=0.2) == 0.0


def test_a_wide_tolerance_leaves_the_lower_side_open():
    assert target_probability(1.0, 0.5, target=350.0, tolerance=1.0) == pytest.approx(1.0)
    assert interval_probability(300, 30, low=350, high=math.inf) == pytest.approx(
        1 - interval_probability(300, 30, low=0, high=350)
    )


def test_far_tails_keep_their_order():
    far = [target_probability(v, 5.0, target=350.0, tolerance=0.1) for v in (500, 480, 460, 440)]
    assert all(a < b for a, b in itertools.pairwise(far))
    assert far[0] > 0


@given(moduli, spreads, st.floats(50, 500), st.floats(0.05, 0.5), st.floats(0, 0.5))
def test_it_is_a_probability_that_grows_with_the_tolerance(value, std, target, tolerance, more):
    narrow = target_probability(value, std, target=target, tolerance=tolerance)
    assert 0 <= narrow <= target_probability(value, std, target=target, tolerance=tolerance + more) + 1e-12 <= 1 + 1e-9


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abc")), max_size=7))
def test_gains_sum_to_the_expected_number_of_systems_with_a_hit(items):
    probabilities, groups = [p for p, _ in items], [g for _, g in items]
    gains = expected_gains(probabilities, groups)
    expected = sum(1 - math.prod(1 - p for p, g in items if g == name) for name in set(groups))
    assert sum(gains) == pytest.approx(expected)
    assert all(gain <= p for gain, p in zip(gains, probabilities, strict=True))


def test_gains_by_hand():
    assert expected_gains([0.5, 0.8, 0.4], ["a", "a", "b"]) == pytest.approx([0.1, 0.8, 0.4])
    with pytest.raises(ValueError, match="1 groups for 2"):
        expected_gains([0.1, 0.2], ["a"])


def test_judge_error_is_drawn_to_no_bias_while_labels_are_few():
    assert judge_error([]) == (0.0, pytest.approx(PRIOR_STD))
    bias, std = judge_error([(100.0, 110.0)] * 1000)
    assert bias == pytest.approx(math.log(1.1), rel=0.01)
    assert std < 0.02
    assert 0 < judge_error([(100.0, 110.0)])[0] < math.log(1.1) / 5


def test_combining_two_judges():
    value, std = combine([(300.0, 30.0), (300.0, 30.0)])
    assert value == pytest.approx(300)
    assert log_std(value, std) == pytest.approx(log_std(300, 30) / math.sqrt(2))
    value, _ = combine([(400.0, 40.0), (200.0, 5.0)])
    assert 200 < value < 220
    assert combine([(None, None), (math.nan, 1.0)]) == (None, None)
    assert combine([(300.0, 30.0), (310.0, None)]) == (310.0, 0.0)


def test_ranks_by_threshold_probability_and_gain():
    candidates = [
        {"candidate_id": "vague", "value": 350.0, "std": 200.0, "chemsys": "Re-W"},
        {"candidate_id": "sure", "value": 360.0, "std": 10.0, "chemsys": "Re-W"},
        {"candidate_id": "same", "value": 362.0, "std": 10.0, "chemsys": "Re-W"},
        {"candidate_id": "other", "value": 310.0, "std": 40.0, "chemsys": "Ir-W"},
        {"candidate_id": "none", "value": None, "std": None, "chemsys": "Ir-W"},
    ]

    def order(acquisition):
        found = rank(candidates, target=350.0, acquisition=acquisition, tolerance=0.2)
        assert [c["priority"] for c in found] == sorted((c["priority"] for c in found), reverse=True)
        return [c["candidate_id"] for c in found]

    assert order("threshold") == ["vague", "sure", "same", "other", "none"]
    assert order("target_probability") == ["sure", "same", "other", "vague", "none"]
    assert order("expected_hits") == ["sure", "other", "same", "vague", "none"]


def test_stage_one_gives_the_doubtful_a_chance():
    """40 % off but vague passes where the paper's 30 % threshold rejects; 25 % off and sure does not."""
    records = {"bulk_modulus_vrh": {"value": 210.0, "std": 60.0}}
    targets = {"bulk_modulus_vrh": 350.0}
    assert probability_reasons(records, targets, least=0.05, tolerance=0.2) == []
    sure = {"bulk_modulus_vrh": {"value": 262.0, "std": 3.0}}
    (reason,) = probability_reasons(sure, targets, least=0.05, tolerance=0.2)
    assert reason.rule == "target_probability"
    assert "262.0 ± 3 GPa is within 20 % of 350 GPa with probability" in reason.message


def test_the_rule_is_the_papers_by_default_and_the_order_is_not():
    config = PredictorConfig()
    assert (config.acquisition, config.tolerance, config.min_probability) == ("expected_hits", 0.30, None)
