"""The ASE calculator of a MACE network, with batched evaluation beside the usual one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

    from inv_design.calculators.mace_model import MaceEvaluator


BATCHES = {"cpu": 16, "cuda": 256}
"""Device -> crystals in lockstep: a core's caches are full with few, a GPU is idle without many."""


class MaceNetworkCalculator(Calculator):
    """Energy (eV), forces (eV/Å) and stress (eV/Å^3, tension positive) of fully periodic crystals."""

    implemented_properties: list[str] = [  # noqa: RUF012 -- ASE declares it like this
        "energy",
        "free_energy",
        "forces",
        "stress",
    ]

    def __init__(self, evaluator: MaceEvaluator, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.evaluator = evaluator

    @property
    def batch(self) -> int:
        """Crystals that are worth computing together on the network's device."""
        return BATCHES[self.evaluator.device.type]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute all properties at once (ASE's interface)."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        self.results = self.evaluate_batch([self.atoms])[0]

    def evaluate_batch(self, configurations: Sequence[Atoms]) -> list[dict[str, Any]]:
        """Return the results of several crystals in one pass, as dictionaries like ``Calculator.results``.

        Raises
        ------
        ValueError
            If a crystal is not periodic in three directions, or holds an element that the network does not know.
        """
        for atoms in configurations:
            if not np.all(atoms.pbc):
                raise ValueError(f"{atoms.get_chemical_formula()} is not periodic in three directions; give a crystal")
        triples = [(atoms.numbers, atoms.positions, atoms.cell.array) for atoms in configurations]
        return [
            {
                "energy": energy,
                "free_energy": energy,
                "forces": forces,
                "stress": full_3x3_to_voigt_6_stress(stress),
            }
            for energy, forces, stress in self.evaluator.evaluate(triples)
        ]
