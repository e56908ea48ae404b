"""Evaluate a calculator on the held-out alloys: bulk modulus and volume of E(V) against the Materials Project's PBE.

Elastic tensors are compared with the calculator's own E(V) in three ways. The plain one, K_VRH with relaxed ions
against K of E(V), differs also by definition: E(V) of a cell scaled as a whole keeps its shape and its fractional
coordinates, so that it is K_Voigt with clamped ions. K_VRH against an E(V) whose ions relax, too, differs in the shape
alone. Like with like, K_Voigt with clamped ions against the first E(V), the two differ only where the energy surface is
not smooth or not parabolic.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from holdout import held_out_systems, validation_systems

from inv_design.calculators.registry import calculator_protocol, get_calculator
from inv_design.datasets.mp_binaries import load_alloys
from inv_design.mechanics.elastic import elastic_tensor
from inv_design.mechanics.eos import equation_of_state
from inv_design.mechanics.relax import relax_structure, relax_structures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

    from inv_design.datasets.mp_binaries import LabelledStructure
    from inv_design.mechanics.eos import EosResult


def errors(predicted: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Return mean and median absolute relative error (%) and mean absolute log10 error of positive numbers."""
    x, y = np.asarray(predicted, float), np.asarray(reference, float)
    relative = 100 * np.abs(x - y) / y
    return {
        "n": len(x),
        "mean_percent": round(float(relative.mean()), 2),
        "median_percent": round(float(np.median(relative)), 2),
        "log10": round(float(np.abs(np.log10(np.maximum(x, 1e-3) / y)).mean()), 4),
        "mae": round(float(np.abs(x - y).mean()), 3),
    }


def seconds(start: float) -> float:
    """Return the wall time since ``start`` in s."""
    return round(time.perf_counter() - start, 1)


def tensor_report(
    crystals: Sequence[tuple[LabelledStructure, Structure, EosResult]], calculator: Calculator
) -> dict[str, Any]:
    """Return errors and shares of the elastic tensors of (alloy, crystal at its minimum, its E(V))."""
    start = time.perf_counter()
    tensors = [elastic_tensor(crystal, calculator) for _, crystal, _ in crystals]
    taken = seconds(start)
    eos = np.array([fit.bulk_modulus for _, _, fit in crystals])
    clamped = [elastic_tensor(crystal, calculator, relax_ions=False) for _, crystal, _ in crystals]
    scans = [equation_of_state(crystal, calculator, relax_ions=True) for _, crystal, _ in crystals]
    relaxed_eos = np.array([fit.bulk_modulus for fit in scans])

    def near(moduli: Sequence[float], reference: np.ndarray) -> int:
        return int(np.sum(np.abs(np.array(moduli) / reference - 1) < 0.06))

    solved = [(t, a) for t, (a, _, _) in zip(tensors, crystals, strict=True) if t.error is None]
    stable = [(t, a) for t, a in solved if t.born_stable]
    return {
        "n": len(tensors),
        "seconds": taken,
        "failed": len(tensors) - len(solved),
        "born_stable": len(stable),
        "without_flags": sum(not t.flags for t, _ in solved),
        "k_vrh_within_6_percent_of_eos": near([t.bulk_modulus_vrh for t in tensors], eos),
        "k_vrh_within_6_percent_of_eos_with_relaxed_ions": near([t.bulk_modulus_vrh for t in tensors], relaxed_eos),
        "clamped_k_voigt_within_6_percent_of_eos": near([t.bulk_modulus_voigt for t in clamped], eos),
        "bulk_modulus_vrh": errors([t.bulk_modulus_vrh for t, _ in solved], [_k(a) for _, a in solved]),
        "shear_modulus_vrh": errors([t.shear_modulus_vrh for t, _ in stable], [_g(a) for _, a in stable]),
    }


def main() -> None:
    """Print one JSON object of errors, rates and shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calculator", help="a calculator name or a path to .safetensors weights")
    parser.add_argument("--validation", action="store_true", help="the validation alloys in place of the held-out ones")
    parser.add_argument("--limit", type=int, default=None, help="only the first held-out alloys")
    parser.add_argument("--dtype", choices=("float64", "float32"), default=None, help="for MACE networks")
    parser.add_argument("--tensors", type=int, default=0, help="also compute this many elastic tensors")
    parser.add_argument("--relax", action="store_true", help="relax first; else E(V) about the PBE cell as it is")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options: dict[str, Any] = {} if arguments.dtype is None else {"dtype": arguments.dtype}
    calculator = get_calculator(arguments.calculator, **options)
    alloys = load_alloys()
    choose = validation_systems if arguments.validation else held_out_systems
    held = choose(alloy.chemsys for alloy in alloys)
    alloys = [alloy for alloy in alloys if alloy.chemsys in held][: arguments.limit]
    crystals = [alloy.structure.get_primitive_structure() for alloy in alloys]
    report: dict[str, Any] = {"protocol": calculator_protocol(arguments.calculator, **options), "alloys": len(alloys)}

    relax_structure(crystals[0], calculator, max_steps=3)  # the first evaluations compile
    if arguments.relax:
        start = time.perf_counter()
        relaxations = list(relax_structures(crystals, calculator))
        report["relaxation"] = {
            "seconds": seconds(start),
            "converged": sum(result.converged for result in relaxations),
            "failed": sum(result.error is not None for result in relaxations),
            "mean_steps": round(float(np.mean([result.n_steps for result in relaxations])), 1),
        }
        pairs = [(a, r.structure) for a, r in zip(alloys, relaxations, strict=True) if r.structure is not None]
    else:
        pairs = list(zip(alloys, crystals, strict=True))

    start = time.perf_counter()
    fits = [(alloy, crystal, equation_of_state(crystal, calculator)) for alloy, crystal in pairs]
    report["eos_seconds"] = seconds(start)
    good = [(alloy, crystal, fit) for alloy, crystal, fit in fits if fit.error is None]
    report["eos_failed"] = {alloy.source_id: fit.error for alloy, _, fit in fits if fit.error is not None}
    reference = [alloy.labels["bulk_modulus_vrh"] for alloy, _, _ in good]
    moduli = [fit.bulk_modulus for _, _, fit in good]
    report["bulk_modulus_eos"] = errors(moduli, reference)
    stiff = [i for i, value in enumerate(reference) if value > 60]
    report["bulk_modulus_eos_above_60_GPa"] = errors([moduli[i] for i in stiff], [reference[i] for i in stiff])
    clean = [i for i, (_, _, fit) in enumerate(good) if not fit.flags]
    report["bulk_modulus_eos_without_flags"] = errors([moduli[i] for i in clean], [reference[i] for i in clean])
    report["volume"] = errors(
        [fit.v0 for _, _, fit in good], [alloy.structure.volume / len(alloy.structure) for alloy, _, _ in good]
    )
    worst = sorted(good, key=lambda item: -abs(np.log(max(item[2].bulk_modulus, 1e-3) / _k(item[0]))))[:12]
    report["worst"] = {
        f"{a.source_id} {a.structure.composition.reduced_formula}": [round(_k(a), 1), round(f.bulk_modulus, 1)]
        for a, _, f in worst
    }
    if arguments.tensors:
        report["tensors"] = tensor_report(good[: arguments.tensors], calculator)
    print(json.dumps(report, indent=1))


def _k(alloy: LabelledStructure) -> float:
    return alloy.labels["bulk_modulus_vrh"]


def _g(alloy: LabelledStructure) -> float:
    return max(alloy.labels["shear_modulus_vrh"], 1.0)


if __name__ == "__main__":
    main()
