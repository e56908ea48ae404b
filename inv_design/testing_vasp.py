"""A stand-in for VASP, for tests: it reads a calculation's inputs and writes files that pymatgen and atomate2 parse.

``python -m inv_design.testing_vasp`` in a folder with POSCAR, INCAR, POTCAR and, unless INCAR has KSPACING, KPOINTS
does what VASP would do there, but with a potential in place of the electrons: energies, forces and stresses are those
of ``$INV_DESIGN_VASP_CALCULATOR`` (a calculator's name, ``mace-alloy-small`` unless set), ions and cell move as IBRION,
ISIF, NSW and EDIFFG ask for. Its outputs call themselves a stand-in. It fails as VASP does when it is told to, see
:func:`planned_failure`. :func:`install` puts it on a PATH, :func:`write_potcars` makes what stands for POTCARs.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import sys
import time
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ase import Atoms

CALCULATOR_VARIABLE = "INV_DESIGN_VASP_CALCULATOR"
FAIL_VARIABLE = "INV_DESIGN_VASP_FAIL"
STATE_VARIABLE = "INV_DESIGN_VASP_STATE"
SLEEP_VARIABLE = "INV_DESIGN_VASP_SLEEP"
"""Seconds that each run lasts at least: for tests that interrupt it."""

FAILURES = ("unconverged", "memory", "killed", "truncated")
ZERO = {"emt": -4.0}
"""Calculator -> eV per atom that are added: EMT counts from the bulk metals, and custodian takes positive for wrong."""
KBAR = 1602.176634  # kB per eV/Å^3


@dataclass
class IonicStep:
    """One ionic step: the crystal, energy (eV), forces (eV/Å) and stress (kB, VASP's sign: compressive is positive)."""

    atoms: Atoms
    energy: float
    forces: Any
    stress: Any


@dataclass
class Run:
    """What a run has done so far.

    Attributes
    ----------
    grid, kpoints, weights
        Divisions, irreducible k points (fractional) and their weights.
    electronic
        Steps of each electronic loop: NELM if it did not converge.
    relaxed
        Whether the ions came to where they belong.
    """

    incar: dict[str, Any]
    atoms: Atoms
    potcars: list[str]
    calculator: str
    grid: tuple[int, int, int]
    kpoints: Any
    weights: Any
    electronic: int
    steps: list[IonicStep] = field(default_factory=list)
    relaxed: bool = False
    started: float = field(default_factory=time.time)


def main(folder: Path = Path()) -> int:
    """Run in a folder and return the exit status."""
    from inv_design import testing_vasp_files as files

    run = prepare(folder)
    failure = planned_failure(str(run.atoms.symbols), relaxes=int(run.incar.get("ISIF", 2)) > 2)
    if failure == "unconverged":
        run.electronic = int(run.incar.get("NELM", 60))
    time.sleep(float(os.environ.get(SLEEP_VARIABLE, "0")))
    limit = 1 if failure in ("memory", "killed") else None
    move(run, limit=limit)
    files.write_outputs(folder, run, complete=failure not in ("memory", "killed"))
    if failure in ("memory", "killed", "truncated"):
        vasprun = folder / "vasprun.xml"
        vasprun.write_text(vasprun.read_text()[: int(0.6 * vasprun.stat().st_size)])
    if failure == "memory":
        print("slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Out Of Memory", file=sys.stderr, flush=True)
    if failure in ("memory", "killed"):
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


def planned_failure(formula: str, *, relaxes: bool) -> str | None:
    """Return how this run fails, if it does, and count it.

    ``$INV_DESIGN_VASP_FAIL`` has a comma-separated list of ``HOW[@FORMULA][/relax|/strain][*TIMES]``: a failure of
    :data:`FAILURES`, of all crystals or of one formula, in relaxations of the cell or in the strained cells, so many
    times or for ever: ``killed@NiAl/strain*1,unconverged@Cu3Au``. The runs are counted in the folder
    ``$INV_DESIGN_VASP_STATE``.

    Raises
    ------
    ValueError
        If an entry is not of this form.
    """
    for entry in filter(None, os.environ.get(FAIL_VARIABLE, "").split(",")):
        match = re.fullmatch(r"(\w+)(?:@([A-Za-z0-9]+))?(?:/(relax|strain))?(?:\*(\d+))?", entry.strip())
        if match is None or match[1] not in FAILURES:
            raise ValueError(f"{FAIL_VARIABLE}: {entry!r} is not HOW[@FORMULA][/relax|/strain][*TIMES]; {FAILURES}")
        how, wanted, kind, times = match.groups()
        if wanted and _composition(wanted) != _composition(formula):
            continue
        if kind and (kind == "relax") != relaxes:
            continue
        if times is None or _count(entry, formula) <= int(times):
            return how
    return None


def _composition(formula: str) -> dict[str, int]:
    from ase.formula import Formula

    return Formula(formula).reduce()[0].count()


def _count(entry: str, formula: str) -> int:
    """Return how often an entry was met, this time included; the runs are one after the other."""
    folder = Path(os.environ[STATE_VARIABLE])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / re.sub(r"\W", "_", f"{entry}-{formula}")
    with path.open("a") as counter:
        counter.write(".")
    return path.stat().st_size


# -- inputs -----------------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> Run:
    """Return the run that a folder's inputs describe.

    Raises
    ------
    FileNotFoundError
        If POSCAR, INCAR or POTCAR is missing, or KPOINTS where INCAR has no KSPACING.
    ValueError
        If POTCAR does not fit POSCAR.
    """
    from ase.io.vasp import read_vasp

    incar = read_incar((folder / "INCAR").read_text())
    atoms = read_vasp(str(folder / "POSCAR"))
    potcars = re.findall(r"TITEL\s*=\s*(.+)", (folder / "POTCAR").read_text())
    species = [symbol for symbol, _ in groupby(atoms.symbols)]  # POSCAR may name an element again
    titles = [title.split()[1].split("_")[0] for title in potcars]
    if titles != species:
        raise ValueError(f"POTCAR is of {titles}, POSCAR of {species}")
    calculator = os.environ.get(CALCULATOR_VARIABLE, "mace-alloy-small")
    grid = divisions(folder, atoms, incar)
    kpoints, weights = irreducible(atoms, grid)
    return Run(incar, atoms, [title.strip() for title in potcars], calculator, grid, kpoints, weights, electronic=8)


def read_incar(text: str) -> dict[str, Any]:
    """Return the tags of an INCAR with their values as truth values, numbers, lists of numbers or text."""
    found = {}
    for part in re.split(r"[\n;]", re.sub(r"[#!].*", "", text)):
        name, equals, value = part.partition("=")
        if equals:
            found[name.strip().upper()] = _value(value.split())
    return found


def _value(words: list[str]) -> Any:
    if len(words) == 1 and (logical := re.fullmatch(r"\.?(T|F)(RUE|ALSE)?\.?", words[0].upper())):
        return logical[1] == "T"
    numbers: list[float] = []
    for word in words:
        times, star, number = word.rpartition("*")
        try:
            numbers += [float(number)] * (int(times) if star else 1)
        except ValueError:
            return " ".join(words)
    if len(words) > 1 or "*" in words[0]:
        return numbers
    return int(words[0]) if re.fullmatch(r"[+-]?\d+", words[0]) else numbers[0]


def divisions(folder: Path, atoms: Atoms, incar: dict[str, Any]) -> tuple[int, int, int]:
    """Return the k-point grid: of an automatic KPOINTS, else of KSPACING, in 1/Å with the factor 2π."""
    import math

    import numpy as np

    if (folder / "KPOINTS").exists():
        one, two, three = map(int, (folder / "KPOINTS").read_text().splitlines()[3].split()[:3])
        return one, two, three
    if "KSPACING" not in incar:
        raise FileNotFoundError("no KPOINTS here, and no KSPACING in INCAR")
    lengths = 2 * math.pi * np.linalg.norm(atoms.cell.reciprocal()[:], axis=1)
    one, two, three = (max(1, math.ceil(length / float(incar["KSPACING"]))) for length in lengths)
    return one, two, three


def irreducible(atoms: Atoms, grid: Iterable[int]) -> tuple[Any, Any]:
    """Return the irreducible k points of a Γ-centred grid and their weights."""
    import numpy as np
    import spglib

    cell = (atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers)
    mapping, addresses = spglib.get_ir_reciprocal_mesh(list(grid), cell, is_shift=[0, 0, 0])
    chosen, counts = np.unique(mapping, return_counts=True)
    return addresses[chosen] / np.array(list(grid)), counts / counts.sum()


# -- the calculation --------------------------------------------------------------------------------------------------


def move(run: Run, *, limit: int | None = None) -> None:
    """Evaluate the crystal, and relax it as INCAR says, until there is a STOPCAR; add each ionic step to the run."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS

    from inv_design.calculators.registry import get_calculator

    incar = run.incar
    atoms = run.atoms.copy()
    atoms.calc = get_calculator(run.calculator)
    steps = int(incar.get("NSW", 0)) if int(incar.get("IBRION", -1)) in (1, 2, 3) else 0
    steps = min(steps, limit) if limit is not None else steps
    if steps <= 1:
        record(run, atoms)
        return
    moved: Any = FrechetCellFilter(atoms) if int(incar.get("ISIF", 2)) >= 3 else atoms
    threshold = float(incar.get("EDIFFG", 10 * float(incar.get("EDIFF", 1e-4))))
    optimiser = BFGS(moved, logfile=None)
    for done, converged in enumerate(optimiser.irun(fmax=abs(threshold) if threshold < 0 else 1e-8, steps=steps - 1)):
        record(run, atoms)
        change = abs(run.steps[-1].energy - run.steps[-2].energy) if done else float("inf")
        run.relaxed = bool(converged or (threshold > 0 and change < threshold))
        if run.relaxed or Path("STOPCAR").exists():
            return


def record(run: Run, atoms: Atoms) -> None:
    """Add the present crystal to a run's ionic steps."""
    stress = -atoms.get_stress(voigt=False) * KBAR
    energy = float(atoms.get_potential_energy()) + ZERO.get(run.calculator, 0.0) * len(atoms)
    run.steps.append(IonicStep(atoms.copy(), energy, atoms.get_forces(), stress))


# -- setting it up ----------------------------------------------------------------------------------------------------


def install(folder: Path, name: str = "vasp_std") -> Path:
    """Write the stand-in as an executable into a folder, which belongs on the PATH; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m inv_design.testing_vasp\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def write_potcars(folder: Path, symbols: Iterable[str], functional: str = "POT_GGA_PAW_PBE_54") -> Path:
    """Write a PMG_VASP_PSP_DIR with files that have a POTCAR's header and nothing else; return it.

    Parameters
    ----------
    symbols
        POTCAR symbols, such as ``Ni_pv``.
    """
    from ase.data import atomic_masses, atomic_numbers

    for symbol in symbols:
        element = symbol.split("_")[0]
        number = atomic_numbers[element]
        title = f"PAW_PBE {symbol} 01Jan2000"
        lines = (
            f"  {title}",
            f"   {number:.15f}",
            " parameters from PSCTR are:",
            f"   VRHFIN ={element}: stand-in",
            "   LEXCH  = PE",
            "   EATOM  =     0.0000 eV,     0.0000 Ry",
            f"   TITEL  = {title}",
            "   LULTRA =        F    use ultrasoft PP ?",
            "   IUNSCR =        0    unscreen: 0-lin 1-nonlin 2-no",
            "   RPACOR =     .000    partial core radius",
            f"   POMASS = {atomic_masses[number]:8.3f}; ZVAL   = {min(number, 10):8.3f}    mass and valenz",
            "   RCORE  =    2.000    outmost cutoff radius",
            "   ENMAX  =  300.000; ENMIN  =  200.000 eV",
            " END of PSCTR-controll parameters",
            " local part",
            " 0.0 0.0 a stand-in for tests: it holds no potential",
            " End of Dataset",
        )
        path = folder / functional / symbol / "POTCAR"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return folder


if __name__ == "__main__":
    sys.exit(main())
