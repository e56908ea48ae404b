"""The generator's own judge: a property from composition and volume alone, before any coordinate is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from inv_design.generators.crystals import ELEMENTS, element_features
from inv_design.generators.gaussian_process import GaussianProcess

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass
class PropertyModel:
    """Predicts a positive property P, and the volume, from the composition.

    The base is an atomic stiffness per element (after Jin, Yuan & Gao 2023, Nat. Commun. 14, 4258),
    P V/n = sum x_e s_e, fitted robustly in logarithms; a Gaussian process on composition descriptors and the volume
    corrects it. A second process predicts ln(V / sum of atomic volumes) from the composition.

    Attributes
    ----------
    stiffness, volumes
        Atomic stiffness and atomic volume in Å^3, both (95,) by atomic number.
    descriptors
        Descriptors (m, d) of the training crystals in single precision; the last two are ln(V / sum of atomic volumes)
        and the base.
    """

    stiffness: np.ndarray
    volumes: np.ndarray
    descriptors: np.ndarray
    property_process: GaussianProcess
    volume_process: GaussianProcess

    @classmethod
    def fit(
        cls, counts: np.ndarray, cell_volumes: np.ndarray, values: np.ndarray, volumes: np.ndarray, *, seed: int = 0
    ) -> Self:
        """Fit to crystals.

        Parameters
        ----------
        counts
            Atoms of each element in the cell (m, 95).
        cell_volumes
            Cell volumes (m,) in Å^3.
        values
            Positive property values (m,).
        volumes
            Atomic volumes (95,) in Å^3.
        """
        stiffness = fit_stiffness(counts, cell_volumes, values)
        inputs = _single(np.column_stack(_descriptors(counts, cell_volumes, stiffness, volumes)))
        return cls(
            stiffness=stiffness,
            volumes=volumes,
            descriptors=inputs,
            property_process=GaussianProcess.fit(inputs, np.log(values) - inputs[:, -1], seed=seed),
            volume_process=GaussianProcess.fit(inputs[:, :-2], inputs[:, -2], seed=seed),
        )

    def extended(self, counts: np.ndarray, cell_volumes: np.ndarray, values: np.ndarray) -> PropertyModel:
        """Return the model conditioned on these data instead, with the elemental parameters it has."""
        inputs = _single(np.column_stack(_descriptors(counts, cell_volumes, self.stiffness, self.volumes)))
        return PropertyModel(
            stiffness=self.stiffness,
            volumes=self.volumes,
            descriptors=inputs,
            property_process=self.property_process.extended(inputs, np.log(values) - inputs[:, -1]),
            volume_process=self.volume_process.extended(inputs[:, :-2], inputs[:, -2]),
        )

    def predict(self, counts: np.ndarray, cell_volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (value, standard deviation of its logarithm) of the property, each (n,)."""
        composition, excess, base = _descriptors(counts, cell_volumes, self.stiffness, self.volumes)
        mean, deviation = self.property_process.predict(np.column_stack([composition, excess, base]))
        return np.exp(mean + base), deviation

    def predict_volume(self, counts: np.ndarray) -> np.ndarray:
        """Return the cell volume (n,) in Å^3 expected for compositions (n, 95)."""
        composition, _, _ = _descriptors(counts, np.ones(len(counts)), self.stiffness, self.volumes)
        return np.exp(self.volume_process.predict_mean(composition)) * (counts @ self.volumes)

    def predict_expected(self, counts: np.ndarray) -> np.ndarray:
        """Return the property (n,) of compositions (n, 95) at the volume expected for them."""
        cells = self.predict_volume(counts)
        composition, excess, base = _descriptors(counts, cells, self.stiffness, self.volumes)
        mean = self.property_process.predict_mean(np.column_stack([composition, excess, base]))
        return np.exp(mean + base)

    def to_tensors(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, configuration) that :meth:`from_tensors` takes back."""
        first, first_numbers = self.property_process.to_tensors("property_process")
        second, second_numbers = self.volume_process.to_tensors("volume_process")
        arrays = {
            "property_model.stiffness": self.stiffness,
            "property_model.volumes": self.volumes,
            "property_model.descriptors": self.descriptors.astype(np.float32),
        }
        return arrays | first | second, {"property_process": first_numbers, "volume_process": second_numbers}

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Self:
        """Return the model that :meth:`to_tensors` described."""
        data = dict(arrays)
        inputs = data["property_model.descriptors"].astype(np.float64)
        read = GaussianProcess.from_tensors
        return cls(
            stiffness=data["property_model.stiffness"],
            volumes=data["property_model.volumes"],
            descriptors=inputs,
            property_process=read("property_process", data, config["property_process"], inputs),
            volume_process=read("volume_process", data, config["volume_process"], inputs[:, :-2]),
        )


def _single(values: np.ndarray) -> np.ndarray:
    """Return values rounded to single precision, so that a model read from a file gives the very same numbers."""
    return values.astype(np.float32).astype(np.float64)


def count_elements(numbers: np.ndarray) -> np.ndarray:
    """Return atoms of each element (n, 95) for padded atomic numbers (n, sites); the padding 0 is not counted."""
    counts = np.zeros((len(numbers), ELEMENTS + 1))
    np.add.at(counts, (np.arange(len(numbers))[:, None], numbers), 1.0)
    counts[:, 0] = 0.0
    return counts


def fit_stiffness(counts: np.ndarray, cell_volumes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return atomic stiffness (95,) from a robust fit of ln(P V / n) = ln(sum x_e s_e).

    Elements that do not occur get the median.
    """
    fractions = torch.as_tensor(counts / counts.sum(1, keepdims=True))
    target = torch.as_tensor(np.log(values * cell_volumes / counts.sum(1)))
    middle = float(target.median())
    logs = torch.full((counts.shape[1],), middle, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logs], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        fitted = torch.log(fractions @ logs.exp())
        misfit = torch.nn.functional.huber_loss(fitted, target, delta=0.15, reduction="sum")
        (misfit + 0.02 * (logs - middle).square().sum()).backward()
        optimiser.step()
    return logs.detach().exp().numpy()


def _descriptors(
    counts: np.ndarray, cell_volumes: np.ndarray, stiffness: np.ndarray, volumes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return composition descriptors (n, d), ln(V / sum of atomic volumes) (n,) and the base ln P (n,)."""
    fractions = counts / counts.sum(1, keepdims=True)
    table = np.column_stack([element_features(), np.log(np.maximum(volumes, 1e-3)), np.log(stiffness)])
    mean = fractions @ table
    deviation = np.sqrt(np.maximum(fractions @ table**2 - mean**2, 0.0))
    excess = np.log(cell_volumes / (counts @ volumes))
    base = np.log((fractions @ stiffness) * counts.sum(1) / cell_volumes)
    return np.column_stack([mean, deviation]), excess, base
