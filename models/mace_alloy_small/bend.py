"""Bend CHGNet's labels towards PBE: the volumes and bulk moduli of the alloys, and the shear moduli of all crystals.

CHGNet's bulk moduli scatter by 8 % about PBE, but its shear moduli are about half of PBE's, as universal potentials
trained near minima are soft (Deng et al., npj Comput. Mater. 11, 9 (2025)); a network that learns them as they
are calls stable crystals Born unstable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inv_design.datasets.mp_binaries import load_alloys
from inv_design.mechanics.eos import BirchMurnaghan, fit_birch_murnaghan
from inv_design.mechanics.evaluate import GPA_PER_EV_A3 as GPA

if TYPE_CHECKING:
    from train import Dataset

RATIO_BOUND = 2.5  # between the bulk moduli of CHGNet and PBE; beyond, it is another magnetic or electronic state
VOIGT_OVER_VRH = 1.1  # clamped ions and uniform strain are stiffer than relaxed ions and the Hill average
SHEARS = 5  # a full orthogonal set, see label.py


def bend_volumes(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (energies eV/atom, stresses eV/Å^3, alloys bent) with the alloys' equations of state replaced by PBE's.

    Every configuration of an alloy is shifted by the difference of the two curves at its volume, and its stress by
    minus the difference in pressure, so that energy and stress stay consistent. The minimum keeps its energy.
    """
    energies, stresses = dataset.energies.copy(), dataset.stresses.copy()
    alloys = {alloy.source_id: alloy for alloy in load_alloys()}
    members = dataset.members()
    count = 0
    for name in sorted(set(dataset.groups.tolist()) & alloys.keys()):
        alloy, rows = alloys[name], members.get(name, np.array([], dtype=int))
        if len(rows) < 5:
            continue
        try:
            own = fit_birch_murnaghan(dataset.volumes[rows], dataset.energies[rows])
        except ValueError:
            continue
        modulus = alloy.labels["bulk_modulus_vrh"]
        if not 1 / RATIO_BOUND < modulus / max(own.bulk_modulus, 1e-9) < RATIO_BOUND:
            continue
        volume = alloy.structure.volume / len(alloy.structure)
        target = BirchMurnaghan(own.e0, volume, modulus, float(np.clip(own.derivative, 2, 8)), 0.0)
        every = np.flatnonzero(dataset.groups == name)
        energies[every] += target.energy(dataset.volumes[every]) - own.energy(dataset.volumes[every])
        shift = target.pressure(dataset.volumes[every]) - own.pressure(dataset.volumes[every])
        stresses[every] -= shift[:, None, None] * np.eye(3)
        count += 1
    return energies, stresses, count


def bend_shears(dataset: Dataset, energies: np.ndarray, stresses: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (energies, stresses, share) with an isotropic shear stiffness added to every crystal, eV and eV/Å^3.

    With D the difference of PBE's and CHGNet's shear moduli of an alloy and e a configuration's traceless strain, its
    energy density changes by D e:e and its stress by 2 D e. Crystals that PBE does not know get D = share x K, the
    share being the median of the alloys.
    """
    energies, stresses = energies.copy(), stresses.copy()
    alloys = {alloy.source_id: alloy for alloy in load_alloys()}
    members, moduli = dataset.members(), dataset.bulk_moduli()
    by_group: dict[str, list[int]] = {}
    for row in np.flatnonzero(dataset.kinds != "isotropic").tolist():
        by_group.setdefault(str(dataset.groups[row]), []).append(row)
    strains = {
        row: traceless_strain(dataset.cells[members[name][0]], dataset.cells[row])
        for name, rows in by_group.items()
        if name in members
        for row in rows
    }
    differences: dict[str, float] = {}
    for name in sorted(by_group.keys() & alloys.keys() & members.keys()):
        rows = [row for row in by_group[name] if dataset.kinds[row] == "shear"]
        target = alloys[name].labels["shear_modulus_vrh"]
        bulk = alloys[name].labels["bulk_modulus_vrh"]
        if len(rows) == SHEARS and target > 1:
            like = members[name][np.argmin(np.abs(dataset.volumes[members[name]] - dataset.volumes[rows[0]]))]
            own = np.mean(
                [
                    np.sum((dataset.stresses[row] - dataset.stresses[like]) * strains[row])
                    / (2 * np.sum(strains[row] ** 2))
                    for row in rows
                ]
            )
            differences[name] = (min(VOIGT_OVER_VRH * target, bulk) / GPA - float(own)) if np.isfinite(own) else 0.0
    share = float(np.median([d * GPA / alloys[name].labels["bulk_modulus_vrh"] for name, d in differences.items()]))
    for name, rows in by_group.items():
        difference = differences.get(name, share * moduli.get(name, 0.0) / GPA)
        for row in rows:
            if row in strains:
                strain = strains[row]
                energies[row] += dataset.volumes[row] * difference * np.sum(strain**2)
                stresses[row] += 2 * difference * strain
    return energies, stresses, share


def traceless_strain(reference: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Return the shear part (3, 3) of the strain between two cells (rows are vectors), volumes divided out."""
    deformation = np.linalg.solve(reference, cell)
    deformation = deformation / np.linalg.det(deformation) ** (1 / 3)
    strain = (deformation + deformation.T) / 2 - np.eye(3)
    return strain - np.trace(strain) / 3 * np.eye(3)
