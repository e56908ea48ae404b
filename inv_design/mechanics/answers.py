"""Answers of a calculator as arrays, so that a computation can be stored on its way and go on elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inv_design.checkpoint import State
from inv_design.mechanics.evaluate import Evaluation

if TYPE_CHECKING:
    from inv_design.mechanics.lockstep import History


def history_state(history: History) -> State:
    """Return the answers that a computation was sent as a state; energies in eV, forces in eV/Å, stresses in eV/Å^3."""
    flat = [evaluation for answer in history for evaluation in answer]
    return State(
        {
            "energies": np.array([e.energy for e in flat], float),
            "forces": np.concatenate([e.forces for e in flat]) if flat else np.zeros((0, 3)),
            "stresses": np.array([e.stress for e in flat], float).reshape(-1, 6),
        },
        {
            "atoms": [[len(evaluation.forces) for evaluation in answer] for answer in history],
            "errors": [evaluation.error for evaluation in flat],
        },
    )


def history_of(state: State) -> History:
    """Return the answers of :func:`history_state`."""
    energies, stresses, errors = state.tensors["energies"], state.tensors["stresses"], state.values["errors"]
    sizes = state.values["atoms"]
    flat = [n for answer in sizes for n in answer]
    forces = np.split(state.tensors["forces"], np.cumsum(flat)[:-1]) if flat else []
    evaluations = (
        Evaluation(float(energy), force, stress, error)
        for energy, force, stress, error in zip(energies, forces, stresses, errors, strict=True)
    )
    return [[next(evaluations) for _ in answer] for answer in sizes]
