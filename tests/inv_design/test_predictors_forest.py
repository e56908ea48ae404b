"""Descriptors, and tree ensembles that answer as scikit-learn does without its pickles."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor

from inv_design.datasets.mp_binaries import load_alloys
from inv_design.predictors.descriptors import descriptor_names, descriptors
from inv_design.predictors.element_properties import PROPERTIES, element_properties
from inv_design.predictors.forest import ExtraTrees, RandomForest, TreeArrays
from inv_design.predictors.protocol import Predictor
from inv_design.predictors.registry import load_predictor
from inv_design.predictors.target import Target
from inv_design.weights import pack, unpack


@pytest.fixture(scope="module")
def alloys() -> list:
    return load_alloys()[::8]


@pytest.fixture(scope="module")
def fitted(alloys) -> ExtraTrees:
    predictor = ExtraTrees(trees=30)
    predictor.fit([a.structure for a in alloys], [a.labels["bulk_modulus_vrh"] for a in alloys], seed=3)
    return predictor


def test_element_properties_hold_known_values_and_no_gaps():
    table = element_properties()
    column = {name: i for i, name in enumerate(PROPERTIES)}
    assert np.isfinite(table).all()
    assert table[26, column["X"]] == pytest.approx(1.83)
    assert np.exp(table[26, column["bulk_modulus"]]) == pytest.approx(170.0)
    assert np.exp(table[13, column["molar_volume"]]) == pytest.approx(16.6, abs=0.1)  # Å^3 per atom of fcc Al
    assert table[26, column["d_electrons"]] == 6
    assert table[31, column["d_electrons"]] == 0  # the filled 3d shell of Ga is core
    assert 100.0 < np.exp(table[76, column["bulk_modulus"]]) < 500.0  # Os is not tabulated: from its neighbours


def test_descriptors_of_a_known_crystal():
    nial = Structure(Lattice.cubic(2.88), ["Ni", "Al"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    row = dict(zip(descriptor_names(), descriptors([nial])[0], strict=True))
    assert row["mean_X"] == pytest.approx((1.91 + 1.61) / 2)
    assert row["spread_X"] == pytest.approx((1.91 - 1.61) / 2)
    assert (row["min_X"], row["max_X"]) == pytest.approx((1.61, 1.91))
    assert np.exp(row["log_volume_per_atom"]) == pytest.approx(2.88**3 / 2)
    assert np.exp(row["log_density"]) == pytest.approx(float(nial.density), rel=1e-3)
    assert row["mixing_entropy"] == pytest.approx(np.log(2))
    assert row["packing_fraction"] == pytest.approx(4.18879 * (1.25**3 + 1.43**3) / 2.88**3, rel=1e-4)
    assert descriptors([nial * (2, 1, 1)])[0] == pytest.approx(descriptors([nial])[0])


def test_descriptors_name_the_crystal_they_cannot_describe():
    good = Structure(Lattice.cubic(3.0), ["Fe"], [[0, 0, 0]])
    bad = Structure(Lattice.cubic(3.0), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    with pytest.raises(ValueError, match=r"index 1 .* partially occupied"):
        descriptors([good, bad])


@pytest.mark.parametrize("regressor", [ExtraTreesRegressor, RandomForestRegressor])
def test_trees_as_arrays_answer_bit_for_bit_as_sklearn(regressor, alloys):
    features = descriptors([a.structure for a in alloys])
    target = np.log10([a.labels["bulk_modulus_vrh"] for a in alloys])
    model = regressor(n_estimators=17, max_features=0.5, random_state=1).fit(features[::2], target[::2])
    arrays = TreeArrays.from_sklearn(model.estimators_)
    trees = arrays.predict(features)
    expected = np.array([tree.predict(features.astype(np.float32)) for tree in model.estimators_])
    assert np.array_equal(trees, expected)
    assert np.array_equal(RandomForest._mean(trees), model.predict(features))


def test_a_model_file_predicts_the_same(fitted, alloys):
    crystals = [a.structure for a in alloys[:20]]
    before = fitted.predict(crystals)
    after = load_predictor(fitted.to_bytes()).predict(crystals)
    assert np.array_equal(before.values, after.values)
    assert np.array_equal(before.std, after.std)
    assert (after.unit, after.property) == ("GPa", "bulk_modulus_vrh")
    assert isinstance(fitted, Predictor)


def test_it_learns_and_says_how_well(fitted, alloys):
    logs = np.log10([a.labels["bulk_modulus_vrh"] for a in alloys])
    dummy = np.abs(logs - np.median(logs)).mean()
    assert fitted.metrics["mae_log10"] < 0.5 * dummy
    assert fitted.metrics["n_holdout"] + fitted.metrics["n_train"] == len(alloys)


def test_a_property_with_both_signs_is_learned_as_it_is():
    crystals = [a.structure for a in load_alloys()[::4]]  # enough of them are held out to be judged
    values = np.array([c.volume / len(c) / 10.0 - c.composition.average_electroneg for c in crystals])
    predictor = ExtraTrees(Target("contrast", "a.u.", upper=1.0), trees=30)
    metrics = predictor.fit(crystals, values)
    assert predictor.target.scale == "linear"
    assert metrics["mae"] < 0.5 * np.abs(values - np.median(values)).mean()
    loaded = load_predictor(predictor.to_bytes())
    prediction = loaded.predict(crystals)
    assert prediction.values.max() == 1.0
    assert prediction.values.min() < 0.0
    assert np.array_equal(prediction.std, predictor.predict(crystals).std)
    assert loaded.validation is not None
    assert len(loaded.validation) == metrics["n_holdout"]


def test_a_crystal_that_fails_is_nan_with_its_error(fitted, alloys):
    bad = Structure(Lattice.cubic(3.0), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    result = fitted.predict([alloys[0].structure, bad])
    assert np.isfinite(result.values[0])
    assert np.isnan(result.values[1])
    assert np.isnan(result.std[1])
    assert result.errors[0] is None
    assert "partially occupied" in result.errors[1]
    assert len(fitted.predict([])) == 0


def test_damaged_model_files_are_refused(fitted):
    tensors, config = unpack(fitted.to_bytes())
    tensors["left"] = tensors["left"] + 10_000_000
    with pytest.raises(ValueError, match="point outside"):
        ExtraTrees.from_bytes(pack(tensors, config))
    with pytest.raises(ValueError, match="'extra_trees', expected 'forest'"):
        RandomForest.from_bytes(fitted.to_bytes())
    with pytest.raises(RuntimeError, match="not fitted"):
        ExtraTrees().to_bytes()
