"""What stages II and III compute for one crystal: plain data in, one record of results out, never an exception."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymatgen.core import Structure

    Record = dict[str, Any]


def measure_elasticity(
    structure: Structure, *, calculator: str, fmax: float, max_steps: int, keep_structure: dict[str, float]
) -> Record:
    """Relax a crystal and compute its elastic tensor with a machine-learned potential (stage II).

    Parameters
    ----------
    calculator
        A name of :func:`inv_design.calculators.registry.get_calculator`.
    fmax
        eV/Å, largest force after relaxation.
    keep_structure
        ``ltol``, ``stol``, ``angle_tol`` of the matcher that compares the crystal before and after relaxation.

    Returns
    -------
    dict
        ``state`` (completed or failed), ``results`` (moduli in GPa, ``volume_change`` relative, ``born_stable``,
        ``relaxed``, ``structure_matched`` ...), ``flags``, ``error`` and ``structure`` (relaxed, or ``None``).
    """
    from inv_design.calculators.registry import get_calculator
    from inv_design.mechanics.elastic import elastic_tensor
    from inv_design.mechanics.relax import relax_structure

    try:
        ase_calculator = get_calculator(calculator)
        relaxed = relax_structure(structure, ase_calculator, fmax=fmax, max_steps=max_steps)
        if relaxed.structure is None:
            return failed(f"relaxation: {relaxed.error}")
        results = {
            "relaxed": relaxed.converged,
            "relaxation_steps": relaxed.n_steps,
            "max_force": relaxed.max_force,
            "energy_per_atom": relaxed.energy_per_atom,
            "volume_change": relaxed.volume_change,
            "volume_per_atom": relaxed.structure.volume / len(relaxed.structure),
            **structure_kept(structure, relaxed.structure, keep_structure),
        }
        tensor = elastic_tensor(relaxed.structure, ase_calculator)
        if tensor.error is not None:
            return failed(f"elastic tensor: {tensor.error}", results, relaxed.structure)
        values = tensor.as_dict()
        flags = list(values.pop("flags", []))
        values.pop("error", None)
        return {
            "state": "completed",
            "results": {**results, **values},
            "flags": flags,
            "error": None,
            "structure": relaxed.structure.as_dict(),
        }
    except Exception as error:  # one bad structure never stops a campaign
        return failed(f"{type(error).__name__}: {error}")


def measure_equation_of_state(
    structure: Structure, *, calculator: str, strain: float, fmax: float = 0.02, max_steps: int = 300
) -> Record:
    """Relax a crystal and fit its equation of state E(V) over ±``strain`` (linear); the surrogate of stage III.

    Returns
    -------
    dict
        As :func:`measure_elasticity`; ``bulk_modulus_vrh`` is the modulus of the E(V) fit in GPa.
    """
    from inv_design.calculators.registry import get_calculator
    from inv_design.mechanics.eos import equation_of_state
    from inv_design.mechanics.relax import relax_structure

    try:
        ase_calculator = get_calculator(calculator)
        relaxed = relax_structure(structure, ase_calculator, fmax=fmax, max_steps=max_steps)
        if relaxed.structure is None:
            return failed(f"relaxation: {relaxed.error}")
        fit = equation_of_state(relaxed.structure, ase_calculator, strain=strain)
        if fit.error is not None:
            return failed(f"equation of state: {fit.error}", structure=relaxed.structure)
        values = fit.as_dict()
        flags = list(values.pop("flags", []))
        values.pop("error", None)
        bulk_modulus = values.pop("bulk_modulus")
        results = {
            **values,
            "bulk_modulus_vrh": bulk_modulus,
            "relaxed": relaxed.converged,
            "energy_per_atom": relaxed.energy_per_atom,
            "volume_change": relaxed.volume_change,
            "volume_per_atom": relaxed.structure.volume / len(relaxed.structure),
        }
        if not relaxed.converged:
            flags.append("unconverged_relaxation")
        return {
            "state": "completed",
            "results": results,
            "flags": flags,
            "error": None,
            "structure": relaxed.structure.as_dict(),
        }
    except Exception as error:
        return failed(f"{type(error).__name__}: {error}")


def failed(error: str, results: Record | None = None, structure: Structure | None = None) -> Record:
    """Return the record of a computation that did not come to its end."""
    return {
        "state": "failed",
        "results": results or {},
        "flags": [],
        "error": " ".join(error.split())[:500],
        "structure": None if structure is None else structure.as_dict(),
    }


def structure_kept(before: Structure, after: Structure, tolerances: dict[str, float]) -> Record:
    """Return ``structure_matched`` and ``rms`` (normalised, dimensionless) of a crystal before and after relaxation."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(
        ltol=tolerances["ltol"],
        stol=tolerances["stol"],
        angle_tol=tolerances["angle_tol"],
        primitive_cell=True,
        scale=True,
    )
    distances = matcher.get_rms_dist(before, after)
    return {"structure_matched": distances is not None, "rms": None if distances is None else float(distances[0])}
