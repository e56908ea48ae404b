"""GPAW in a process of its own: results are kept, and a calculation that dies is an error, not a dead worker."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.subprocesscalculator import MPICommand, NamedPackedCalculator, PythonSubProcessCalculator

from inv_design.calculators.gpaw_settings import (
    MIN_MOMENT,
    PATIENT,
    gpaw_settings,
    gpaw_versions,
    is_magnetic,
    k_grid,
    starting_moments,
    use_packaged_setups,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from ase import Atoms

    from inv_design.config import GpawConfig

LOG = logging.getLogger(__name__)

LOG_FILE, ERROR_FILE = "gpaw.txt", "gpaw.err"
QUANTITIES = ("energy", "free_energy", "forces", "stress")
MAGNETIC = ("magmom", "magmoms")
RANKS_VARIABLE = "INV_DESIGN_GPAW_RANKS"
"""MPI ranks of a calculation on this worker, whatever the settings say."""


class GpawCalculator(Calculator):
    """PBE energies, forces and stresses of crystals by GPAW; use it in a ``with`` block, which ends its process.

    The grid of k points is fixed by the first crystal, so that strained cells that follow are comparable. Each result
    is kept in a folder of this user (:func:`results_folder`), by crystal and settings: a calculation that is repeated,
    as after a walltime, goes on where it was.

    Parameters
    ----------
    config
        Cutoff, k-point density, smearing, spin and MPI ranks.
    size
        The grid of k points; ``None``: that of the first crystal, see :func:`~.gpaw_settings.k_grid`.
    spinpol
        Whether to compute with spin; ``None``: as ``config.spin`` says for the first crystal. With ``auto``, crystals
        that follow one without a moment are computed without spin, in half the time: volumes from small to large want
        ``on`` or ``off``, see :func:`fireworks_specs.backends.gpaw.spin_of`.
    keep
        Whether to read and write kept results.

    Attributes
    ----------
    evaluations
        What was computed or read since the calculator was made, one dictionary each, in order.
    """

    name = "gpaw"
    implemented_properties = list(QUANTITIES)  # noqa: RUF012 - ASE's own way; with spin also MAGNETIC

    def __init__(
        self,
        config: GpawConfig,
        *,
        size: Sequence[int] | None = None,
        spinpol: bool | None = None,
        keep: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.size = None if size is None else [int(n) for n in size]
        self.spinpol = spinpol
        self.keep = keep
        self.evaluations: list[dict[str, Any]] = []
        self._process: GpawProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process of GPAW, if one runs."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def settings(self, atoms: Atoms) -> dict[str, Any]:
        """Return GPAW's settings; the first crystal fixes the k points and whether there is spin."""
        if self.size is None:
            self.size = k_grid(atoms, self.config.k_density)
        if self.spinpol is None:
            self.spinpol = is_magnetic(atoms.get_chemical_symbols(), self.config.spin)
        self.implemented_properties = [*QUANTITIES, *(MAGNETIC if self.spinpol else ())]
        return gpaw_settings(self.config, self.size, spinpol=self.spinpol)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = QUANTITIES,
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute everything at once: energy (eV), forces (eV/Å), stress (eV/Å^3), with spin moments (μB).

        Raises
        ------
        ValueError
            If GPAW has no data set for an element.
        ArithmeticError
            If the electrons do not converge, not in small steps either.
        ChildProcessError, MemoryError, TimeoutError
            If GPAW was killed, ran out of memory, or was terminated.
        NotStarted
            If this machine did not start GPAW; it has not seen the crystal.
        RuntimeError
            If GPAW is not installed, or fails of anything else.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        crystal: Any = self.atoms
        settings = self.settings(crystal)
        path = results_folder() / f"{result_key(crystal, settings)}.json"
        results = read_result(path, len(crystal)) if self.keep else None
        kept = results is not None
        if results is None:
            results = self._compute(crystal, settings)
            if self.keep:
                write_result(path, results)
        if self.config.spin == "auto" and self.spinpol and not has_moment(results):
            self.close()
            self.spinpol, self.implemented_properties = False, list(QUANTITIES)
        found = {k: v for k, v in results.items() if k in self.implemented_properties}
        self.results = {k: np.array(v) if isinstance(v, list) else v for k, v in found.items()}
        self.evaluations.append(evaluation_of(crystal, settings, results) | {"kept": kept})
        LOG.info(describe(self.evaluations[-1]))

    def _compute(self, atoms: Atoms, settings: dict[str, Any]) -> dict[str, Any]:
        start = time.monotonic()
        try:
            results = self._asked(atoms, settings)
        except ArithmeticError as error:
            LOG.info("%s; once more with small steps", error)
            results = self._asked(atoms, settings | PATIENT)
            self.close()  # the next crystal has a right to the fast way
        return results | {"seconds": time.monotonic() - start}

    def _asked(self, atoms: Atoms, settings: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._process = GpawProcess(settings, ranks=ranks_of(self.config))
        atoms = atoms.copy()
        if self.spinpol:
            atoms.set_initial_magnetic_moments(starting_moments(atoms.get_chemical_symbols()))
        try:
            return self._process.results(atoms, self.implemented_properties)
        except Exception:
            self.close()
            raise


def has_moment(results: dict[str, Any]) -> bool:
    """Return whether an atom has a moment; in results without spin none has."""
    return bool(np.abs(results.get("magmoms", 0.0)).max() >= MIN_MOMENT)


def evaluation_of(atoms: Atoms, settings: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Return what a log and a table tell of one evaluation; stress in eV/Å^3, Voigt order, tension positive."""
    return {
        "formula": atoms.get_chemical_formula(),
        "cutoff": settings["mode"]["ecut"],
        "k_points": list(settings["kpts"]["size"]),
        "spinpol": settings["spinpol"],
        "volume_per_atom": atoms.get_volume() / len(atoms),
        "energy_per_atom": results["energy"] / len(atoms),
        "max_force": float(np.linalg.norm(results["forces"], axis=1).max()),
        "stress": list(results["stress"]),
        "moment": results.get("magmom"),
        "iterations": results.get("iterations"),
        "seconds": results.get("seconds"),
    }


def describe(evaluation: dict[str, Any]) -> str:
    """Return one line of a log for an evaluation of :class:`GpawCalculator`; stress in GPa, tension positive."""
    from ase.units import GPa

    stress = " ".join(f"{s / GPa:8.3f}" for s in evaluation["stress"])
    moment = "" if evaluation["moment"] is None else f"  {evaluation['moment']:.2f} μB"
    how = "kept" if evaluation["kept"] else f"{evaluation['iterations']} iterations {evaluation['seconds']:.0f} s"
    grid = "x".join(str(n) for n in evaluation["k_points"])
    return (
        f"{evaluation['formula']} {evaluation['cutoff']:g} eV {grid}: V {evaluation['volume_per_atom']:.4f} Å^3/atom  "
        f"E {evaluation['energy_per_atom']:.6f} eV/atom  F {evaluation['max_force']:.4f} eV/Å  stress {stress} GPa"
        f"{moment}  {how}"
    )


# -- the process ------------------------------------------------------------------------------------------------------

PIPE_ERRORS = (EOFError, ConnectionError)
"""What reading and writing a pipe raises when there is nobody at its other end."""


class NotStarted(RuntimeError):  # noqa: N818
    """GPAW ended before its first word, or its program is missing: it is the machine's fault and no crystal's."""


class GpawProcess:
    """GPAW behind a pipe, on one or more MPI ranks; it writes ``gpaw.txt`` and ``gpaw.err`` where it was started."""

    def __init__(self, settings: dict[str, Any], *, ranks: int) -> None:
        self.folder = Path.cwd()
        self.settings = settings
        self.command = GpawCommand(ranks, self.folder / ERROR_FILE)
        packed = NamedPackedCalculator("gpaw", settings | {"txt": str(self.folder / LOG_FILE)})
        self.calculator = PythonSubProcessCalculator(packed, mpi_command=self.command)

    def results(self, atoms: Atoms, properties: Sequence[str]) -> dict[str, Any]:
        """Return the results of a crystal in plain numbers; errors as in :meth:`GpawCalculator.calculate`."""
        self.calculator.results.clear()
        if self.calculator.protocol is None:
            self._start()
        try:
            self.calculator.calculate(atoms, list(properties), all_changes)
        except Exception as error:
            raise self._translated(error) from error
        found = {key: value for key, value in self.calculator.results.items() if key in properties}
        numbers = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in found.items()}
        return numbers | {"iterations": last_iterations(self.folder / LOG_FILE)}

    def _start(self) -> None:
        """Start the process and wait until it answers: MPI runs then, GPAW is imported and accepts its settings.

        On each rank, with no other data sets than gpaw-data's: see :func:`~.gpaw_settings.use_packaged_setups`.
        """
        try:
            self.calculator.__enter__()  # close() leaves it
            protocol: Any = self.calculator.protocol
            protocol.send("callfunction")
            protocol.send((use_packaged_setups, (), {}))
            protocol.recv()
        except PIPE_ERRORS as error:
            cause = self._cause_of_death()
            raise (NotStarted(f"GPAW did not start: {cause}") if type(cause) is RuntimeError else cause) from error
        except (FileNotFoundError, PermissionError, ImportError) as error:
            raise NotStarted(f"GPAW did not start: {one_line(error)}") from error

    def close(self) -> None:
        """End the process: asked first, then told."""
        protocol, self.calculator.protocol = self.calculator.protocol, None
        process = self.command.process
        if process is None:
            return
        try:
            if protocol is not None:
                protocol.send("stop")
                process.communicate(timeout=20)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            pass
        process.kill()  # nothing happens to one that has ended
        process.wait()

    def _translated(self, error: Exception) -> Exception:
        """Return what an error of the pipe or of GPAW means, in built-in types."""
        if isinstance(error, FileNotFoundError) and error.filename is None:  # GPAW's own; other files have a name
            return ValueError(f"GPAW lacks a data set: {one_line(error)}")
        if isinstance(error, PIPE_ERRORS):
            return self._cause_of_death()
        if type(error).__name__ in ("KohnShamConvergenceError", "TooFewBandsError"):
            steps = last_iterations(self.folder / LOG_FILE)
            return ArithmeticError(f"the electrons did not converge in {steps} iterations")
        if isinstance(error, MemoryError):
            return MemoryError(f"GPAW ran out of memory: {one_line(error)}")
        return RuntimeError(f"GPAW: {type(error).__name__}: {one_line(error)}")

    def _cause_of_death(self) -> Exception:
        process = self.command.process
        try:
            code = None if process is None else process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            code = None
        tail = last_lines(self.folder / ERROR_FILE)
        said = f": {tail}" if tail else ""
        if code in (-9, 137):
            return ChildProcessError(f"GPAW was killed, by the system for its memory or by the queue{said}")
        if code in (-15, 143):
            return TimeoutError(f"GPAW was terminated, by the queue or by hand{said}")
        if "MemoryError" in tail or "Cannot allocate memory" in tail:
            return MemoryError(f"GPAW ran out of memory{said}")
        return RuntimeError(f"GPAW ended with exit code {code}{said}")


class GpawCommand(MPICommand):
    """How the process is started: Python alone, or ``mpiexec`` with GPAW's own interpreter on several ranks."""

    def __init__(self, ranks: int, errors: Path) -> None:
        module = ["-m", "ase.calculators.subprocesscalculator", "standard"]
        argv = [sys.executable, *module]
        if ranks > 1:
            argv = [*mpi_launcher(), "-n", str(ranks), sys.executable, "-m", "gpaw", "python", *module]
        super().__init__(argv)
        self.errors = errors
        self.process: subprocess.Popen[bytes] | None = None

    def execute(self) -> subprocess.Popen[bytes]:
        """Start the process; threads below MPI would only fight each other."""
        pipe, environment = subprocess.PIPE, {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                self.argv,
                stdin=pipe,
                stdout=pipe,
                stderr=errors,
                env=environment,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - one system call
            )
        return self.process


def _die_with_parent() -> Callable[[], None] | None:
    """Return what a new process calls so that it does not compute on for hours after its worker was killed (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, set_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_death_signal, signal.SIGTERM)


def ranks_of(config: GpawConfig) -> int:
    """Return the number of MPI ranks: ``$INV_DESIGN_GPAW_RANKS`` on a worker that sets it, else the settings'.

    Raises
    ------
    RuntimeError
        If the variable is no number of ranks.
    """
    text = os.environ.get(RANKS_VARIABLE, "")
    if text and not (text.isdigit() and int(text)):
        raise RuntimeError(f"{RANKS_VARIABLE} is {text!r} on this worker; it must be a number of MPI ranks, at least 1")
    return int(text) if text else config.ranks


def mpi_launcher() -> list[str]:
    """Return the words that start MPI: ``$INV_DESIGN_MPIEXEC`` (such as ``srun``), or ``mpiexec``.

    Raises
    ------
    RuntimeError
        If there is no such program.
    """
    words = os.environ.get("INV_DESIGN_MPIEXEC", "mpiexec").split()
    if not words or shutil.which(words[0]) is None:
        raise RuntimeError(
            f"{' '.join(words)!r} is not on this worker's PATH; install or load Open MPI, set INV_DESIGN_MPIEXEC to "
            f"what starts MPI programs here, or set {RANKS_VARIABLE}=1"
        )
    return words


def last_iterations(path: Path) -> int | None:
    """Return the number of the last self-consistency step in a log of GPAW."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        found = line.replace("|", " ").split()
        if found[:1] == ["iter:"] and found[1].isdigit():
            return int(found[1])
    return None


def last_lines(path: Path, characters: int = 300) -> str:
    """Return the end of a text file on one line."""
    try:
        return " ".join(path.read_text(errors="replace").split())[-characters:]
    except OSError:
        return ""


def one_line(error: Exception) -> str:
    """Return an error's text up to its first blank line, on one line."""
    return " ".join(str(error).split("\n\n")[0].split())


# -- kept results -----------------------------------------------------------------------------------------------------


def results_folder() -> Path:
    """Return where this user keeps the results of GPAW, below ``$XDG_CACHE_HOME``: small JSON files, safe to delete."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "inv_design" / "gpaw"


def result_key(atoms: Atoms, settings: dict[str, Any]) -> str:
    """Return a hash of a crystal (to 1e-9 Å), GPAW's settings and versions."""
    crystal = [
        atoms.numbers.tolist(),
        (np.round(atoms.cell.array, 9) + 0.0).tolist(),
        (np.round(atoms.positions, 9) + 0.0).tolist(),
    ]
    text = json.dumps([crystal, settings, gpaw_versions()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_result(path: Path, n_atoms: int) -> dict[str, Any] | None:
    """Return a kept result, or ``None`` where there is none that is whole."""
    try:
        results = json.loads(path.read_text())
        shapes = {"energy": (), "forces": (n_atoms, 3), "stress": (6,)}
        whole = all(np.shape(results[k]) == s and np.isfinite(results[k]).all() for k, s in shapes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return results if whole else None


def write_result(path: Path, results: dict[str, Any]) -> None:
    """Keep a result; a folder that cannot be written is no reason to lose it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(results))
        partial.replace(path)  # in one move: a reader finds all of it or nothing
    except OSError as error:
        LOG.warning("a result of GPAW could not be kept in %s (%s)", path.parent, error)
