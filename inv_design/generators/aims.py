"""Aims: the targeted properties of a draft, as far as composition and volume tell them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from inv_design.generators.conditions import density
from inv_design.generators.forms import composition_keys

if TYPE_CHECKING:
    from inv_design.generators.property_model import PropertyModel


@dataclass
class Aim:
    """One targeted property.

    Attributes
    ----------
    name, target
        The property and its wanted value, positive, in its unit.
    model
        Predicts the property; for a density or a volume per atom, which follow exactly, only the volume.
    slack
        How much wider than for the first property its deviations count: composition tells it less well.
    remembered
        Composition key -> ln of the expected value, filled as it is asked for.
    """

    name: str
    target: float
    model: PropertyModel
    slack: float = 1.0
    remembered: dict[float, float] = field(default_factory=dict)

    def predict(self, counts: np.ndarray, cell_volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (value, standard deviation of its logarithm), each (n,), of atoms (n, 95) in volumes (n,) in Å^3."""
        if self.name == "density":
            return density(counts, cell_volumes), np.zeros(len(counts))
        if self.name == "volume_per_atom":
            return cell_volumes / counts.sum(1), np.zeros(len(counts))
        return self.model.predict(counts, cell_volumes)

    def expected_log(self, counts: np.ndarray) -> np.ndarray:
        """Return ln of the value (n,) of compositions (n, 95) at the volume expected for them."""
        keys, rows, inverse = np.unique(composition_keys(counts), return_index=True, return_inverse=True)
        names = keys.tolist()
        new = [i for i, key in enumerate(names) if key not in self.remembered]
        if new:
            logs = np.log(self._expected(counts[rows[new]])).tolist()
            self.remembered.update(zip([names[i] for i in new], logs, strict=True))
        return np.array([self.remembered[key] for key in names])[inverse]

    def _expected(self, counts: np.ndarray) -> np.ndarray:
        if self.name in ("density", "volume_per_atom"):
            return self.predict(counts, self.model.predict_volume(counts))[0]
        return self.model.predict_expected(counts)
