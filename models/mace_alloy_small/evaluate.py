"""Evaluate a calculator on the held-out alloys: bulk modulus and volume of E(V) against the Materials Project's PBE."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from holdout import held_out_systems

from inv_design.calculators.registry import calculator_protocol, get_calculator
from inv_design.datasets.mp_binaries import load_alloys
from inv_design.mechanics.elastic import elastic_tensor
from inv_design.mechanics.eos import equation_of_state
from inv_design.mechanics.relax import relax_structure, relax_structures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inv_design.datasets.mp_binaries import LabelledStructure


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


def main() -> None:
    """Print one JSON object of errors, rates and shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calculator", help="a calculator name or a path to .safetensors weights")
    parser.add_argument("--limit", type=int, default=None, help="only the first held-out alloys")
    parser.add_argument("--dtype", choices=("float64", "float32"), default=None, help="for MACE networks")
    parser.add_argument("--tensors", type=int, default=0, help="also compute this many elastic tensors")
    parser.add_argument("--relax", action="store_true", help="relax first; else E(V) about the PBE cell as it is")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options: dict[str, Any] = {} if arguments.dtype is None else {"dtype": arguments.dtype}
    calculator = get_calculator(arguments.calculator, **options)
    alloys = load_alloys()
    held = held_out_systems(alloy.chemsys for alloy in alloys)
    alloys = [alloy for alloy in alloys if alloy.chemsys in held][: arguments.limit]
    crystals = [alloy.structure.get_primitive_structure() for alloy in alloys]
    report: dict[str, Any] = {"protocol": calculator_protocol(arguments.calculator, **options), "alloys": len(alloys)}

    def seconds(start: float) -> float:
        return round(time.perf_counter() - start, 1)

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
        start = time.perf_counter()
        chosen = good[: arguments.tensors]
        tensors = [elastic_tensor(crystal, calculator) for _, crystal, _ in chosen]
        ratios = [t.bulk_modulus_vrh / f.bulk_modulus for t, (_, _, f) in zip(tensors, chosen, strict=True)]
        report["tensors"] = {
            "n": len(tensors),
            "seconds": seconds(start),
            "failed": sum(t.error is not None for t in tensors),
            "born_stable": sum(t.born_stable for t in tensors),
            "without_flags": sum(not t.flags and t.error is None for t in tensors),
            "within_6_percent_of_eos": int(sum(abs(ratio - 1) < 0.06 for ratio in ratios)),
            "bulk_modulus_vrh": errors(
                [t.bulk_modulus_vrh for t in tensors if t.error is None],
                [_k(a) for t, (a, _, _) in zip(tensors, chosen, strict=True) if t.error is None],
            ),
            "shear_modulus_vrh": errors(
                [t.shear_modulus_vrh for t in tensors if t.born_stable],
                [_g(a) for t, (a, _, _) in zip(tensors, chosen, strict=True) if t.born_stable],
            ),
        }
    print(json.dumps(report, indent=1))


def _k(alloy: LabelledStructure) -> float:
    return alloy.labels["bulk_modulus_vrh"]


def _g(alloy: LabelledStructure) -> float:
    return max(alloy.labels["shear_modulus_vrh"], 1.0)


if __name__ == "__main__":
    main()
