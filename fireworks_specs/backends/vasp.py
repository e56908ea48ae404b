"""The vasp backend: atomate2's elastic flow with the settings of Li et al. 2025 (section II C 3)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fireworks_specs.backends.atomate import AtomateElastic, record_of
from inv_design.mechanics.stages import failed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atomate2.vasp.flows.elastic import ElasticMaker

    from fireworks_specs.flows import JobFailed

PAPER = {"GGA": "PE", "ENCUT": 700, "EDIFF": 1e-8, "EDIFFG": -0.01, "KSPACING": 0.1}
"""PBE, 700 eV, 1e-5 meV between electronic steps, 0.01 eV/Å, k points 0.1 1/Å apart.

The spacing is VASP's, of reciprocal vectors with the factor 2π: without it metals would have a fifth of the k points
along each axis that the training data had (7000 per reciprocal atom).
"""

OURS = {"KGAMMA": True, "ISMEAR": 1, "SIGMA": 0.2, "LREAL": False, "LVTOT": False}
"""What the paper leaves open: grids through Γ, which have the symmetry of hexagonal cells; smearing that has forces in
metals (atomate2's strained cells have the tetrahedron method); projection in reciprocal space; no potential on disk."""

INCAR = {**PAPER, **OURS}

POTCARS = "PBE_54"
"""The release of POTCARs; which one of an element is Materials Project's choice."""

PARALLEL = frozenset(
    (
        "NCORE",
        "NPAR",
        "KPAR",
        "NSIM",
        "LPLANE",
        "LASYNC",
        "LSCALAPACK",
        "LSCALU",
        "NCSHMEM",
        "NCORE_IN_IMAGE1",
        "MAXMEM",
    )
)
"""What a worker may set of its own: how the work is spread, not what comes out."""

RELAXATION = "tight relax"
"""How atomate2 labels the runs of the relaxation, as against those of strained cells."""

POLLING = {"polling_time_step": 1, "monitor_freq": 300}
"""Of custodian: whether VASP has ended is looked at every second, not every 10; its monitors every 300 s as always."""


class Vasp(AtomateElastic):
    """VASP through custodian; the worker has VASP_CMD (atomate2's settings) and the user's own POTCARs."""

    method = "vasp"
    label = "DFT (VASP, PBE)"

    def maker(self) -> ElasticMaker:
        """Return the flow: tight relaxation twice, then 24 strains reduced by symmetry, ions relaxed."""
        from atomate2.vasp.flows.core import DoubleRelaxMaker
        from atomate2.vasp.flows.elastic import ElasticMaker
        from atomate2.vasp.jobs.core import TightRelaxMaker
        from atomate2.vasp.jobs.elastic import ElasticRelaxMaker
        from atomate2.vasp.powerups import update_user_incar_settings

        strained = ElasticRelaxMaker()
        strained.input_set_generator.user_kpoints_settings = {}  # KSPACING rules, as in the paper
        relaxed: Any = DoubleRelaxMaker.from_relax_maker(TightRelaxMaker())
        maker: Any = ElasticMaker(bulk_relax_maker=relaxed, elastic_relax_maker=strained, max_failed_deformations=0)
        maker = update_user_incar_settings(maker, INCAR)
        double = maker.bulk_relax_maker
        for job in (double.relax_maker1, double.relax_maker2, maker.elastic_relax_maker):
            job.input_set_generator.user_potcar_functional = POTCARS
            job.run_vasp_kwargs = {"handlers": handlers(), "custodian_kwargs": dict(POLLING)}
        updated: ElasticMaker = maker
        return updated

    def settings(self) -> dict[str, Any]:
        """Return INCAR updates and POTCAR release; everything else is atomate2's, whose version is in the protocol."""
        return {"incar": dict(INCAR), "potcars": POTCARS}

    def record(self, documents: Sequence[Any]) -> dict[str, Any]:
        """Return the record of a finished flow's outputs, with energies, and frames for potentials to learn from."""
        from fireworks_specs.backends.vasp_failures import is_cut

        record = record_of(documents)
        runs = [d for d in documents if getattr(d, "calcs_reversed", None)]
        if cut := sorted({str(run.task_label) for run in runs if is_cut(run)}):
            return failed(f"{', '.join(cut)}: stopped before the job's wall time was over") | {"reason": "out_of_time"}
        relaxed = [run for run in runs if str(run.task_label).startswith(RELAXATION)]
        if record["state"] == "completed" and relaxed:
            first, last = relaxed[0], relaxed[-1]
            record["results"] |= {
                "energy_per_atom": last.output.energy / len(last.structure),
                "volume_change": last.structure.volume / first.input.structure.volume - 1,
                "frames": [frame_of(run) for run in (last, *(run for run in runs if run not in relaxed))],
                "code_version": last.calcs_reversed[0].vasp_version,
                "potcars": [spec.titel for spec in last.calcs_reversed[0].input.potcar_spec or ()],
            }
        return record

    def failure(self, error: JobFailed) -> tuple[str, str]:
        """Return (reason, error in one line) of a job that failed, by custodian's verdict and the job's files."""
        from fireworks_specs.backends.vasp_failures import failure_of

        return failure_of(error)

    def require(self) -> None:
        """Raise RuntimeError unless VASP, POTCARs and INCAR are right here and runs that do not converge fail."""
        import shlex
        import shutil

        from atomate2 import SETTINGS

        command = shlex.split(SETTINGS.VASP_CMD)
        for program in dict.fromkeys(command[:1] + command[-1:]):  # what launches, and VASP
            if shutil.which(program) is None:
                raise RuntimeError(f"VASP_CMD is {SETTINGS.VASP_CMD!r}, but {program!r} is not on this worker's PATH")
        require_potcars()
        if others := sorted(tag for tag in SETTINGS.VASP_INCAR_UPDATES if tag.upper() not in PARALLEL):
            raise RuntimeError(
                f"ATOMATE2_VASP_INCAR_UPDATES sets {', '.join(others)}, which the protocol does not know; take them "
                f"out of the environment or ~/.atomate2.yaml (a worker may set {', '.join(sorted(PARALLEL))})"
            )
        if SETTINGS.VASP_HANDLE_UNSUCCESSFUL != "error":
            raise RuntimeError(
                f"ATOMATE2_VASP_HANDLE_UNSUCCESSFUL is {SETTINGS.VASP_HANDLE_UNSUCCESSFUL!r}, with which runs that did "
                "not converge would become labels; take it out of the environment or ~/.atomate2.yaml"
            )


def potcar_folder() -> Path:
    """Return the folder of this worker's POTCARs of the protocol's release, where pymatgen looks for them.

    Raises
    ------
    RuntimeError
        If no setting says where POTCARs are.
    """
    from pymatgen.core import SETTINGS
    from pymatgen.io.vasp import PotcarSingle

    if not (place := SETTINGS.get("PMG_VASP_PSP_DIR")):
        raise RuntimeError("PMG_VASP_PSP_DIR is not set; run `pmg config -p` with your POTCARs")
    named: dict[str, str] = SETTINGS.get("PMG_VASP_PSP_SUB_DIRS") or {}
    return Path(place).expanduser() / named.get(POTCARS, PotcarSingle.functional_dir[POTCARS])


def require_potcars() -> None:
    """Raise RuntimeError with the cure if this worker has no POTCARs of the protocol's release at all."""
    folder = potcar_folder()
    try:
        found = any(folder.iterdir())
    except OSError as error:
        raise RuntimeError(
            f"no POTCARs of {POTCARS} on this worker: {folder}: {error.strerror}; mount it, or correct PMG_VASP_PSP_DIR"
        ) from error
    if not found:
        raise RuntimeError(f"no POTCARs of {POTCARS} on this worker: {folder} is empty; run `pmg config -p`")


def frame_of(run: Any) -> dict[str, Any]:
    """Return the configuration that a VASP run ended in: energy (eV), forces (eV/Å), stress (GPa, tension positive)."""
    import numpy as np

    return {
        "structure": run.structure.as_dict(),
        "energy": run.output.energy,
        "forces": np.array(run.output.forces).tolist(),
        "stress": (-np.array(run.output.stress) / 10).tolist(),  # kB, compression positive
    }


def handlers() -> list[Any]:
    """Return custodian's handlers: atomate2's, and one that ends a run in order before Slurm's limit of time."""
    import os

    from atomate2.vasp.run import DEFAULT_HANDLERS

    from fireworks_specs.backends.vasp_walltime import StopBeforeWalltime

    if (left := _seconds_left(os.environ)) is None:
        return list(DEFAULT_HANDLERS)
    os.environ.pop("CUSTODIAN_WALLTIME_START", None)  # an earlier flow of this process; ``left`` counts from now
    return [*DEFAULT_HANDLERS, StopBeforeWalltime(wall_time=left)]


def _seconds_left(environment: Any) -> int | None:
    """Return how long a Slurm job may still run, in seconds, ``None`` where nothing says so."""
    import time

    end = environment.get("SLURM_JOB_END_TIME", "")
    return max(int(end) - int(time.time()), 1) if end.isdigit() else None
