"""The gpaw backend on known crystals and on a candidate of the loop, beside literature; and why its defaults are these.

    python benchmarks/gpaw_crystals.py Al NiAl Ir NbOs3      # 10 to 60 minutes each on one core
    python benchmarks/gpaw_crystals.py convergence          # stiffnesses of NiAl and Ir against cutoff and k points

Each result goes into results/gpaw.json as soon as it is there, each line of a log into results/gpaw_NAME.log: what is
interrupted goes on where it was, from the results that GPAW's calculator keeps.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Lattice, Structure

from fireworks_specs.backends.gpaw import Gpaw, measure
from inv_design.calculators.gpaw_calculator import GpawCalculator
from inv_design.calculators.gpaw_settings import CONVERGENCE, gpaw_versions
from inv_design.config import CampaignConfig, DftConfig, GpawConfig
from inv_design.mechanics.evaluate import GPA_PER_EV_A3, to_atoms

RESULTS = Path(__file__).parent / "results"
OUTPUT = RESULTS / "gpaw.json"


def cubic(group: str, a: float, species: list[str], sites: list[list[float]]) -> Structure:
    return Structure.from_spacegroup(group, Lattice.cubic(a), species, sites).get_primitive_structure()


CRYSTALS: dict[str, tuple[str, Structure, dict[str, float], str]] = {
    "Al": ("eos", cubic("Fm-3m", 4.05, ["Al"], [[0, 0, 0]]), {"K": 77.0}, "PBE, textbook value, not looked up again"),
    "NiAl": (
        "elastic",
        cubic("Pm-3m", 2.88, ["Ni", "Al"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        {"K": 159.0, "C11": 199.0, "C12": 137.0, "C44": 116.0},
        "K: PBE; C_ij: measured at room temperature (K 158); textbook values, not looked up again",
    ),
    "Ir": (
        "elastic",
        cubic("Fm-3m", 3.84, ["Ir"], [[0, 0, 0]]),
        {"K": 347.0, "C11": 590.0, "C12": 249.0, "C44": 262.0},
        "K: PBE; C_ij: measured (K 363); textbook values, not looked up again",
    ),
    "NbOs3": (
        "elastic",
        cubic("Pm-3m", 3.9373, ["Nb", "Os"], [[0, 0, 0], [0.5, 0.5, 0]]),
        {"K": 339.3},
        "no literature, but the loop's own stage II (mace-alloy-small: K 339.3, G 82.4): candidate "
        "c-c3d30cae15a3f9eb3839 of round 0 of the demo campaign at 350 GPa; predictor 331.9 +- 13.6, surrogate "
        "(CHGNet's E(V)) 338.5",
    ),
}
"""Name -> (kind, crystal to start from, values in GPa, where they come from)."""

DEFAULT = GpawConfig()
VARIED: dict[str, list[dict[str, float]]] = {
    "NiAl": [
        *({"k_density": d, "smearing": 0.15} for d in (5.0, 6.0, 7.0)),
        *({"k_density": d} for d in (5.0, 6.0, 7.0, 8.0)),
        *({"cutoff": c} for c in (400.0, 700.0)),
    ],
    "Ir": [
        *({"k_density": d} for d in (5.0, 6.0, 7.0)),
        *({"cutoff": c} for c in (400.0, 700.0)),
    ],
}
"""Settings of the convergence tests; what is not named is the default."""
FIXED = {"NiAl": 2.8992, "Ir": 3.8667}
"""Å; lattice constants of the convergence tests."""
STRAIN = 0.0075


def run(name: str, config: GpawConfig) -> dict[str, Any]:
    """Return the result of one crystal through the backend."""
    kind, structure, reference, source = CRYSTALS[name]
    stage = DftConfig(backend="gpaw", gpaw=config.model_copy(update={"kind": kind}))
    campaign = CampaignConfig(name="b", targets={"bulk_modulus_vrh": "350 GPa"}, stages={"dft": stage.model_dump()})
    logging.info("%s", json.dumps(Gpaw(stage).protocol(campaign)))
    start, cpu = time.time(), os.times()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        record = measure(structure, stage)
        os.chdir(RESULTS)
    used = os.times()
    results = {k: v for k, v in record["results"].items() if k != "frames"}
    found = {"K": results.get("bulk_modulus_vrh")}
    if "elastic_tensor" in results:
        tensor = np.array(results["elastic_tensor"])
        found |= {"C11": tensor[0, 0], "C12": tensor[0, 1], "C44": tensor[3, 3]}
    return {
        "kind": kind,
        "formula": structure.composition.reduced_formula,
        "state": record["state"],
        "error": record["error"],
        "flags": record["flags"],
        "found": found,
        "literature": reference,
        "literature_source": source,
        "deviation_percent": {k: 100 * (found[k] / v - 1) for k, v in reference.items() if found.get(k)},
        "frames": len(record["results"].get("frames", [])),
        "wall_s": time.time() - start,
        "cpu_s": sum(used[:4]) - sum(cpu[:4]),
        **results,
    }


def stiffness(name: str, config: GpawConfig, *, shear: bool = True) -> dict[str, Any]:
    """Return C11, C12, C44 and K (GPa) of a cubic crystal at a fixed cell, from stresses at ±0.75 % strain."""
    _, start, _, _ = CRYSTALS[name]
    atoms = to_atoms(start)
    scale = FIXED[name] / Structure(start.lattice, start.species, start.frac_coords).to_conventional().lattice.a
    atoms.set_cell(atoms.cell.array * scale, scale_atoms=True)

    def stress(voigt: list[float]) -> np.ndarray:
        xx, yy, zz, yz, xz, xy = voigt
        strain = np.array([[xx, xy / 2, xz / 2], [xy / 2, yy, yz / 2], [xz / 2, yz / 2, zz]])
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        with GpawCalculator(config, size=size) as calculator:
            strained.calc = calculator
            found = np.array(strained.get_stress()) * GPA_PER_EV_A3
            seconds.append(calculator.evaluations[-1]["seconds"])
        return found

    with GpawCalculator(config) as calculator:
        calculator.settings(atoms)
        size, seconds = calculator.size, []
    normal = (stress([STRAIN, 0, 0, 0, 0, 0]) - stress([-STRAIN, 0, 0, 0, 0, 0])) / (2 * STRAIN)
    c44 = stress([0, 0, 0, STRAIN, 0, 0])[3] / STRAIN if shear else None
    c11, c12 = normal[0], (normal[1] + normal[2]) / 2
    return {
        "cutoff": config.cutoff, "k_density": config.k_density, "k_points": size, "smearing": config.smearing,
        "C11": c11, "C12": c12, "C44": c44, "K": (c11 + 2 * c12) / 3, "seconds": sum(seconds),
    }  # fmt: skip


def smearing() -> None:
    """Add C11 and C12 of NiAl at a cheap cutoff, on which the k points that are needed do not depend."""
    rows = []
    for width, density in ((0.3, 6.0), (0.3, 7.0), (0.3, 8.0), (0.2, 7.0), (0.2, 8.0), (0.15, 8.0)):
        config = DEFAULT.model_copy(update={"spin": "off", "cutoff": 400.0, "smearing": width, "k_density": density})
        rows.append(stiffness("NiAl", config, shear=False))
        print(json.dumps(rows[-1]), flush=True)
        store("smearing_NiAl", {"lattice_constant": FIXED["NiAl"], "strain": STRAIN, "rows": rows})


def convergence(name: str) -> None:
    """Add the convergence of a crystal to the results, setting by setting."""
    rows = []
    for varied in VARIED[name]:
        rows.append(stiffness(name, DEFAULT.model_copy(update={"spin": "off", **varied})))
        print(json.dumps(rows[-1]), flush=True)
        store(f"convergence_{name}", {"lattice_constant": FIXED[name], "strain": STRAIN, "rows": rows})


class Tight(GpawCalculator):
    """GPAW with criteria of self-consistency a hundred times as strict."""

    def settings(self, atoms: Any) -> dict[str, Any]:
        """Return the settings with other criteria."""
        criteria = {name: value / 100 for name, value in CONVERGENCE.items()}
        return super().settings(atoms) | {"convergence": criteria}


def self_consistency() -> dict[str, Any]:
    """Return what the criteria of self-consistency leave in energy (eV/atom), forces (eV/Å) and stress (GPa)."""
    atoms = to_atoms(CRYSTALS["NiAl"][1])
    atoms.set_cell(atoms.cell.array @ np.diag([1 + STRAIN, 1, 1]), scale_atoms=True)
    atoms.positions[1] += 0.02
    found = []
    for kind in (GpawCalculator, Tight):
        with kind(DEFAULT.model_copy(update={"spin": "off", "k_density": 3.0})) as calculator:
            crystal = atoms.copy()
            crystal.calc = calculator
            found.append((crystal.get_potential_energy(), crystal.get_forces(), crystal.get_stress()))
    names = (("energy_per_atom_ev", 1 / len(atoms)), ("forces_ev_a", 1.0), ("stress_gpa", GPA_PER_EV_A3))
    return {
        "criteria": CONVERGENCE,
        "beside": "the same, 100 times as strict; NiAl, strained and displaced",
        **{name: float(np.abs(a - b).max()) * unit for (name, unit), a, b in zip(names, *found, strict=True)},
    }


def store(name: str, result: dict[str, Any]) -> None:
    """Put one result into the file of all, which another process may have changed meanwhile."""
    content = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    content |= {
        "command": "python benchmarks/gpaw_crystals.py Al NiAl Ir NbOs3 convergence",
        "versions": gpaw_versions(),
        "python": platform.python_version(),
    }
    content.setdefault("results", {})[name] = result
    partial = OUTPUT.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(OUTPUT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(CRYSTALS), help=f"{', '.join(CRYSTALS)} or convergence")
    parser.add_argument("--ranks", type=int, default=1)
    arguments = parser.parse_args()
    logging.getLogger("jobflow").setLevel(logging.WARNING)
    for name in arguments.names:
        handler = logging.FileHandler(RESULTS / f"gpaw_{name}.log", mode="a")
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=[handler], force=True)
        logging.info("started with %s", shlex.join(sys.argv[1:]))
        if name == "convergence":
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                store("self_consistency", self_consistency())
                smearing()
                for crystal in FIXED:
                    convergence(crystal)
                os.chdir(RESULTS)
            continue
        store(name, run(name, GpawConfig(ranks=arguments.ranks)))
        print(json.dumps(json.loads(OUTPUT.read_text())["results"][name], indent=1))


if __name__ == "__main__":
    main()
