"""The files that the stand-in for VASP writes: vasprun.xml, OUTCAR, OSZICAR, CONTCAR and what it prints."""

from __future__ import annotations

import time
from itertools import groupby
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ase import Atoms

    from inv_design.testing_vasp import IonicStep, Run

VERSION = "6.4.3.stand-in"
PLATFORM = "stand-in of inv_design, not VASP"
H2_2M = 3.80998  # eV Å^2: hbar^2 / 2 m
CONVERGED, STUCK = 1e-9, 1e-2  # eV; last change of an electronic loop that converged, and of one that did not

DEFAULTS: dict[str, Any] = {
    "NELM": 60, "NELMDL": -5, "NELMIN": 2, "NSW": 0, "IBRION": -1, "ISIF": 2, "ISMEAR": 1, "SIGMA": 0.2, "ISPIN": 1,
    "ENCUT": 300.0, "EDIFF": 1e-4, "EDIFFG": 1e-3, "LORBIT": 0, "ALGO": "Normal", "GGA": "PE", "LHFCALC": False,
    "LCHIMAG": False, "LREAL": False, "LUSE_VDW": False, "NPAR": 1, "ISYM": 2, "NBANDS": 2, "NELECT": 0.0,
    "METAGGA": "--", "LWAVE": True, "LCHARG": True,
}  # fmt: skip
"""Parameters that parsers ask for, where INCAR does not say them."""


def write_outputs(folder: Path, run: Run, *, complete: bool) -> None:
    """Write what a run leaves; of one that is not ``complete`` OUTCAR has no end and CONTCAR is empty."""
    from ase.io.vasp import write_vasp

    (folder / "vasprun.xml").write_text("\n".join(vasprun_lines(run)) + "\n")
    (folder / "OUTCAR").write_text("\n".join(outcar_lines(run, complete=complete)) + "\n")
    (folder / "OSZICAR").write_text("\n".join(oszicar_lines(run)) + "\n")
    (folder / "CONTCAR").write_text("")
    if complete:
        write_vasp(str(folder / "CONTCAR"), run.steps[-1].atoms, direct=True, vasp5=True)
    print(f" running {VERSION}, {PLATFORM}: energies of {run.calculator}", *oszicar_lines(run), sep="\n", flush=True)
    if complete and run.relaxed:
        print(" reached required accuracy - stopping structural energy minimisation", flush=True)


def changes(run: Run) -> list[float]:
    """Return by how much the energy changes in each step of an electronic loop (eV)."""
    stuck = run.electronic >= int(run.incar.get("NELM", DEFAULTS["NELM"]))
    last = STUCK if stuck else CONVERGED
    return [last * 10 ** max(0, run.electronic - number - 1) if not stuck else last for number in range(run.electronic)]


def oszicar_lines(run: Run) -> Iterator[str]:
    """Yield the lines of OSZICAR."""
    before = 0.0
    for number, step in enumerate(run.steps, start=1):
        yield "       N       E                     dE             d eps       ncg     rms          rms(c)"
        for iteration, change in enumerate(changes(run), start=1):
            energy = step.energy + change
            yield f"DAV: {iteration:3d}  {energy: .12E}  {-change: .5E} {-change: .5E}   100   0.100E-03    0.100E-04"
        yield f"{number:4d} F= {step.energy: .8E} E0= {step.energy: .8E}  d E ={step.energy - before: .6E}"
        before = step.energy


def outcar_lines(run: Run, *, complete: bool) -> Iterator[str]:
    """Yield the lines of OUTCAR: what parsers and custodian's handlers read of it."""
    atoms = len(run.atoms)
    yield f" vasp.{VERSION} ({PLATFORM}; energies of {run.calculator})"
    yield f" executed on  {PLATFORM} date {time.strftime('%Y.%m.%d  %H:%M:%S', time.gmtime(run.started))}"
    yield " running    1 mpi-ranks, with    1 threads/rank, on    1 nodes"
    yield from (f" POTCAR:    {title}" for title in run.potcars)
    n = len(run.kpoints)
    yield f"   NKPTS = {n:6d}   k-points in BZ     NKDIM = {n:6d}   number of bands    NBANDS=      2"
    yield "   total plane-waves  NPLWV =      1"
    yield f"   IBRION = {int(run.incar.get('IBRION', -1)):6d}    ionic relax: 0-MD 1-quasi-New 2-CG"
    yield f"   ISPIN  = {int(run.incar.get('ISPIN', 1)):6d}    spin polarized calculation?"
    yield f"   NELECT =      {10.0 * atoms:.4f}    total number of electrons"
    yield f"   number of dos      NEDOS =    301   number of ions     NIONS = {atoms:6d}"
    for number, step in enumerate(run.steps, start=1):
        for iteration in range(1, run.electronic + 1):
            yield f"--------------------------------- Iteration {number:6d}({iteration:4d})  ----------------------"
            yield "  entropy T*S    EENTRO =        -0.00000000"
        if run.electronic < int(run.incar.get("NELM", DEFAULTS["NELM"])):
            yield "------------------------ aborting loop because EDIFF is reached --------------------------------"
        else:
            yield "------------------------ aborting loop EDIFF was not reached (unconverged)  --------------------"
        yield " E-fermi :   0.0000     XC(G=0):   0.0000     alpha+bet :   0.0000"
        stress = step.stress
        components = (stress[0, 0], stress[1, 1], stress[2, 2], stress[0, 1], stress[1, 2], stress[2, 0])
        yield "  FORCE on cell =-STRESS in cart. coord.  units (eV):"
        yield "  in kB     " + "".join(f"{value:12.5f}" for value in components)
        yield f"  external pressure = {stress.trace() / 3:12.2f} kB  Pullay stress = {0:12.2f} kB"
        yield "    total drift:                                0.000000      0.000000      0.000000"
        yield "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)"
        yield "  ---------------------------------------------------"
        yield f"  free  energy   TOTEN  = {step.energy:18.8f} eV"
        yield f"  energy  without entropy= {step.energy:18.8f}  energy(sigma->0) = {step.energy:18.8f}"
    if not complete:
        return
    if run.relaxed:
        yield " reached required accuracy - stopping structural energy minimisation"
    seconds = time.time() - run.started
    yield " General timing and accounting informations for this job:"
    yield " ========================================================"
    for name in ("Total CPU time used (sec)", "User time (sec)", "System time (sec)", "Elapsed time (sec)"):
        yield f"{name:>40}: {seconds:12.3f}"
    yield "                   Maximum memory used (kb):       100000."
    yield "                   Average memory used (kb):            0."


def vasprun_lines(run: Run) -> Iterator[str]:
    """Yield the lines of vasprun.xml."""
    yield '<?xml version="1.0" encoding="ISO-8859-1"?>'
    yield "<modeling>"
    yield " <generator>"
    stamps = (("date", time.strftime("%Y %m %d")), ("time", time.strftime("%H:%M:%S")))
    for name, text in (
        ("program", "vasp"),
        ("version", VERSION),
        ("subversion", PLATFORM),
        ("platform", PLATFORM),
        *stamps,
    ):
        yield f'  <i name="{name}" type="string">{text}</i>'
    yield " </generator>"
    yield " <incar>"
    yield from (_parameter(name, value) for name, value in run.incar.items())
    yield " </incar>"
    yield from _kpoints(run)
    yield ' <parameters>\n  <separator name="general">'
    parameters = {**DEFAULTS, "NELECT": 10.0 * len(run.atoms), **run.incar}
    yield from (_parameter(name, value) for name, value in parameters.items())
    yield "  </separator>\n </parameters>"
    yield from _atoms(run)
    yield from _structure(run.atoms, "initialpos")
    for number, step in enumerate(run.steps, start=1):
        yield from _calculation(run, step, last=number == len(run.steps))
    yield from _structure(run.steps[-1].atoms, "finalpos")
    yield "</modeling>"


def _parameter(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f'  <i type="logical" name="{name}">  {"T" if value else "F"}</i>'
    if isinstance(value, (list, tuple)):
        return f'  <v name="{name}">{" ".join(f"{float(v):.8f}" for v in value)}</v>'
    if isinstance(value, int):
        return f'  <i type="int" name="{name}">{value:6d}</i>'
    if isinstance(value, float):
        return f'  <i name="{name}">{value:16.8e}</i>'
    return f'  <i type="string" name="{name}">{escape(str(value))}</i>'


def _rows(name: str, rows: Iterable[Iterable[float]]) -> Iterator[str]:
    yield f'   <varray name="{name}">'
    for row in rows:
        yield "    <v>" + " ".join(f"{float(value):.16f}" for value in row) + "</v>"
    yield "   </varray>"


def _kpoints(run: Run) -> Iterator[str]:
    yield " <kpoints>"
    yield '  <generation param="Gamma">'
    yield f'   <v type="int" name="divisions">{" ".join(map(str, run.grid))}</v>'
    yield '   <v name="usershift">0.0 0.0 0.0</v>'
    yield "  </generation>"
    yield from _rows("kpointlist", run.kpoints)
    yield from _rows("weights", ([weight] for weight in run.weights))
    yield " </kpoints>"


def _atoms(run: Run) -> Iterator[str]:
    types = [(symbol, len(list(group))) for symbol, group in groupby(run.atoms.symbols)]
    yield f" <atominfo>\n  <atoms>{len(run.atoms)}</atoms>\n  <types>{len(types)}</types>"
    yield '  <array name="atoms"><dimension dim="1">ion</dimension><field type="string">element</field><set>'
    for number, (symbol, count) in enumerate(types, start=1):
        yield from (f"   <rc><c>{symbol}</c><c>{number}</c></rc>" for _ in range(count))
    yield '  </set></array>\n  <array name="atomtypes"><dimension dim="1">type</dimension><set>'
    for (symbol, count), title in zip(types, run.potcars, strict=True):
        yield f"   <rc><c>{count}</c><c>{symbol}</c><c>0.0</c><c>10.0</c><c>{escape(title)}</c></rc>"
    yield "  </set></array>\n </atominfo>"


def _structure(atoms: Atoms, name: str | None = None) -> Iterator[str]:
    yield f' <structure name="{name}">' if name else "  <structure>"
    yield "  <crystal>"
    yield from _rows("basis", atoms.cell[:])
    yield f'   <i name="volume">{atoms.get_volume():.8f}</i>'
    yield from _rows("rec_basis", atoms.cell.reciprocal()[:])
    yield "  </crystal>"
    yield from _rows("positions", atoms.get_scaled_positions(wrap=False))
    yield " </structure>"


def _calculation(run: Run, step: IonicStep, *, last: bool) -> Iterator[str]:
    yield " <calculation>"
    for change in changes(run):
        yield f"  <scstep>{_energy(step.energy + change)}</scstep>"
    yield from _structure(step.atoms)
    yield from _rows("forces", step.forces)
    yield from _rows("stress", step.stress)
    yield _energy(step.energy)
    if last:
        yield from _bands(run)
    yield " </calculation>"


def _energy(energy: float) -> str:
    names = ("e_fr_energy", "e_wo_entrp", "e_0_energy")
    return "<energy>" + "".join(f'<i name="{name}">{energy:.8f}</i>' for name in names) + "</energy>"


def _bands(run: Run) -> Iterator[str]:
    """Yield a full band and an empty one that overlap: there are no electrons here, and it should look like a metal."""
    import numpy as np

    vectors = 2 * np.pi * np.asarray(run.kpoints) @ run.steps[-1].atoms.cell.reciprocal()[:]
    squares = (vectors**2).sum(axis=1)
    energies = H2_2M * squares
    energies -= float(np.median(energies))
    spins = 2 if int(run.incar.get("ISPIN", 1)) == 2 else 1
    yield "  <eigenvalues><array><field>eigene</field><field>occ</field><set>"
    for spin in range(1, spins + 1):
        yield f'   <set comment="spin {spin}">'
        for number, energy in enumerate(energies, start=1):
            rows = "".join(f"<r>{energy:.4f} {filled:.4f}</r>" for filled in (1.0, 0.0))
            yield f'    <set comment="kpoint {number}">{rows}</set>'
        yield "   </set>"
    yield "  </set></array></eigenvalues>"
    yield '  <dos><i name="efermi">0.0</i><total><array><field>energy</field><set>'
    for spin in range(1, spins + 1):
        yield f'   <set comment="spin {spin}">'
        yield from (f"    <r>{e:.4f} {1.0:.4f} {max(e + 5, 0):.4f}</r>" for e in (-5.0, 0.0, 5.0))
        yield "   </set>"
    yield "  </set></array></total></dos>"
