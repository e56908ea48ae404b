"""Pushing atoms apart and making near symmetry exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from inv_design.generators.crystals import canonical_crystal
from inv_design.generators.known_crystals import KnownCrystals, reduced_formula
from inv_design.generators.repair import contact_ratios, push_apart, symmetrised


def test_overlapping_atoms_part_and_good_crystals_stay():
    good = torch.tensor([[0.0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    bad = good + torch.tensor([[0.0, 0, 0], [-0.4, -0.42, 0.02], [0, 0, 0], [0, 0, 0]])
    coords = torch.stack([good, bad])
    matrix = 4.0 * torch.eye(3).expand(2, 3, 3)
    radii, mask = torch.full((2, 4), 1.41), torch.ones((2, 4), dtype=torch.bool)
    assert float(contact_ratios(coords, matrix, radii, mask)[1].min()) < 0.3
    moved = push_apart(coords, matrix, radii, mask)
    ratios = contact_ratios(moved, matrix, radii, mask).flatten(1).amin(1)
    assert float(ratios[1]) > 0.75
    assert float(ratios[0]) == pytest.approx(1.0, abs=0.01)


def test_contacts_agree_with_pymatgen():
    crystal = Structure(Lattice.hexagonal(2.76, 4.46), ["Re", "W"], [[0, 0, 0], [1 / 3, 2 / 3, 0.5]])
    ratios = contact_ratios(
        torch.tensor(crystal.frac_coords)[None], torch.tensor(crystal.lattice.matrix)[None],
        torch.full((1, 2), 0.5, dtype=torch.float64), torch.ones((1, 2), dtype=torch.bool),
    )  # fmt: skip
    nearest = min(n.nn_distance for site in crystal.get_all_neighbors(5) for n in site)
    assert float(ratios.min()) == pytest.approx(nearest)


def test_near_symmetry_becomes_exact_and_disorder_stays():
    rng = np.random.default_rng(0)
    lattice = Lattice.from_parameters(3.90, 3.93, 3.88, 90.4, 89.7, 90.2)
    ideal = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    rough = Structure(lattice, ["Cu", "Au", "Au", "Au"], ideal + 0.004 * rng.normal(size=(4, 3)))
    exact, tolerance = symmetrised(rough)
    assert tolerance > 0
    assert exact.get_space_group_info(symprec=1e-3)[0] == "Pm-3m"
    assert exact.volume == pytest.approx(rough.volume, rel=1e-6)
    messy = Structure(Lattice.from_parameters(4.1, 5.2, 6.6, 77, 82, 66), ["Ti", "Al", "Ni"], rng.random((3, 3)))
    assert symmetrised(messy)[1] == 0.0


def test_known_crystals_are_recognised_scaled_and_rewritten():
    nial = Structure(Lattice.cubic(2.88), ["Ni", "Al"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    known = KnownCrystals([canonical_crystal(nial)])
    again = nial.copy()
    again.scale_lattice(30.0)
    again.make_supercell(2)
    assert known.contains(again)
    assert not known.contains(Structure(Lattice.cubic(2.88), ["Ni", "Ti"], [[0, 0, 0], [0.5, 0.5, 0.5]]))
    assert not known.contains(Structure(Lattice.tetragonal(2.6, 4.4), ["Ni", "Al"], [[0, 0, 0], [0, 0, 0.5]]))
    assert KnownCrystals.from_tensors(known.to_tensors()).contains(again)
    assert reduced_formula([28, 28, 13, 13]) == ((13, 1), (28, 1))
