"""What is learned of a property: the scale, the bounds, and the standard deviation on both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inv_design.predictors.target import Target

POSITIVE = st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=20).map(np.array)
ANY = st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=20).map(np.array)


@given(values=POSITIVE)
def test_a_logarithmic_target_comes_back(values):
    target = Target("hardness", "GPa", "log")
    assert target.decode(target.encode(values)) == pytest.approx(values)
    assert (target.metric("mae"), target.encoded_unit) == ("mae_log10", "log10(GPa)")


@given(values=ANY)
def test_a_linear_target_is_learned_as_it_is(values):
    target = Target("band_gap", "eV", "linear")
    assert np.array_equal(target.decode(target.encode(values)), values)
    assert (target.metric("mae"), target.encoded_unit) == ("mae", "eV")


@pytest.mark.parametrize("scale", ["log", "linear"])
@given(values=POSITIVE, std=st.floats(1e-4, 1.0))
def test_the_standard_deviation_in_the_unit_can_be_undone(scale, values, std):
    target = Target("x", "", scale)
    encoded = target.encode(values)
    linear = target.deviation(encoded, np.full(len(values), std))
    assert target.encoded_deviation(target.decode(encoded), linear) == pytest.approx(std, rel=1e-6)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1.0, 10.5], "log"),
        ([1.0, 10.0], "linear"),  # one decade is not more than one
        ([0.0, 300.0], "linear"),
        ([-1.0, 300.0], "linear"),
    ],
)
def test_the_labels_decide_the_scale_where_nothing_is_said(values, scale):
    assert Target.of("something").resolved(np.array(values)).scale == scale
    assert Target.of("something", scale="linear").resolved(np.array(values)).scale == "linear"
    assert Target.of("shear_modulus_vrh").resolved(np.array(values)).scale == "log"


def test_known_properties_have_unit_scale_and_bounds_that_a_user_may_overrule():
    target = Target.of("bulk_modulus_vrh")
    assert (target.unit, target.scale, target.lower, target.upper) == ("GPa", "log", 0.0, 1000.0)
    assert Target.of("e_above_hull").scale == "linear"
    own = Target.of("bulk_modulus_vrh", scale="linear", upper=700.0)
    assert (own.unit, own.scale, own.upper) == ("GPa", "linear", 700.0)
    assert Target.of("hardness", unit="GPa").unit == "GPa"


def test_predictions_are_clipped_and_labels_are_not():
    target = Target("band_gap", "eV", "linear", lower=0.0)
    assert target.decode(np.array([-0.3, 1.2])).tolist() == [0.0, 1.2]
    target.check(np.array([-0.3, 1.2]))
    assert Target.of("bulk_modulus_vrh").decode(np.array([2.0, 5.0])).tolist() == [100.0, 1000.0]
    # what lies above the bound has the uncertainty of the bound, not of the nonsense
    assert Target.of("bulk_modulus_vrh").deviation(np.array([9.0]), np.array([0.1]))[0] < 300.0


def test_what_cannot_be_learned_is_named():
    with pytest.raises(ValueError, match=r"-3\.0.* at index 1 is not positive"):
        Target("x", "", "log").check(np.array([1.0, -3.0]))
    with pytest.raises(ValueError, match=r"nan.* at index 0 is not finite"):
        Target("x", "", "linear").check(np.array([np.nan]))
    with pytest.raises(ValueError, match="scale 'log10' of x"):
        Target("x", "", "log10")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bounds 3\.0 and 2\.0"):
        Target("x", lower=3.0, upper=2.0)
    with pytest.raises(ValueError, match="not finite"):
        Target("x", upper=np.inf)


def test_a_model_file_keeps_the_target_and_old_ones_are_logarithmic():
    target = Target("band_gap", "eV", "linear", lower=0.0)
    assert Target.from_config({"target": target.as_config()}) == target
    old = Target.from_config({"property": "bulk_modulus_vrh", "unit": "GPa"})
    assert (old.property, old.unit, old.scale, old.upper) == ("bulk_modulus_vrh", "GPa", "log", None)
