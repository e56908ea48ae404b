"""What stages II and III compute for crystals: plain data in, one record of results out each.

A crystal that fails is a record, never an exception. Exceptions are of the machine, and blame no crystal: a calculator
that cannot be made (those of :func:`inv_design.calculators.registry.get_calculator`, and what an imported one raises),
or a GPU that failed (:class:`inv_design.mechanics.evaluate.DeviceLost`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

METHOD = 2
"""Part of every protocol: raised when the numbers or the fields of a stage change under the same version."""

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pymatgen.core import Structure

    from inv_design.mechanics.lockstep import Work
    from inv_design.mechanics.relax import RelaxResult

    Record = dict[str, Any]

UNCONVERGED = "unconverged_relaxation"


def measure_elasticity(structure: Structure, **options: Any) -> Record:
    """Return the record of one crystal; see :func:`measure_elasticities`."""
    return dict(measure_elasticities([structure], **options))[0]


def measure_elasticities(
    structures: Sequence[Structure], *, calculator: str, fmax: float, max_steps: int, keep_structure: dict[str, float]
) -> Iterator[tuple[int, Record]]:
    """Relax crystals and compute their elastic tensors with a machine-learned potential (stage II).

    Parameters
    ----------
    calculator
        A name of :func:`inv_design.calculators.registry.get_calculator`; one that evaluates batches serves several
        crystals at once, and none of them changes another's numbers by more than rounding.
    fmax
        eV/Å, largest force after relaxation.
    keep_structure
        ``ltol``, ``stol``, ``angle_tol`` of the matcher that compares the crystal before and after relaxation.

    Yields
    ------
    tuple
        (index, record) of each crystal as it finishes. A record has ``state`` (completed or failed), ``results``
        (moduli in GPa, ``volume_change`` relative, ``born_stable``, ``relaxed``, ``structure_matched`` ...), ``flags``,
        ``error`` and ``structure`` (relaxed, or ``None``).
    """
    yield from _measured(
        lambda s: _elasticity(s, fmax=fmax, max_steps=max_steps, keep_structure=keep_structure), structures, calculator
    )


def measure_relaxations(
    structures: Sequence[Structure], *, calculator: str, fmax: float, max_steps: int, keep_structure: dict[str, float]
) -> Iterator[tuple[int, Record]]:
    """Relax positions and cells of crystals.

    Yields
    ------
    tuple
        As :func:`measure_elasticities`, without moduli; ``results`` has ``pressure`` in GPa.
    """
    yield from _measured(
        lambda s: _relaxation(s, fmax=fmax, max_steps=max_steps, keep_structure=keep_structure), structures, calculator
    )


def measure_equation_of_state(structure: Structure, **options: Any) -> Record:
    """Return the record of one crystal; see :func:`measure_equations_of_state`."""
    return dict(measure_equations_of_state([structure], **options))[0]


def measure_equations_of_state(
    structures: Sequence[Structure], *, calculator: str, strain: float, fmax: float = 0.02, max_steps: int = 300
) -> Iterator[tuple[int, Record]]:
    """Relax crystals and fit their equations of state E(V) over ±``strain`` (linear); the surrogate of stage III.

    Yields
    ------
    tuple
        As :func:`measure_elasticities`; ``bulk_modulus_vrh`` is the modulus of the E(V) fit in GPa.
    """
    yield from _measured(
        lambda s: _equation_of_state(s, strain=strain, fmax=fmax, max_steps=max_steps), structures, calculator
    )


def _measured(
    compute: Callable[[Structure], Work[Record]], structures: Sequence[Structure], calculator: str
) -> Iterator[tuple[int, Record]]:
    from inv_design.calculators.registry import get_calculator
    from inv_design.mechanics.lockstep import run_together

    yield from run_together((compute(s) for s in structures), get_calculator(calculator))


def _elasticity(structure: Structure, *, fmax: float, max_steps: int, keep_structure: dict[str, float]) -> Work[Record]:
    from inv_design.mechanics.elastic import elasticity
    from inv_design.mechanics.relax import relaxation

    try:
        relaxed = yield from relaxation(structure, fmax=fmax, max_steps=max_steps)
        if relaxed.structure is None:
            return failed(f"relaxation: {relaxed.error}")
        results = relaxation_results(structure, relaxed, keep_structure)
        tensor = yield from elasticity(relaxed.structure)
        if tensor.error is not None:
            return failed(f"elastic tensor: {tensor.error}", results, relaxed.structure)
        values = tensor.as_dict()
        flags = list(values.pop("flags", []))
        values.pop("error", None)
        return {
            "state": "completed",
            "results": {**results, **values},
            "flags": flags if relaxed.converged else [*flags, UNCONVERGED],
            "error": None,
            "structure": relaxed.structure.as_dict(),
        }
    except Exception as error:  # one bad structure never stops a campaign
        return failed(f"{type(error).__name__}: {error}")


def _relaxation(structure: Structure, *, fmax: float, max_steps: int, keep_structure: dict[str, float]) -> Work[Record]:
    from inv_design.mechanics.relax import relaxation

    try:
        relaxed = yield from relaxation(structure, fmax=fmax, max_steps=max_steps)
        if relaxed.structure is None:
            return failed(f"relaxation: {relaxed.error}")
        return {
            "state": "completed",
            "results": {
                **relaxation_results(structure, relaxed, keep_structure),
                "pressure": relaxed.pressure,
            },
            "flags": [] if relaxed.converged else [UNCONVERGED],
            "error": None,
            "structure": relaxed.structure.as_dict(),
        }
    except Exception as error:  # one bad structure never stops the others
        return failed(f"{type(error).__name__}: {error}")


def relaxation_results(structure: Structure, relaxed: RelaxResult, keep_structure: dict[str, float]) -> Record:
    """Return what a record says of a relaxation that ended in a crystal (energies in eV/atom, volumes in Å^3/atom)."""
    assert relaxed.structure is not None
    return {
        "relaxed": relaxed.converged,
        "relaxation_steps": relaxed.n_steps,
        "max_force": relaxed.max_force,
        "energy_per_atom": relaxed.energy_per_atom,
        "volume_change": relaxed.volume_change,
        "volume_per_atom": relaxed.structure.volume / len(relaxed.structure),
        **structure_kept(structure, relaxed.structure, keep_structure),
    }


def _equation_of_state(structure: Structure, *, strain: float, fmax: float, max_steps: int) -> Work[Record]:
    from inv_design.mechanics.eos import volume_scan
    from inv_design.mechanics.relax import relaxation

    try:
        relaxed = yield from relaxation(structure, fmax=fmax, max_steps=max_steps)
        if relaxed.structure is None:
            return failed(f"relaxation: {relaxed.error}")
        fit = yield from volume_scan(relaxed.structure, strain=strain)
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
        return {
            "state": "completed",
            "results": results,
            "flags": flags if relaxed.converged else [*flags, UNCONVERGED],
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
