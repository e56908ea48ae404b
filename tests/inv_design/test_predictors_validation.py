"""Out-of-sample pairs and the reliability of a standard deviation."""

from __future__ import annotations

import numpy as np
import pytest

from inv_design.predictors.target import Target
from inv_design.predictors.validation import LEVELS, TENSOR, Validation, cross_scaled

N = 4000
PARTS = [np.arange(k, N, 5) for k in range(5)]


def made(target: Target, factor: float = 1.0) -> Validation:
    """Return a validation with normal errors of 0.05 and raw spreads of 0.02 to 0.08, all wrong by ``factor``."""
    rng = np.random.default_rng(0)
    encoded = rng.uniform(1.0, 2.5, N)
    spreads = rng.uniform(0.02, 0.08, N)
    values = target.decode(encoded - rng.normal(size=N) * spreads)
    return Validation.of(target, values, encoded, factor * spreads, parts=PARTS, scale=1.0, origin="5 parts")


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_normal_errors_are_reliable_at_every_level_whatever_the_raw_spreads_were(scale):
    validation = made(Target("x", "GPa", scale), factor=7.0)
    reliability = validation.reliability()
    assert reliability["nominal"] == [round(level, 4) for level in LEVELS]
    assert reliability["observed"] == pytest.approx(reliability["nominal"], abs=0.03)
    metrics = validation.metrics()
    assert metrics["coverage_68"] == pytest.approx(0.683, abs=0.02)
    assert metrics["mae_log10" if scale == "log" else "mae"] == pytest.approx(0.05 * np.sqrt(2 / np.pi), rel=0.1)


def test_too_small_a_std_shows():
    honest = made(Target("x", "", "linear"))
    vain = Validation(honest.target, honest.values, honest.predictions, honest.std / 2.0, "")
    assert vain.reliability((0.6827,))["observed"][0] < 0.45


def test_the_errors_of_a_part_do_not_scale_its_own_spreads():
    rng = np.random.default_rng(1)
    errors, spreads = rng.normal(size=100), np.ones(100)
    parts = [np.arange(50), np.arange(50, 100)]
    before = cross_scaled(errors, spreads, parts, 1.0)
    errors[:50] *= 100.0
    after = cross_scaled(errors, spreads, parts, 1.0)
    assert np.array_equal(before[:50], after[:50])
    assert (after[50:] > 50.0 * before[50:]).all()
    assert cross_scaled(errors, spreads, [np.arange(100)], 3.0).tolist() == [3.0] * 100  # nothing else to scale with


def test_the_pairs_survive_a_file():
    validation = made(Target("x", "GPa", "log"))
    tensors, config = {TENSOR: validation.as_tensor()}, {"validation": {"origin": "5 parts"}}
    loaded = Validation.from_file(tensors, config, validation.target)
    assert loaded is not None
    assert loaded.predictions == pytest.approx(validation.predictions, rel=1e-6)
    assert loaded.reliability()["observed"] == pytest.approx(validation.reliability()["observed"], abs=1e-3)
    assert Validation.from_file({}, {}, validation.target) is None


def test_columns_of_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="2 values, 2 predictions and 1 std"):
        Validation(Target("x"), np.zeros(2), np.zeros(2), np.zeros(1), "")
