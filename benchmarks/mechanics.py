"""Relaxation and elastic tensor of alloys, three ways side by side: this project, plain ASE, and atomate2.

    python benchmarks/mechanics.py                       # 24 alloys, 4 of them by atomate2
    python benchmarks/mechanics.py --alloys 8 --atomate 2 --output /tmp/quick.json

All rows use the packaged network in float64 through the same calculator object, the same force tolerance for the
crystal and for the ions under strain, and strains reduced by symmetry. Plain ASE is BFGS on a FrechetCellFilter, then
one strained cell after the other (the strains of the first row) with its ions relaxed by BFGS. atomate2 is
ElasticMaker.from_force_field_name run by jobflow's run_locally; it takes the network as a calculator plug-in (a
MontyDecoder dictionary), because it would read a model file as a pickle. Groups of alloys alternate between the rows.
Seconds are processor seconds of one thread, because a benchmark may share its machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shlex
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.calculators.registry import calculator_protocol, get_calculator
from inv_design.datasets.mp_binaries import load_alloys
from inv_design.mechanics import elastic
from inv_design.mechanics.evaluate import GPA_PER_EV_A3, to_atoms, to_structure
from inv_design.mechanics.lockstep import run_in_order
from inv_design.mechanics.relax import relaxation
from inv_design.mechanics.symmetry import crystal_symmetry, spanning, to_mandel

if TYPE_CHECKING:
    from collections.abc import Callable

    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

    from inv_design.mechanics.lockstep import Work

NAME = "mace-alloy-small"
OUTPUT = Path(__file__).parent / "results" / "mechanics.json"
STRAIN = 0.01


def draw_alloys(n: int, seed: int) -> list[Structure]:
    """Return n random packaged alloys of 2 to 8 atoms whose elements the network knows, as primitive cells."""
    known = set(get_calculator(NAME).evaluator.atomic_numbers)
    alloys = [a.structure for a in load_alloys() if {s.specie.Z for s in a.structure} <= known]
    order = np.random.default_rng(seed).permutation(len(alloys))
    primitive = (alloys[i].get_primitive_structure() for i in order)
    small = (s for s in primitive if 2 <= len(s) <= 8)
    return [next(small) for _ in range(n)]


def ours(crystals: list[Structure], calculator: Calculator, fmax: float) -> list[float]:
    """Return K_VRH (GPa) of each crystal, all in lockstep."""

    def work(crystal: Structure) -> Work[float]:
        relaxed = yield from relaxation(crystal, fmax=fmax)
        if relaxed.structure is None:
            return float("nan")
        tensor = yield from elastic.elasticity(relaxed.structure, strain=STRAIN)
        return tensor.bulk_modulus_vrh

    return list(run_in_order((work(crystal) for crystal in crystals), calculator))


def plain_ase(crystal: Structure, calculator: Calculator, fmax: float) -> float:
    """Return K_VRH (GPa) by ASE's BFGS, one configuration after the other."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS

    atoms = to_atoms(crystal)
    atoms.calc = calculator
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=fmax, steps=500)
    symmetry = crystal_symmetry(to_structure(atoms, crystal))
    chosen = spanning(np.array([to_mandel(symmetry.turned(d)) for d in elastic.DIRECTIONS]))
    magnitudes = STRAIN * np.array([-1.0, -0.5, 0.5, 1.0])
    stresses = []
    for direction in chosen:
        for size in magnitudes:
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ (np.eye(3) + size * elastic.DIRECTIONS[direction]), scale_atoms=True)
            strained.calc = calculator
            BFGS(strained, logfile=None).run(fmax=fmax, steps=500)
            stresses.append(strained.get_stress())
    slopes, _ = elastic._slopes(magnitudes, np.array(stresses).reshape(len(chosen), 4, 6))
    no_forces = np.zeros((len(chosen), 3 * len(atoms)))
    tensor = elastic._all_directions(symmetry, chosen, slopes, no_forces)[0] * GPA_PER_EV_A3
    return (elastic.voigt_average(tensor)[0] + elastic.reuss_average(tensor)[0]) / 2


def run_atomate2(crystal: Structure, fmax: float) -> float:
    """Return K_VRH (GPa) by atomate2's force-field ElasticMaker, run here by jobflow; NaN if the flow fails."""
    from atomate2.forcefields.flows.elastic import ElasticMaker
    from jobflow import JobStore, run_locally
    from maggma.stores import MemoryStore

    plug_in = {"@module": "inv_design.calculators.registry", "@callable": "get_calculator"}
    maker = ElasticMaker.from_force_field_name(plug_in, calculator_kwargs={"name": NAME})
    for name in ("bulk_relax_maker", "elastic_relax_maker"):
        relax = getattr(maker, name)
        setattr(maker, name, dataclasses.replace(relax, relax_kwargs={**relax.relax_kwargs, "fmax": fmax}))
    store = JobStore(MemoryStore(), additional_stores={"data": MemoryStore()})
    responses = run_locally(maker.make(crystal), store=store, create_folders=True, log=False)
    outputs = [r.output for found in responses.values() for r in found.values()]
    document = next((o for o in outputs if getattr(o, "elastic_tensor", None) is not None), None)
    return float("nan") if document is None else float(document.derived_properties.k_vrh)


def import_atomate2() -> None:
    """Import what a flow needs, which is no part of its time."""
    import jobflow.managers.local  # noqa: F401


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return (processor seconds, result)."""
    began = time.process_time()
    result = function()
    return time.process_time() - began, result


def deviations(values: list[float], reference: list[float]) -> dict[str, Any]:
    """Return by how much moduli differ from the reference's, per cent."""
    apart = 100 * np.abs(np.array(values) - np.array(reference)) / np.abs(reference)
    apart = apart[np.isfinite(apart)]
    return {
        "n": len(apart),
        "median_percent": float(np.median(apart)),
        "largest_percent": float(apart.max()),
        "within_1_percent": int((apart <= 1.0).sum()),
    }


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alloys", type=int, default=24)
    parser.add_argument("--atomate", type=int, default=4, help="of the alloys, by atomate2 too")
    parser.add_argument("--group", type=int, default=8, help="alloys that the rows take in turn")
    parser.add_argument("--fmax", type=float, default=1e-3, help="eV/Å, of all relaxations in all rows")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    output = arguments.output.resolve()
    warnings.filterwarnings("ignore")
    crystals = draw_alloys(arguments.alloys, arguments.seed)
    double, single = get_calculator(NAME), get_calculator(NAME, dtype="float32")
    ours(crystals[:2], double, 0.1)  # the first evaluations compile
    ours(crystals[:2], single, 0.1)
    rows: dict[str, dict[str, list[float]]] = {
        name: {"seconds": [], "moduli": []} for name in ("ours", "ours float32", "plain ASE", "atomate2")
    }

    def add(name: str, seconds: float, moduli: list[float]) -> None:
        rows[name]["seconds"].append(seconds)
        rows[name]["moduli"] += moduli

    if arguments.atomate:
        import_atomate2()
    by_atomate = set(np.linspace(0, len(crystals) - 1, arguments.atomate).astype(int).tolist())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for start in range(0, len(crystals), arguments.group):
            group = crystals[start : start + arguments.group]
            add("ours", *timed(lambda group=group: ours(group, double, arguments.fmax)))
            add("ours float32", *timed(lambda group=group: ours(group, single, arguments.fmax)))
            for index, crystal in enumerate(group, start=start):
                seconds, modulus = timed(lambda crystal=crystal: plain_ase(crystal, double, arguments.fmax))
                add("plain ASE", seconds, [modulus])
                if index in by_atomate:
                    seconds, modulus = timed(lambda crystal=crystal: run_atomate2(crystal, arguments.fmax))
                    add("atomate2", seconds, [modulus])
        os.chdir(Path(__file__).parent)
    chosen = sorted(by_atomate)
    results: dict[str, Any] = {}
    for name, row in rows.items():
        if not row["moduli"]:
            continue
        reference = rows["ours"]["moduli"]
        results[name] = {
            "crystals": len(row["moduli"]),
            "seconds": sum(row["seconds"]),
            "crystals_per_minute": 60 * len(row["moduli"]) / sum(row["seconds"]),
            "bulk_modulus_vrh": row["moduli"],
            "against_ours": deviations(
                row["moduli"], [reference[i] for i in chosen] if name == "atomate2" else reference
            ),
        }
    rate = results["ours"]["crystals_per_minute"]
    print(f"{'row':14s} {'crystals':>8s} {'per minute':>10s} {'ours is':>8s} {'K within 1 %':>14s} {'largest':>8s}")
    for name, found in results.items():
        found["times_slower_than_ours"] = rate / found["crystals_per_minute"]
        apart = found["against_ours"]
        print(
            f"{name:14s} {found['crystals']:8d} {found['crystals_per_minute']:10.1f} "
            f"{found['times_slower_than_ours']:7.1f}x {apart['within_1_percent']:6d} of {apart['n']:3d} "
            f"{apart['largest_percent']:7.2f}%"
        )
    report = {
        "command": shlex.join(["python", "benchmarks/mechanics.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, one thread, {os.cpu_count()} cores shared with other work",
        "seed": arguments.seed,
        "fmax": arguments.fmax,
        "strain": STRAIN,
        "protocol": calculator_protocol(NAME),
        "formulas": [crystal.formula for crystal in crystals],
        "rows": results,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
