"""Stacking: two parents with independent errors together, and what happens where one of them is missing."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Composition

from inv_design.predictors.stacked import StackedPredictor
from inv_design.predictors.target import Target

ELEMENTS = ("W", "Mo", "Ta", "Nb", "Re", "Al", "Ni", "Ti")


class Made:
    """Crystals with known moduli, a committee and a potential with independent errors of 0.04 in log10.

    The potential is soft by a tenth, and softer still for every crystal with Al.
    """

    def __init__(self, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        pairs = [rng.choice(ELEMENTS, 2, replace=False) for _ in range(n)]
        self.compositions = [Composition({a: int(rng.integers(1, 4)), b: 1}) for a, b in pairs]
        log = rng.uniform(1.5, 2.6, n)
        aluminium = np.array([c.get_atomic_fraction("Al") for c in self.compositions])
        self.values = 10.0**log
        self.committee = log + 0.04 * rng.normal(size=n)
        self.std = np.full(n, 0.04)
        self.potential = 10.0 ** (log - 0.046 - 0.2 * aluminium + 0.04 * rng.normal(size=n))
        self.volumes = rng.uniform(10.0, 25.0, n)

    def inputs(self) -> tuple:
        return self.committee, self.potential, self.volumes, self.compositions

    def error(self, log: np.ndarray) -> float:
        return float(np.abs(log - np.log10(self.values)).mean())


@pytest.fixture(scope="module")
def train() -> Made:
    return Made(400, 0)


@pytest.fixture(scope="module")
def new() -> Made:
    return Made(300, 1)


@pytest.fixture(scope="module")
def fitted(train) -> StackedPredictor:
    predictor = StackedPredictor(mlip="chgnet")
    predictor.fit(*train.inputs(), train.values, committee_std=train.std)
    return predictor


def test_together_they_know_more_than_either(fitted, new):
    prediction = fitted.predict(*new.inputs(), committee_std=new.std)
    error = new.error(np.log10(prediction.values))
    assert error < 0.8 * new.error(new.committee)
    assert error < 0.5 * new.error(np.log10(new.potential))
    assert prediction.errors == [None] * 300
    assert (prediction.unit, prediction.property) == ("GPa", "bulk_modulus_vrh")
    std = Target.of("bulk_modulus_vrh").encoded_deviation(prediction.values, prediction.std)
    assert 0.6 < (np.abs(np.log10(prediction.values / new.values)) <= std).mean() < 0.76


def test_the_metrics_are_those_of_crystals_that_were_not_fitted(fitted, train, new):
    metrics = fitted.metrics
    unseen = new.error(np.log10(fitted.predict(*new.inputs(), committee_std=new.std).values))
    assert metrics["mae_log10"] == pytest.approx(unseen, rel=0.15)
    assert metrics["committee_mae_log10"] == pytest.approx(train.error(train.committee))
    assert metrics["mlip_mae_log10"] == pytest.approx(train.error(np.log10(train.potential)))
    assert metrics["reliability"]["observed"] == pytest.approx(metrics["reliability"]["nominal"], abs=0.08)


def test_a_potential_that_knows_nothing_does_little_harm(train, new):
    rng = np.random.default_rng(5)
    predictor = StackedPredictor()
    predictor.fit(train.committee, rng.uniform(10, 400, 400), train.volumes, train.compositions, train.values)
    noise = rng.uniform(10, 400, 300)
    values = predictor.predict(new.committee, noise, new.volumes, new.compositions).values
    assert new.error(np.log10(values)) < 1.1 * new.error(new.committee)


def test_a_crystal_that_the_potential_failed_for_is_nan_with_its_error(fitted, train, new):
    potential = new.potential.copy()
    potential[:3] = [np.nan, -5.0, 0.0]
    prediction = fitted.predict(new.committee, potential, new.volumes, new.compositions)
    assert np.isnan(prediction.values[:3]).all()
    assert np.isfinite(prediction.values[3:]).all()
    assert "-5" in str(prediction.errors[1])
    broken = train.potential.copy()
    broken[:40] = np.nan
    metrics = StackedPredictor().fit(train.committee, broken, train.volumes, train.compositions, train.values)
    assert metrics["n_train"] == 360


def test_a_model_file_predicts_the_same(fitted, new):
    loaded = StackedPredictor.from_bytes(fitted.to_bytes())
    before = fitted.predict(*new.inputs(), committee_std=new.std)
    after = loaded.predict(*new.inputs(), committee_std=new.std)
    assert np.array_equal(before.values, after.values)
    assert np.array_equal(before.std, after.std)
    assert (loaded.mlip, loaded.metrics) == ("chgnet", fitted.metrics)
    assert loaded.to_bytes() == fitted.to_bytes()


def test_what_cannot_be_stacked_is_said(train):
    with pytest.raises(ValueError, match="399 moduli of the potential"):
        StackedPredictor().fit(train.committee, train.potential[1:], train.volumes, train.compositions, train.values)
    with pytest.raises(ValueError, match="4 crystals of"):
        StackedPredictor().fit(*(part[:4] for part in train.inputs()), train.values[:4])
    with pytest.raises(ValueError, match="index 2 is not positive"):
        StackedPredictor().fit(*train.inputs(), np.where(np.arange(400) == 2, -1.0, train.values))
    with pytest.raises(ValueError, match="only moduli"):
        StackedPredictor("band_gap")
    with pytest.raises(RuntimeError, match="not fitted"):
        StackedPredictor().predict(*train.inputs())
