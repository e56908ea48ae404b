"""Replay: frames that a network labels itself, so that what it knows is learned again beside what is new.

Self-distillation (learning without forgetting: Li and Hoiem, IEEE TPAMI 40, 2935 (2018)) needs none of the data that
the network was trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from inv_design.calculators.frames import Frame
from inv_design.mechanics.evaluate import GPA_PER_EV_A3

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pymatgen.core import Structure

    from inv_design.calculators.mace_model import MaceEvaluator

MAX_SITES = 8
STRAIN, SHEAR, RATTLE = 0.05, 0.02, 0.05
"""Largest linear volume strain; standard deviations of the other strains and, in Å, of the displacements."""
CURVE_STRAINS = (-0.04, -0.02, 0.0, 0.02, 0.04)
CURVES = 25
"""Crystals whose E(V) is kept aside, to judge by."""


@dataclass(frozen=True)
class Replay:
    """Frames that the parent labels: to learn, to validate, and E(V) curves to judge by; all of different alloys."""

    train: list[Frame] = field(default_factory=list)
    validation: list[Frame] = field(default_factory=list)
    curves: list[Frame] = field(default_factory=list)


def replay_frames(teacher: MaceEvaluator, n: int, *, seed: int, exclude: Collection[str] = ()) -> Replay:
    """Return deformed packaged alloys with the teacher's labels: ``n`` to learn, a tenth of it to validate.

    Parameters
    ----------
    exclude
        Chemical systems that others teach.

    Raises
    ------
    ValueError
        If frames are asked for and no packaged alloys consist of the teacher's elements.
    """
    rng = np.random.default_rng([seed, 1])
    n_aside = math.ceil(n / 10)
    crystals = _crystals(set(teacher.atomic_numbers), set(exclude), rng, CURVES + n_aside + n)
    if len(crystals) < 3:
        if n:
            raise ValueError(
                f"replay of {n} frames was asked for, but only {len(crystals)} packaged alloys consist of the "
                "parent's elements; use replay 0"
            )
        return Replay()
    n_curves = min(CURVES, len(crystals) // 3)
    last = n_curves + max(1, min(n_aside, len(crystals) // 3))
    curves, aside, learned = crystals[:n_curves], crystals[n_curves:last], crystals[last:]

    def deformed(pool: list[tuple[str, Structure]], count: int) -> list[tuple[str, Structure]]:
        return [(pool[i % len(pool)][0], _deformed(pool[i % len(pool)][1], rng)) for i in range(count)]

    return Replay(
        _labelled(teacher, deformed(learned, n)),
        _labelled(teacher, deformed(aside, n_aside)),
        _labelled(teacher, [(group, _scaled(crystal, s)) for group, crystal in curves for s in CURVE_STRAINS]),
    )


def _crystals(
    atomic_numbers: set[int], exclude: set[str], rng: np.random.Generator, most: int
) -> list[tuple[str, Structure]]:
    """Return (id, primitive cell) of ``most`` small packaged alloys of these elements at most, in random order."""
    from inv_design.datasets.mp_binaries import load_alloys

    alloys = [
        alloy
        for alloy in load_alloys()
        if alloy.chemsys not in exclude and {e.Z for e in alloy.structure.composition.elements} <= atomic_numbers
    ]
    cells: list[tuple[str, Structure]] = []
    for i in rng.permutation(len(alloys)):
        if len(cells) == most:
            break
        cell = alloys[i].structure.get_primitive_structure()
        if len(cell) <= MAX_SITES:
            cells.append((alloys[i].source_id, cell))
    return cells


def _labelled(teacher: MaceEvaluator, configurations: Sequence[tuple[str, Structure]]) -> list[Frame]:
    triples = [([site.specie.Z for site in s], s.cart_coords, s.lattice.matrix) for _, s in configurations]
    return [
        Frame(structure, energy, forces, stress * GPA_PER_EV_A3, group=group, level="parent")
        for (group, structure), (energy, forces, stress) in zip(configurations, teacher.evaluate(triples), strict=True)
    ]


def _scaled(crystal: Structure, strain: float) -> Structure:
    scaled = crystal.copy()
    scaled.scale_lattice(crystal.volume * (1 + strain) ** 3)
    return scaled


def _deformed(crystal: Structure, rng: np.random.Generator) -> Structure:
    """Return the crystal under a random volume change, a random strain and a rattle."""
    from pymatgen.core import Lattice, Structure

    noise = rng.normal(scale=SHEAR, size=(3, 3))
    strain = (1 + rng.uniform(-STRAIN, STRAIN)) * np.eye(3) + (noise + noise.T) / 2
    matrix = crystal.lattice.matrix @ strain
    coords = crystal.frac_coords @ matrix + rng.normal(scale=RATTLE, size=crystal.frac_coords.shape)
    return Structure(Lattice(matrix), crystal.species, coords, coords_are_cartesian=True)
