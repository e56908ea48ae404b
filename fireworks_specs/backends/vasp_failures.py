"""Why a VASP job failed: told from custodian's verdict and from the files that the job left."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from fireworks_specs.flows import JobFailed

WALLTIME = ("WalltimeHandler", "StopBeforeWalltime")
"""Of custodian, and ours: the handlers whose run was stopped before it came to its end."""
FINISHED = "General timing and accounting"
CONVERGED = "reached required accuracy - stopping structural energy minimisation"
TAIL = 20_000  # characters of a log that are looked at
TAIL_SHOWN = 500  # and that an error shows


def failure_of(failed: JobFailed) -> tuple[str, str]:
    """Return (reason, error in one line) of a job that failed; the reason is one of ``FAILURES``.

    What the logs say of memory and time comes first: a job that is killed for one of them ends like any other that is
    killed. Then whether VASP started, and what became of the disk. Then what custodian tried: what it could not correct
    lasts.

    Raises
    ------
    RuntimeError
        If VASP never started, or there are no POTCARs: that is the worker's fault, and no crystal's.
    """
    from fireworks_specs.backends.vasp import require_potcars
    from inv_design.screening.retries import reason_of

    cause = failed.__cause__ or failed
    text = f"{failed.name}: {type(cause).__name__}: {' '.join(str(cause).split())}"
    folder = failed.folder
    logs = "".join(read(folder / name)[-TAIL:] for name in ("std_err.txt", "vasp.out"))
    corrections = custodian_corrections(folder)
    handlers = [correction["handler"] for correction in corrections]
    errors = sorted({error for correction in corrections for error in correction["errors"]})
    if any(name in WALLTIME for name in handlers):
        return "out_of_time", f"{failed.name}: VASP was stopped before the job's wall time was over"
    if errors:
        text += f" (custodian met: {', '.join(errors)})"
    told = "out_of_memory" if "out_of_memory" in errors else reason_of(logs)
    if told in ("out_of_memory", "out_of_time"):
        return told, text
    kind = type(cause).__name__
    called = kind in ("ValidationError", "ReturnCodeError") or isinstance(cause, OSError)
    if called and (folder / "vasp.out").exists() and not started(folder):
        said = " ".join(" ".join(read(folder / name)[-TAIL_SHOWN:] for name in ("vasp.out", "std_err.txt")).split())
        raise RuntimeError(f"VASP does not start on this worker: {said or text} (in {folder})") from failed
    if isinstance(cause, FileNotFoundError) and "PMG_VASP_PSP_DIR" in str(cause):  # pymatgen's, before VASP is called
        require_potcars()
        told = "not_available"  # an element's, which another worker may have
    if "not_available" in (told, reason_of(text)):
        return "not_available", text
    if kind in ("ValidationError", "ReturnCodeError"):
        if FINISHED in read(folder / "OUTCAR")[-TAIL:]:
            return ("truncated_output" if kind == "ValidationError" else "error"), text
        return "killed", f"{text}; OUTCAR has no end"
    return convergence_of(folder) or reason_of(text), text


def started(folder: Path) -> bool:
    """Return whether VASP began to write an OUTCAR; one that is older than INCAR was copied from the job before."""
    outcar, incar = (next((p for p in _forms(folder / name) if p.exists()), None) for name in ("OUTCAR", "INCAR"))
    if outcar is None or incar is None:
        return outcar is not None
    return outcar.stat().st_mtime_ns > incar.stat().st_mtime_ns


def has_converged(folder: Path) -> bool:
    """Return whether a relaxation's OUTCAR says that the ions are where they belong, and came to its end."""
    outcar = read(folder / "OUTCAR")
    return CONVERGED in outcar and FINISHED in outcar[-TAIL:]


def is_cut(run: Any) -> bool:
    """Return whether a VASP run of the JobStore was stopped before its end; it calls itself successful."""
    found = [c.get("handler") for entry in getattr(run, "custodian", None) or () for c in entry.corrections or ()]
    names = [h.get("@class") if isinstance(h, dict) else type(h).__name__ for h in found]  # from the JobStore: objects
    return any(name in WALLTIME for name in names)


def convergence_of(folder: Path) -> str | None:
    """Return which loop a run that came to its end did not converge, ``None`` if both did or nothing can be read."""
    from pymatgen.io.vasp import Vasprun

    path = next((p for p in (folder / "vasprun.xml", folder / "vasprun.xml.gz") if p.exists()), None)
    if path is None:
        return None
    try:
        run = Vasprun(path, parse_dos=False, parse_eigen=False, parse_potcar_file=False)
    except Exception:  # a damaged file is no verdict
        return None
    if not run.converged_electronic:
        return "electronic_nonconvergence"
    return None if run.converged_ionic else "ionic_nonconvergence"


def custodian_corrections(folder: Path) -> list[dict[str, Any]]:
    """Return ``{"errors", "handler"}`` of each error that custodian met, in their order; nothing if it left no log."""
    try:
        entries = json.loads(read(folder / "custodian.json") or "[]")
    except json.JSONDecodeError:
        return []
    return [
        {"errors": c.get("errors") or [], "handler": (c.get("handler") or {}).get("@class", "")}
        for entry in entries
        for c in entry.get("corrections", [])
    ]


def read(path: Path) -> str:
    """Return the text of a file, or of its gzipped form; ``""`` if there is neither."""
    plain, packed = _forms(path)
    if plain.exists():
        return plain.read_text(errors="replace")
    if packed.exists():
        with gzip.open(packed, "rt", errors="replace") as text:
            return text.read()
    return ""


def _forms(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(path.name + ".gz")
