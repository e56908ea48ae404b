"""The generator's own judge on laws it must be able to learn."""

from __future__ import annotations

import numpy as np
import pytest

from inv_design.generators.crystals import reference_volumes
from inv_design.generators.gaussian_process import GaussianProcess
from inv_design.generators.property_model import PropertyModel, count_elements, fit_stiffness


def test_gaussian_process_learns_a_smooth_function_and_leaves_out_outliers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 3))
    y = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] + 0.01 * rng.normal(size=150)
    y[:3] += 5.0
    model = GaussianProcess.fit(x, y, steps=60)
    assert len(model.inputs) <= 147
    new = 0.7 * rng.normal(size=(100, 3))
    mean, deviation = model.predict(new)
    assert np.abs(mean - np.sin(2 * new[:, 0]) - 0.5 * new[:, 1]).mean() < 0.1
    _, far = model.predict(np.full((1, 3), 8.0))
    assert far[0] > 3 * np.median(deviation)


def test_gaussian_process_survives_a_file_exactly():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 2))
    model = GaussianProcess.fit(x, rng.normal(size=60), steps=5)
    again = GaussianProcess.from_tensors("p", *model.to_tensors("p"), x)
    new = rng.normal(size=(7, 2))
    np.testing.assert_allclose(again.predict(new)[0], model.predict(new)[0], rtol=1e-9)
    assert model.predict(np.zeros((0, 2)))[0].shape == (0,)


def test_stiffness_recovers_an_additive_law():
    rng = np.random.default_rng(0)
    stiffness = {13: 8.0, 22: 12.0, 75: 40.0}
    numbers = np.array([rng.choice(list(stiffness), size=4) for _ in range(80)])
    counts = count_elements(numbers)
    volumes = np.full(80, 60.0)
    values = np.array([sum(stiffness[z] for z in row) / 60.0 for row in numbers.tolist()])
    assert fit_stiffness(counts, volumes, values)[[13, 22, 75]] == pytest.approx([8.0, 12.0, 40.0], rel=0.03)


def test_property_model_follows_composition_and_volume():
    rng = np.random.default_rng(0)
    elements = np.array([13, 22, 28, 40, 74, 75, 77, 78])
    volumes = reference_volumes()
    numbers = rng.choice(elements, size=(120, 4))
    counts = count_elements(numbers)
    cells = counts @ volumes * np.exp(0.02 * rng.normal(size=120))
    values = (counts @ (elements_stiffness() * (counts.sum(0) > 0))) / cells * (counts @ volumes / cells) ** 4
    model = PropertyModel.fit(counts[:100], cells[:100], values[:100], volumes)
    predicted, _ = model.predict(counts[100:], cells[100:])
    assert np.median(np.abs(predicted / values[100:] - 1)) < 0.06
    smaller, _ = model.predict(counts[100:], 0.97 * cells[100:])
    assert np.mean(smaller > predicted) > 0.9
    expected = model.predict_volume(counts[100:])
    np.testing.assert_allclose(model.predict_expected(counts), model.predict(counts, model.predict_volume(counts))[0])
    assert np.median(np.abs(np.log(expected / cells[100:]))) < 0.04
    extended = model.extended(counts, cells, values)
    again, _ = extended.predict(counts[100:], cells[100:])
    assert np.abs(again / values[100:] - 1).mean() < np.abs(predicted / values[100:] - 1).mean()


def elements_stiffness() -> np.ndarray:
    return 100.0 * (1.0 + np.arange(95) % 7)
