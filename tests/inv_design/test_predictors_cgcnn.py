"""The CGCNN committee: what it must learn, must not depend on, and must say when it cannot."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from inv_design.datasets.mp_binaries import load_alloys
from inv_design.predictors import calibration
from inv_design.predictors.cgcnn import CGCNN, CGCNNConfig, PackedGraphs
from inv_design.predictors.ensemble import CGCNNEnsemble
from inv_design.predictors.graph import build_graph
from inv_design.predictors.packaged import packaged_training_set
from inv_design.predictors.protocol import Prediction, Predictor
from inv_design.predictors.registry import default_predictor, load_predictor, make_predictor, predictor_names
from inv_design.predictors.target import Target
from inv_design.predictors.training import TrainingConfig, train_network
from inv_design.weights import pack, unpack

SMALL = {"hidden": 16, "head": 24, "convolutions": 2, "committee": 2, "epochs": 12, "warm_epochs": 2, "batch_size": 16}


@pytest.fixture(scope="module")
def alloys() -> list:
    return load_alloys()[::6]


@pytest.fixture(scope="module")
def crystals(alloys) -> list[Structure]:
    return [a.structure for a in alloys]


@pytest.fixture(scope="module")
def moduli(alloys) -> list[float]:
    return [a.labels["bulk_modulus_vrh"] for a in alloys]


@pytest.fixture(scope="module")
def fitted(crystals, moduli) -> CGCNNEnsemble:
    predictor = CGCNNEnsemble(**SMALL)
    predictor.fit(crystals, moduli, seed=1)
    return predictor


def nial() -> Structure:
    return Structure(Lattice.cubic(2.88), ["Ni", "Al"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_it_learns(fitted, moduli):
    logs = np.log10(moduli)
    dummy = np.abs(logs - np.median(logs)).mean()
    assert fitted.metrics["mae_log10"] < 0.4 * dummy
    assert fitted.metrics["train_mae_log10"] < 0.4 * dummy
    assert fitted.metrics["n_holdout"] + fitted.metrics["n_train"] == len(moduli)


def test_the_seed_decides(crystals, moduli, fitted):
    short = {**SMALL, "epochs": 2, "committee": 1}
    runs = []
    for seed in (1, 1, 2):
        torch.rand(7)  # the global generator must not matter
        predictor = CGCNNEnsemble(**short)
        predictor.fit(crystals[:60], moduli[:60], seed=seed)
        runs.append(predictor.predict(crystals[:30]).values)
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_the_description_of_a_crystal_does_not_matter(fitted):
    crystal = nial()
    shift = np.array([0.3, 0.1, 0.7])
    rotated = Structure(crystal.lattice.matrix @ _rotation().T, crystal.species, crystal.frac_coords + shift)
    turned = Structure(crystal.lattice, ["Al", "Ni"], [[0.5, 0.5, 0.5], [0, 0, 0]])
    values = fitted.predict([crystal, rotated, turned, crystal * (2, 2, 1)]).values
    assert values == pytest.approx(values[0], rel=1e-4)


def test_a_batch_gives_what_single_crystals_give(fitted, crystals):
    together = fitted.predict(crystals[:40]).values
    alone = [fitted.predict([crystal]).values[0] for crystal in crystals[:40]]
    assert together == pytest.approx(alone, rel=1e-4)


def test_a_model_file_predicts_the_same(fitted, crystals):
    blob = fitted.to_bytes()
    loaded = load_predictor(blob)
    before, after = fitted.predict(crystals[:20]), loaded.predict(crystals[:20])
    assert np.array_equal(before.values, after.values)
    assert np.array_equal(before.std, after.std)
    assert loaded.metrics == fitted.metrics
    tensors, config = unpack(loaded.to_bytes())
    original, expected = unpack(blob)
    assert config == expected
    assert all(np.array_equal(tensors[name], original[name]) for name in original)
    assert isinstance(loaded, Predictor)


def test_model_files_that_do_not_fit_are_refused(fitted):
    tensors, config = unpack(fitted.to_bytes())
    with pytest.raises(ValueError, match="does not fit"):
        load_predictor(pack({k: v for k, v in tensors.items() if "last" not in k}, config))
    with pytest.raises(ValueError, match="does not fit"):
        load_predictor(pack(tensors, {**config, "settings": {**config["settings"], "hidden": 8}}))
    with pytest.raises(ValueError, match="no predictor is called 'magic'"):
        load_predictor(pack(tensors, {**config, "kind": "magic"}))


def test_a_crystal_that_fails_is_nan_with_its_error(fitted):
    lonely = Structure(Lattice.cubic(15.0), ["W"], [[0, 0, 0]])
    heavy = Structure(Lattice.cubic(3.0), ["Rf"], [[0, 0, 0]])
    result = fitted.predict([lonely, nial(), heavy])
    assert np.isnan(result.values[[0, 2]]).all()
    assert np.isnan(result.std[[0, 2]]).all()
    assert "no neighbour" in result.errors[0]
    assert "104" in result.errors[2]
    assert result.errors[1] is None
    assert result.values[1] > 0
    assert result.std[1] > 0
    assert len(fitted.predict([])) == 0


@pytest.mark.parametrize("volume", [0.3, 1.0, 300.0])
def test_an_absurd_volume_gives_a_finite_number(fitted, volume):
    crystal = nial()
    crystal.scale_lattice(2 * volume)
    result = fitted.predict([crystal])
    assert 0.0 < result.values[0] < 1e5
    assert 0.0 < result.std[0] < 1e6


@pytest.mark.parametrize("bad", [0.0, -3.0, math.nan, math.inf])
def test_a_value_that_is_not_a_modulus_is_named(crystals, moduli, bad):
    values = list(moduli)
    values[5] = bad
    with pytest.raises(ValueError, match="index 5"):
        CGCNNEnsemble(**SMALL).fit(crystals, values)


def test_a_training_crystal_without_a_graph_is_named(crystals, moduli):
    lonely = Structure(Lattice.cubic(15.0), ["W"], [[0, 0, 0]])
    with pytest.raises(ValueError, match="index 2 has no graph"):
        CGCNNEnsemble(**SMALL).fit([*crystals[:2], lonely], moduli[:3])


def test_warm_start_continues_and_keeps_the_held_out_groups(fitted, crystals, moduli):
    warm = CGCNNEnsemble(**SMALL)
    metrics = warm.fit(crystals, moduli, warm_start=fitted, seed=5)
    assert (warm.mean, warm.deviation) == (fitted.mean, fitted.deviation)
    cold = CGCNNEnsemble(**{**SMALL, "epochs": 2}).fit(crystals, moduli, seed=5)
    assert metrics["n_holdout"] == fitted.metrics["n_holdout"]
    assert metrics["mae_log10"] < cold["mae_log10"]
    assert metrics["train_mae_log10"] < 1.1 * fitted.metrics["train_mae_log10"]


def test_warm_start_from_a_model_that_saw_everything_holds_nothing_out_and_keeps_its_uncertainty(crystals, moduli):
    everything = CGCNNEnsemble(**{**SMALL, "epochs": 3}, holdout=0.0, scale=50.0)
    metrics = everything.fit(crystals, moduli)
    assert metrics["n_train"] == len(crystals)
    assert "mae_log10" not in metrics
    warm = CGCNNEnsemble(**SMALL)
    metrics = warm.fit(crystals, moduli, warm_start=everything)
    assert (metrics["n_train"], metrics["std_scale"]) == (len(crystals), 50.0)
    assert "mae_log10" not in metrics
    again = CGCNNEnsemble(**{**SMALL, "warm_epochs": 1})
    assert again.fit(crystals, moduli, warm_start=load_predictor(warm.to_bytes()))["n_train"] == len(crystals)


def test_warm_start_of_another_shape_is_refused(fitted, crystals, moduli):
    with pytest.raises(ValueError, match="hidden=8 cannot continue networks of hidden=16"):
        CGCNNEnsemble(**{**SMALL, "hidden": 8}).fit(crystals, moduli, warm_start=fitted)
    with pytest.raises(ValueError, match="fitted cgcnn"):
        CGCNNEnsemble(**SMALL).fit(crystals, moduli, warm_start=CGCNNEnsemble(**SMALL))


def test_warm_start_takes_over_the_shape_and_fills_a_larger_committee(fitted, crystals, moduli):
    wider = CGCNNEnsemble(committee=3, warm_epochs=1)
    wider.fit(crystals, moduli, warm_start=fitted)
    assert wider.network == fitted.network
    values = wider.predict_members([build_graph(nial())])[:, 0]
    assert len(set(values.tolist())) == 3
    assert load_predictor(wider.to_bytes()).predict([nial()]).values == wider.predict([nial()]).values


def test_weights_pull_towards_the_crystals_that_carry_them(crystals, moduli):
    doubled = [*crystals[:40], *crystals[:40]]
    values = [*moduli[:40], *(10.0 * k for k in moduli[:40])]
    settings = {**SMALL, "epochs": 8, "committee": 1, "holdout": 0.0}
    means = []
    for low, high in ((1.0, 0.0), (0.0, 1.0)):
        predictor = CGCNNEnsemble(**settings)
        predictor.fit(doubled, values, weights=[low] * 40 + [high] * 40)
        means.append(np.log10(predictor.predict(crystals[:40]).values).mean())
    assert means[1] - means[0] > 0.7


def test_progress_counts_every_epoch(crystals, moduli):
    seen: list[tuple[int, int]] = []
    settings = {**SMALL, "epochs": 2}
    CGCNNEnsemble(**settings).fit(crystals[:40], moduli[:40], progress=lambda k, n, _: seen.append((k, n)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_time_budget_shortens_the_training(crystals, moduli):
    seen: list[int] = []
    predictor = CGCNNEnsemble(**{**SMALL, "committee": 1, "epochs": 100_000}, time_budget=0.5)
    predictor.fit(crystals, moduli, progress=lambda k, *_: seen.append(k))
    assert 1 <= len(seen) < 1000


def test_the_packaged_predictor_knows_its_training_set_and_says_how_it_was_validated():
    alloys = load_alloys()[::4]
    predictor = default_predictor()
    result = predictor.predict([a.structure for a in alloys])
    errors = np.abs(np.log10(result.values) - np.log10([a.labels["bulk_modulus_vrh"] for a in alloys]))
    assert errors.mean() < 0.03
    assert result.errors == [None] * len(alloys)
    assert predictor.metrics["mae_log10"] <= 0.034
    assert 0.60 <= predictor.metrics["coverage_68"] <= 0.76
    with pytest.raises(ValueError, match="'band_gap'; there is one of bulk_modulus_vrh"):
        default_predictor("band_gap")


def test_the_shear_modulus_is_packaged_too():
    alloys = packaged_training_set("shear_modulus_vrh")
    assert len(alloys) == 1303
    assert all(1.0 <= a.labels["shear_modulus_vrh"] <= 1.5 * a.labels["bulk_modulus_vrh"] for a in alloys)
    predictor = default_predictor("shear_modulus_vrh")
    prediction = predictor.predict([a.structure for a in alloys[::8]])
    errors = np.abs(np.log10(prediction.values / [a.labels["shear_modulus_vrh"] for a in alloys[::8]]))
    assert (prediction.property, prediction.unit) == ("shear_modulus_vrh", "GPa")
    assert errors.mean() < 0.08
    assert errors.mean() < predictor.metrics["mae_log10"] < 0.11
    assert 0.60 <= predictor.metrics["coverage_68"] <= 0.76
    assert predictor.validation is not None  # out of fold, not the training error
    assert np.abs(predictor.validation.errors()).mean() == pytest.approx(predictor.metrics["mae_log10"], rel=1e-3)
    with pytest.raises(ValueError, match="have no 'band_gap'"):
        packaged_training_set("band_gap")


def test_the_packaged_predictor_ranks_metals_and_bears_distortion():
    predictor = default_predictor()
    tungsten = Structure(Lattice.cubic(3.17), ["W", "W"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    lead = Structure(Lattice.cubic(5.03), ["Pb"] * 4, [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    squeezed = nial()
    squeezed.scale_lattice(nial().volume * 0.95)
    values = predictor.predict([lead, nial(), tungsten, squeezed]).values
    assert values[0] < values[1] < values[2]
    assert values[1] == pytest.approx(158.0, rel=0.12)  # PBE
    assert values[3] == pytest.approx(values[1], rel=0.15)


def test_unknown_names_and_settings_are_quoted():
    assert {"cgcnn", "extra_trees", "forest"} <= set(predictor_names())
    with pytest.raises(ValueError, match="'cgnn'; choose from cgcnn"):
        make_predictor("cgnn")
    with pytest.raises(ValueError, match="unknown setting 'epoch'"):
        make_predictor("cgcnn", epoch=3)
    with pytest.raises(ValueError, match="forest"):
        make_predictor("forest", epochs=3)
    with pytest.raises(ValueError, match="epochs is 0"):
        make_predictor("cgcnn", epochs=0)


def contrast(crystal: Structure) -> float:
    """Return a made-up property with both signs: volume per atom over 10 Å^3, minus the mean electronegativity."""
    return crystal.volume / len(crystal) / 10.0 - crystal.composition.average_electroneg


def test_a_property_with_both_signs_is_learned_on_the_linear_scale(crystals):
    values = [contrast(c) for c in crystals]
    assert min(values) < 0.0 < max(values)
    predictor = CGCNNEnsemble(Target("contrast", "a.u.", lower=-0.5), **SMALL)
    metrics = predictor.fit(crystals, values, seed=1)
    assert predictor.target.scale == "linear"
    assert metrics["mae"] < 0.4 * np.abs(values - np.median(values)).mean()
    assert "mae_log10" not in metrics
    loaded = load_predictor(predictor.to_bytes())
    prediction = loaded.predict(crystals)
    assert (prediction.unit, prediction.property) == ("a.u.", "contrast")
    assert prediction.values.min() == -0.5  # clipped: there are labels below
    assert min(values) < -0.5
    assert loaded.target == predictor.target
    assert np.array_equal(prediction.std, predictor.predict(crystals).std)
    with pytest.raises(ValueError, match="cannot continue a predictor of 'contrast' with labels of 'bulk_modulus_vrh'"):
        CGCNNEnsemble(**SMALL).fit(crystals, values, warm_start=predictor)


def test_held_out_groups_give_reliability_and_pairs(crystals, moduli):
    fitted = CGCNNEnsemble(**{**SMALL, "epochs": 1, "committee": 2}, holdout=0.3)
    fitted.fit(crystals, moduli)
    validation = load_predictor(fitted.to_bytes()).validation
    assert validation is not None
    assert len(validation) == fitted.metrics["n_holdout"]
    assert set(np.float32(validation.values)) <= set(np.float32(moduli))
    assert np.abs(validation.errors()).mean() == pytest.approx(fitted.metrics["mae_log10"], rel=1e-4)
    observed = fitted.metrics["reliability"]["observed"]
    assert observed == sorted(observed)
    assert validation.reliability()["observed"] == pytest.approx(observed, abs=0.03)


def test_training_stops_early_and_the_same_seed_gives_the_same_bytes(crystals, moduli):
    settings = {**SMALL, "committee": 1, "epochs": 200, "learning_rate": 0.02, "validation": 0.2, "patience": 1}
    blobs, runs = [], []
    for _ in range(2):
        seen: list[tuple[int, int]] = []
        predictor = CGCNNEnsemble(**settings)
        predictor.fit(crystals[:80], moduli[:80], progress=lambda k, n, _, seen=seen: seen.append((k, n)))
        blobs.append(predictor.to_bytes())
        runs.append(seen)
    assert len(runs[0]) < 100
    assert runs[0][-1] == (200, 200)
    assert runs[0] == runs[1]
    assert blobs[0] == blobs[1]
    with pytest.raises(ValueError, match=r"validation is 1\.5"):
        CGCNNEnsemble(validation=1.5)


def test_the_network_that_is_kept_is_the_best_on_the_crystals_set_aside(crystals, moduli):
    packed = PackedGraphs([build_graph(c) for c in crystals[:80]])
    target = torch.tensor(np.log10(moduli[:80]) - 2.0, dtype=torch.float32)
    aside = np.arange(80) % 4 == 0
    network = CGCNNConfig(hidden=8, head=8, convolutions=1)
    errors = []
    for epochs in (1, 12):
        training = TrainingConfig(epochs=epochs, batch_size=16, patience=12)
        model = train_network(
            packed, target, torch.ones(80), network=network, training=training, seed=0, validation=aside
        )
        with torch.no_grad():
            judged = (model(packed.batch(torch.arange(80))) - target).abs().numpy()
        errors.append(judged[aside].mean())
    assert errors[1] < errors[0]


def test_distortion_changes_volume_and_distances_as_asked():
    packed = PackedGraphs([build_graph(nial())])
    index = torch.zeros(500, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    strained = packed.batch(index, strain=0.02, generator=generator)
    volumes = strained.volume_per_atom.numpy() / (2.88**3 / 2)
    assert volumes.std() == pytest.approx(0.02, rel=0.15)
    nearest = strained.distances[::2, 0].numpy() / (2.88 * math.sqrt(3) / 2)
    assert nearest**3 == pytest.approx(volumes, rel=1e-4)
    rattled = packed.batch(index, rattle=0.05, generator=generator)
    assert rattled.volume_per_atom.numpy() == pytest.approx(2.88**3 / 2)
    assert 0.01 < rattled.distances[:, 0].std() < 0.1


def test_gradients_reach_every_parameter():
    model = CGCNN(CGCNNConfig(hidden=8, head=8))
    packed = PackedGraphs([build_graph(nial()), build_graph(nial() * (2, 1, 1))])
    model(packed.batch(torch.tensor([0, 1]))).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_scale_covers_what_it_says():
    rng = np.random.default_rng(0)
    spreads = rng.uniform(0.5, 2.0, 4000)
    errors = rng.normal(size=4000) * 3.0 * spreads
    scale = calibration.scale_factor(errors[:2000], spreads[:2000])
    assert scale == pytest.approx(3.0, rel=0.06)
    assert calibration.coverage(errors[2000:], scale * spreads[2000:]) == pytest.approx(0.683, abs=0.03)


def test_half_width_is_the_interval_in_linear_units():
    log, std = np.array([2.0]), np.array([0.05])
    assert calibration.half_width(log, std) == pytest.approx((10**2.05 - 10**1.95) / 2)


def test_a_prediction_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="2 values, 1 std"):
        Prediction(np.zeros(2), np.zeros(1), "GPa", "bulk_modulus_vrh")


def _rotation() -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))
