"""Errors of a potential on labelled frames: energies, forces, pressures, and the bulk moduli of E(V) curves."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.mechanics.evaluate import GPA_PER_EV_A3

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inv_design.calculators.frames import Frame
    from inv_design.calculators.mace_model import MaceEvaluator

    Errors = dict[str, float | int]


def errors_of(evaluator: MaceEvaluator, frames: Sequence[Frame]) -> Errors:
    """Return how far a network is from the labels.

    Returns
    -------
    dict
        ``frames`` and ``curves`` (E(V) curves among them); root mean square errors ``energy`` (meV/atom, relative to
        each crystal's mean), ``forces`` (meV/Å), ``pressure`` (GPa); ``bulk_modulus``, the mean absolute error in % of
        the curves' moduli. A number is absent where no label has it.
    """
    found = evaluator.evaluate([frame.triple for frame in frames])
    energies: dict[tuple[str, str], list[float]] = defaultdict(list)
    forces, pressures, own = [], [], []
    for frame, (energy, force, stress) in zip(frames, found, strict=True):
        own.append(-float(np.trace(stress)) / 3 * GPA_PER_EV_A3)
        if frame.energy is not None:
            energies[frame.level, frame.group].append((energy - frame.energy) / len(frame.numbers))
        if frame.forces is not None:
            forces.append((force - frame.forces).ravel())
        if frame.known_pressure is not None:
            pressures.append(np.array([own[-1] - frame.known_pressure]))
    relative = [np.array(group) - np.mean(group) for group in energies.values() if len(group) > 1]
    moduli = [
        abs(bulk_modulus(volumes, [own[i] for i in rows]) / reference - 1)
        for volumes, rows, reference in _curves(frames)
    ]
    errors: Errors = {"frames": len(frames), "curves": len(moduli)}
    for key, parts, unit in (("energy", relative, 1000), ("forces", forces, 1000), ("pressure", pressures, 1)):
        if parts:
            errors[key] = unit * float(np.sqrt(np.mean(np.concatenate(parts) ** 2)))
    if moduli:
        errors["bulk_modulus"] = 100 * float(np.mean(moduli))
    return errors


def bulk_modulus(volumes: Sequence[float], pressures: Sequence[float]) -> float:
    """Return K = -dP/d(ln V) in GPa at zero pressure, of a cubic through P (GPa) over ln V (fewer points: a parabola).

    Where the pressure does not vanish within the volumes, K at the end nearest to zero pressure.
    """
    x = np.log(volumes)
    curve = np.polynomial.Polynomial.fit(x, pressures, 3 if len(x) > 4 else 2)
    roots = [float(root.real) for root in curve.roots() if abs(root.imag) < 1e-9 and x.min() <= root.real <= x.max()]
    if roots:
        return -float(curve.deriv()(min(roots, key=lambda root: abs(root - x.mean()))))
    return -float(curve.deriv()(min((x.min(), x.max()), key=lambda end: abs(curve(end)))))


def _curves(frames: Sequence[Frame]) -> list[tuple[list[float], list[int], float]]:
    """Return (volumes, rows, modulus of the labels) of crystals scaled to three volumes or more, pressures known."""
    groups: dict[Any, dict[float, int]] = defaultdict(dict)
    for row, frame in enumerate(frames):
        if frame.known_pressure is not None:
            cell = frame.structure.lattice.matrix / frame.structure.volume ** (1 / 3)
            # shifted, so that no simple fraction lies where rounding turns
            shape = np.round(np.concatenate([cell, frame.structure.frac_coords]) + 1.7e-4, 3) + 0.0
            key = (frame.level, frame.group, frame.numbers.tobytes(), shape.tobytes())
            groups[key][round(frame.volume, 3)] = row
    curves = []
    for members in groups.values():
        volumes, rows = sorted(members), [members[v] for v in sorted(members)]
        if len(rows) < 3:
            continue
        reference = bulk_modulus(volumes, [float(frames[row].known_pressure or 0.0) for row in rows])
        if reference > 1.0:  # GPa; nothing is relative to less
            curves.append((volumes, rows, reference))
    return curves
