"""Bend CHGNet's labels towards PBE: the known alloys' volumes and moduli, and the moduli of all hypothetical ones.

CHGNet's bulk moduli scatter by 8 % about PBE, but its shear moduli are about half of PBE's, as universal potentials
trained near minima are soft (Deng et al., npj Comput. Mater. 11, 9 (2025)); a network that learns them as they
are calls stable crystals Born unstable. The known alloys have PBE moduli. For crystals that PBE does not know, ridge
regressions on composition, CHGNet's K and its volume, fitted to the known alloys of the training systems, say how far
CHGNet is off: so the network learns one smooth surface that is PBE-like everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inv_design.datasets.mp_binaries import load_alloys
from inv_design.mechanics.eos import BirchMurnaghan
from inv_design.mechanics.evaluate import GPA_PER_EV_A3 as GPA

if TYPE_CHECKING:
    from collections.abc import Callable

    from train import Dataset

RATIO_BOUND = 2.5  # between the bulk moduli of CHGNet and PBE; beyond, it is another magnetic or electronic state
TRUST = 0.3  # largest departure of an alloy's ln(K_PBE / K_CHGNet) from the regression's; beyond, PBE is off too
VOIGT_OVER_VRH = 1.1  # clamped ions and uniform strain are stiffer than relaxed ions and the Hill average
SHEARS = 5  # a full orthogonal set, see label.py
LEAST_MODULUS = 1.0  # GPa; softer groups have no equation of state worth bending
ALPHAS = np.logspace(-2, 4, 13)  # of the ridge regressions, in units of the standardised features


@dataclass(frozen=True)
class Bent:
    """Labels bent towards PBE.

    Attributes
    ----------
    energies, stresses
        eV/atom (n,) and eV/Å^3 (n, 3, 3).
    summary
        What was done, in a few words and numbers.
    """

    energies: np.ndarray
    stresses: np.ndarray
    summary: str


def bend(dataset: Dataset) -> Bent:
    """Return the labels of ``dataset`` with volumes, bulk and shear moduli like PBE's.

    Every configuration of a crystal is shifted by the difference of two Birch-Murnaghan curves at its volume, and its
    stress by minus the difference in pressure; the minimum keeps its energy. With D the missing shear modulus and e the
    traceless strain, the energy density grows by D e:e and the stress by 2 D e. Energy and stress stay consistent.
    """
    own = {name: curve for name, rows in dataset.members().items() if (curve := group_curve(dataset, rows)) is not None}
    alloys = {alloy.source_id: alloy for alloy in load_alloys() if alloy.source_id in own}
    names = [
        name
        for name, alloy in alloys.items()
        if 1 / RATIO_BOUND < alloy.labels["bulk_modulus_vrh"] / own[name].bulk_modulus < RATIO_BOUND
    ]
    stiffening = {n: float(np.log(alloys[n].labels["bulk_modulus_vrh"] / own[n].bulk_modulus)) for n in names}
    features = group_features(dataset, own)
    predict_k, error_k = regression(features, stiffening)

    energies, stresses = dataset.energies.copy(), dataset.stresses.copy()
    rows_of = dataset.rows_of_groups()
    targets: dict[str, BirchMurnaghan] = {}
    for name, curve in own.items():
        ratio, v0 = predict_k(name), curve.v0  # its volumes are right to 0.7 %, and nothing predicts the rest
        if name in stiffening:
            ratio = float(np.clip(stiffening[name], ratio - TRUST, ratio + TRUST))
            v0 = alloys[name].structure.volume / len(alloys[name].structure)
        target = BirchMurnaghan(curve.e0, v0, curve.bulk_modulus * np.exp(ratio), curve.derivative, 0.0)
        rows = rows_of[name]
        energies[rows] += target.energy(dataset.volumes[rows]) - curve.energy(dataset.volumes[rows])
        shift = target.pressure(dataset.volumes[rows]) - curve.pressure(dataset.volumes[rows])
        stresses[rows] -= shift[:, None, None] * np.eye(3)
        targets[name] = target

    shares = {
        name: share
        for name in names
        if (share := missing_shear(dataset, name, stresses, alloys[name].labels)) is not None
    }
    strains = shear_strains(dataset)
    predict_g, error_g = regression(features, shares)
    for name, target in targets.items():
        stiffness = (shares[name] if name in shares else predict_g(name)) * target.bulk_modulus / GPA
        for row in rows_of[name]:
            if row in strains:
                energies[row] += dataset.volumes[row] * stiffness * np.sum(strains[row] ** 2)
                stresses[row] += 2 * stiffness * strains[row]
    summary = (
        f"{len(own)} groups bent, {len(names)} of them by their own PBE; cross-validated mean |ln| errors of the rest: "
        f"K {error_k[0]:.3f} -> {error_k[1]:.3f}, missing G/K {error_g[0]:.3f} -> {error_g[1]:.3f}"
    )
    return Bent(energies, stresses, summary)


def group_curve(dataset: Dataset, rows: np.ndarray) -> BirchMurnaghan | None:
    """Return the Birch-Murnaghan curve through energies and pressures of isotropic strains; ``None`` if it has none.

    The equation is a polynomial in x = V^(-2/3): of third degree with five volumes or more, else of second degree
    (dK/dP = 4). Pressures count as energies over a change in volume of a tenth.
    """
    volumes, energies = dataset.volumes[rows], dataset.energies[rows]
    if len(rows) < 2:
        return None
    pressures = -np.trace(dataset.stresses[rows], axis1=1, axis2=2) / 3
    scale = float(volumes.mean())
    x = (volumes / scale) ** (-2 / 3)
    powers = np.arange(4 if len(rows) >= 5 else 3)
    weight = 0.1 * volumes
    slopes = np.stack([power * x ** max(power - 1, 0) for power in powers], axis=1)
    design = np.concatenate([x[:, None] ** powers, (weight * 2 / 3 * x / volumes)[:, None] * slopes])
    coefficients = np.linalg.lstsq(design, np.concatenate([energies, weight * pressures]), rcond=None)[0][::-1]
    roots = np.roots(np.polyder(coefficients))
    roots = roots[np.abs(roots.imag) < 1e-9].real
    minima = [root for root in roots if root > 0 and np.polyval(np.polyder(coefficients, 2), root) > 0]
    if not minima:
        return None
    x0 = float(min(minima, key=lambda root: abs(root - 1)))
    v0 = scale * x0**-1.5
    second = float(np.polyval(np.polyder(coefficients, 2), x0))
    third = float(np.polyval(np.polyder(coefficients, 3), x0)) if len(powers) == 4 else 0.0
    modulus = 4 / 9 * x0**2 * second / v0 * GPA  # see inv_design.mechanics.eos
    if modulus < LEAST_MODULUS or not 0.85 * volumes.min() < v0 < 1.15 * volumes.max():
        return None
    derivative = float(np.clip(4 + 2 / 3 * x0 * third / second, 2, 8))
    return BirchMurnaghan(float(np.polyval(coefficients, x0)), v0, modulus, derivative, 0.0)


def group_features(dataset: Dataset, own: dict[str, BirchMurnaghan]) -> dict[str, np.ndarray]:
    """Return [atomic fractions, ln K, ln V, ln K ln V] of CHGNet's crystals (K in GPa, V in Å^3/atom)."""
    features = {}
    rows_of = dataset.rows_of_groups()
    for name, curve in own.items():
        numbers = dataset.numbers[rows_of[name][0]]
        k, v = np.log(curve.bulk_modulus), np.log(curve.v0)
        features[name] = np.array([*(np.mean(numbers == z) for z in dataset.atomic_numbers), k, v, k * v])
    return features


def regression(
    features: dict[str, np.ndarray], targets: dict[str, float]
) -> tuple[Callable[[str], float], tuple[float, float]]:
    """Return (a ridge regression by name, (mean |target - median|, cross-validated mean |error|)).

    Folds do not share a chemical system. Predictions stay between the 2nd and the 98th percentile of the targets.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = sorted(targets)
    x, y = np.array([features[name] for name in names]), np.array([targets[name] for name in names])
    systems = np.unique(x[:, :-3] > 0, axis=0, return_inverse=True)[1].ravel()
    model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS))
    guesses = cross_val_predict(model, x, y, groups=systems, cv=GroupKFold(8))
    model.fit(x, y)
    low, high = np.percentile(y, (2, 98))
    every = sorted(features)
    predicted = np.clip(model.predict(np.array([features[name] for name in every])), low, high)
    table = dict(zip(every, predicted.tolist(), strict=True))
    errors = float(np.abs(y - np.median(y)).mean()), float(np.abs(y - np.clip(guesses, low, high)).mean())
    return table.__getitem__, errors


def missing_shear(dataset: Dataset, name: str, stresses: np.ndarray, labels: dict[str, float]) -> float | None:
    """Return what an alloy's shear modulus lacks of PBE's, over PBE's K; ``None`` without a full set of shears."""
    rows = [row for row in dataset.rows_of_groups()[name] if dataset.kinds[row] == "shear"]
    target, bulk = labels["shear_modulus_vrh"], labels["bulk_modulus_vrh"]
    if len(rows) != SHEARS or target <= 1:
        return None
    members = dataset.members()[name]
    like = members[np.argmin(np.abs(dataset.volumes[members] - dataset.volumes[rows[0]]))]
    strains = [traceless_strain(dataset.cells[like], dataset.cells[row]) for row in rows]
    own = [
        np.sum((stresses[row] - stresses[like]) * strain) / (2 * np.sum(strain**2))
        for row, strain in zip(rows, strains, strict=True)
    ]
    return float((min(VOIGT_OVER_VRH * target, bulk) - np.mean(own) * GPA) / bulk)


def shear_strains(dataset: Dataset) -> dict[int, np.ndarray]:
    """Return the traceless strain (3, 3) of every configuration that is not isotropic, by its row."""
    members = dataset.members()
    return {
        row: traceless_strain(dataset.cells[members[group][0]], dataset.cells[row])
        for row in np.flatnonzero(dataset.kinds != "isotropic").tolist()
        if (group := str(dataset.groups[row])) in members
    }


def traceless_strain(reference: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Return the shear part (3, 3) of the strain between two cells (rows are vectors), volumes divided out."""
    deformation = np.linalg.solve(reference, cell)
    deformation = deformation / np.linalg.det(deformation) ** (1 / 3)
    strain = (deformation + deformation.T) / 2 - np.eye(3)
    return strain - np.trace(strain) / 3 * np.eye(3)
