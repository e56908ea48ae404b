"""The gpaw backend: PBE elastic tensors or equations of state by GPAW, through atomate2 flows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fireworks_specs.backends.atomate import FINAL_JOB, FOLDER, AtomateElastic, job_ids, record_of, unphysical
from inv_design.mechanics.stages import failed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from jobflow import JobStore
    from pymatgen.core import Structure

    from inv_design.config import CampaignConfig, DftConfig, GpawConfig
    from inv_design.mechanics.convergence import Point

EOS_POINTS = 7
CONVERGENCE_POINTS = 5

REASONS = {
    "ChildProcessError": "killed",
    "MemoryError": "out_of_memory",
    "TimeoutError": "out_of_time",
    "ArithmeticError": "electronic_nonconvergence",
    "the relaxation did not converge": "ionic_nonconvergence",
}
"""What an error's type or text says -> the reason that the record gives."""


class Gpaw(AtomateElastic):
    """GPAW in plane waves with its own PAW data sets: free, and from the same installation as everything else."""

    method = "gpaw"

    def __init__(self, stage: DftConfig | None = None) -> None:
        from inv_design.config import DftConfig

        self.kind = (stage or DftConfig()).gpaw.kind
        self.label = {"elastic": "DFT (GPAW, PBE)", "eos": "DFT (GPAW, PBE, E(V))"}[self.kind]

    def protocol(self, config: CampaignConfig) -> dict[str, Any]:
        """Return code versions and settings; on how many ranks it runs is none.

        Raises
        ------
        RuntimeError
            If GPAW is not installed here.
        """
        from importlib.metadata import version

        from fireworks_specs.backends.gpaw_makers import FMAX, SYMPREC
        from inv_design.calculators.gpaw_settings import CONVERGENCE, gpaw_versions

        stage = config.stages.dft
        settings = stage.gpaw.model_dump(exclude={"ranks", "kind"})
        deformation = {"strain": stage.strain, "points": EOS_POINTS} if stage.gpaw.kind == "eos" else {}
        return {
            "code": "gpaw",
            **gpaw_versions(),
            "atomate2": version("atomate2"),
            "stage": "dft",
            "backend": self.method,
            "kind": stage.gpaw.kind,
            "functional": "PBE",
            **settings,
            **deformation,
            "convergence": dict(CONVERGENCE),
            "fmax": FMAX,
            "symprec": SYMPREC,
        }

    def record(self, documents: Sequence[Any]) -> dict[str, Any]:
        """Return the record of a finished elastic flow's outputs as the database has them.

        Of the crystal that it started from they do not tell, so that there is no ``volume_change``.
        """
        documents = values_of(documents)
        record = record_of(documents)
        if record["state"] == "completed":
            record["results"] |= common_results(documents)
        return record

    def compute(
        self, structures: Sequence[Any], config: CampaignConfig, *, tags: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (index, record) of each crystal; a calculation that fails is a record with its reason.

        Raises
        ------
        RuntimeError
            If this worker lacks GPAW or MPI or cannot start them: the firework fails and no candidate is blamed.
        """
        require(config.stages.dft.gpaw)
        for index, structure in enumerate(structures):
            yield index, measure(structure, config.stages.dft, tag=tags[index] if tags else {})


def require(config: GpawConfig) -> None:
    """Raise RuntimeError with the cure if this worker cannot run GPAW, or MPI where the settings ask for it."""
    from inv_design.calculators.gpaw_calculator import mpi_launcher, ranks_of
    from inv_design.calculators.gpaw_settings import gpaw_versions

    gpaw_versions()
    try:
        import gpaw  # noqa: F401
    except ImportError as error:  # its libraries were removed
        raise RuntimeError(f"gpaw cannot be imported on this worker ({error}); see docs/how-to/gpaw.md") from error
    if ranks_of(config) > 1:
        mpi_launcher()


def measure(
    structure: Structure, stage: DftConfig, *, tag: Mapping[str, Any] | None = None, store: JobStore | None = None
) -> dict[str, Any]:
    """Return the record of one crystal (moduli in GPa), computed in folders below the current one.

    Parameters
    ----------
    tag
        What the jobs' outputs are marked with, as in :func:`fireworks_specs.backends.atomate.run_elastic_flow`.
    store
        Where the outputs go: by default the JobStore of the campaign's database, or memory where none is open.

    Raises
    ------
    inv_design.calculators.gpaw_calculator.NotStarted
        If GPAW, or what starts it, ends before it sees a crystal.
    """
    from fireworks_specs.backends.gpaw_makers import elastic_maker, eos_maker
    from fireworks_specs.flows import JobFailed
    from inv_design.calculators.gpaw_calculator import NotStarted
    from inv_design.screening.retries import reason_of
    from stores.outage import LOST

    if (problem := unphysical(structure)) is not None:
        return failed(problem) | {"reason": "unphysical"}
    try:
        start = symmetrised(structure)
        if stage.gpaw.kind == "eos":
            flow = eos_maker(stage.gpaw, strain=stage.strain, n_points=EOS_POINTS).make(start)
        else:
            flow = elastic_maker(stage.gpaw).make(start)
        store = store or job_store()
        documents = run(flow, store, tag or {})
        record = eos_record(documents) if stage.gpaw.kind == "eos" else record_of(documents)
        if record["state"] == "completed":
            record["results"] |= common_results(documents, start)
        return record | {"jobs": job_ids(store, flow.uuid)}
    except LOST:  # the database is away; nothing is wrong with the crystal
        raise
    except Exception as error:  # a calculation that fails is a record, never a silence
        cause = error.__cause__ if isinstance(error, JobFailed) and error.__cause__ else error
        if isinstance(cause, NotStarted):
            raise cause from None
        text = f"{type(cause).__name__}: {cause}"
        reason = next((reason for sign, reason in REASONS.items() if sign in text), None) or reason_of(text)
        return failed(f"{error.name}: {text}" if isinstance(error, JobFailed) else text) | {"reason": reason}


def job_store() -> JobStore:
    """Return the JobStore of the campaign's database, or one in memory where no database is open."""
    from jobflow import JobStore
    from maggma.stores import MemoryStore

    from fireworks_specs.jobstore import campaign_job_store

    try:
        return campaign_job_store()
    except ConnectionError:
        store = JobStore(MemoryStore(), additional_stores={"data": MemoryStore()})
        store.connect()
        return store


def run(flow: Any, store: JobStore, tag: Mapping[str, Any]) -> list[Any]:
    """Run a flow here, each job in a folder of its own; return the outputs of its jobs in order.

    A job that the store has is not run again.

    Raises
    ------
    fireworks_specs.flows.JobFailed
        If a job fails.
    """
    from fireworks_specs.flows import run_flow

    mark = {name: tag[name] for name in ("campaign", "structure_id", "protocol_id") if name in tag}
    flow.update_metadata(mark, dynamic=True)
    flow.update_metadata(dict(tag), name_filter=FINAL_JOB)  # by which it is ingested; an equation of state has none
    return values_of(run_flow(flow, store, Path.cwd() / FOLDER / str(tag.get("structure_id", "crystal"))))


def values_of(outputs: Iterable[Any]) -> list[Any]:
    """Return the outputs of a flow's jobs without those that only point to another job's."""
    from jobflow import OutputReference

    return [output for output in outputs if not isinstance(output, OutputReference)]


def plain_structure(structure: Structure) -> Structure:
    """Return the crystal without charges, moments and other properties of its sites."""
    from pymatgen.core import Structure

    return Structure(structure.lattice, [site.specie.symbol for site in structure], structure.frac_coords)


def symmetrised(structure: Structure) -> Structure:
    """Return the primitive cell with its symmetry exact, as GPAW needs it in order to use it."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    from fireworks_specs.backends.gpaw_makers import SYMPREC

    plain = plain_structure(structure)
    try:
        return SpacegroupAnalyzer(plain, symprec=SYMPREC).get_primitive_standard_structure()
    except Exception:  # spglib finds no symmetry in some cells; they are computed as they are
        return plain


def eos_record(documents: Sequence[Any]) -> dict[str, Any]:
    """Return the record of an equation of state from the documents of its volumes (K in GPa)."""
    import numpy as np

    from inv_design.mechanics.eos import fit_birch_murnaghan
    from inv_design.mechanics.flags import eos_flags

    relaxed, *points = relaxations(documents)
    n = len(relaxed.structure)
    volumes = np.array([p.structure.volume / n for p in points])
    energies = np.array([p.output.energy / n for p in points])
    fit = fit_birch_murnaghan(volumes, energies)
    flags = eos_flags(
        bulk_modulus=fit.bulk_modulus, derivative=fit.derivative, residual=fit.residual, v0=fit.v0, volumes=volumes
    )
    results = {
        "bulk_modulus_vrh": fit.bulk_modulus,
        "bulk_modulus_derivative": fit.derivative,
        "v0": fit.v0,
        "e0": fit.e0,
        "fit_residual": fit.residual,
        "volumes": volumes.tolist(),
        "energies": energies.tolist(),
        "relaxed": True,
        "volume_per_atom": relaxed.structure.volume / n,
    }
    return {
        "state": "completed",
        "results": results,
        "flags": flags,
        "error": None,
        "structure": plain_structure(relaxed.structure).as_dict(),
    }


def common_results(documents: Sequence[Any], start: Structure | None = None) -> dict[str, Any]:
    """Return what both kinds tell of their relaxation: energy, moment, and the frames to learn from.

    And the volume change, if the crystal at the start is given.
    """
    relaxed = relaxations(documents)[0]
    moments = relaxed.output.ionic_steps[-1].magmoms
    volume = relaxed.structure.volume / len(relaxed.structure)
    return {
        "energy_per_atom": relaxed.output.energy / len(relaxed.structure),
        **({} if start is None else {"volume_change": volume / (start.volume / len(start)) - 1}),
        "relaxation_steps": len(relaxed.output.ionic_steps),
        "magnetic_moment_per_atom": None if moments is None else sum(moments) / len(moments),
        "frames": frames_of(documents),
    }


def relaxations(documents: Iterable[Any]) -> list[Any]:
    """Return the documents of ASE jobs among the outputs of a flow, in order."""
    from atomate2.ase.schemas import AseStructureTaskDoc

    return [document for document in documents if isinstance(document, AseStructureTaskDoc)]


def frames_of(documents: Iterable[Any]) -> list[dict[str, Any]]:
    """Return each computed configuration once: structure, energy (eV), forces (eV/Å), stress (GPa, tension positive).

    :func:`inv_design.calculators.frames.frames_of_calculation` reads them.
    """
    import numpy as np

    frames, seen = [], set()
    for document in relaxations(documents):
        for step in document.output.ionic_steps:
            structure = plain_structure(step.structure)
            key = np.round([*structure.lattice.matrix, *structure.cart_coords], 8).tobytes()
            if key in seen:
                continue
            seen.add(key)
            stress = -np.array(step.stress) / 10  # kbar, compression positive, as VASP has it
            frames.append(
                {
                    "structure": structure.as_dict(),
                    "energy": step.energy,
                    "forces": np.array(step.forces).tolist(),
                    "stress": stress.tolist(),
                }
            )
    return frames


def measure_point(structure: Structure, config: GpawConfig, cutoff: float, k_density: float) -> Point:
    """Return the bulk modulus of a crystal's E(V) at other settings, cell shape and ions as they are.

    Raises
    ------
    RuntimeError
        If a volume fails or the energies have no minimum; the text says why.
    """
    from inv_design.calculators.gpaw_calculator import GpawCalculator
    from inv_design.calculators.gpaw_settings import k_grid
    from inv_design.mechanics.convergence import Point
    from inv_design.mechanics.eos import equation_of_state

    size = k_grid(structure.to_ase_atoms(), k_density)
    where = f"{cutoff:g} eV, {k_density:g} k points per 1/Å"
    settings = config.model_copy(update={"cutoff": cutoff, "k_density": k_density})
    try:
        settings = settings.model_copy(update={"spin": spin_of(structure, settings, size)})
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(f"{where}: {error}") from error
    with GpawCalculator(settings, size=size) as calculator:
        fit = equation_of_state(structure, calculator, n_points=CONVERGENCE_POINTS)
    if fit.error is not None:
        raise RuntimeError(f"{where}: {fit.error}")
    seconds = sum(evaluation["seconds"] or 0.0 for evaluation in calculator.evaluations)
    return Point(cutoff, k_density, fit.bulk_modulus, fit.v0, seconds, tuple(size))


def spin_of(structure: Structure, config: GpawConfig, size: Sequence[int]) -> str:
    """Return ``on`` or ``off``, by the moment of the crystal as it is: its first volume, compressed, may have lost it.

    Raises
    ------
    RuntimeError, ValueError
        If it cannot be computed.
    """
    from inv_design.calculators.gpaw_calculator import GpawCalculator
    from inv_design.calculators.gpaw_settings import is_magnetic
    from inv_design.mechanics.evaluate import evaluate, to_atoms

    atoms = to_atoms(structure)
    if config.spin != "auto" or not is_magnetic(atoms.get_chemical_symbols(), config.spin):
        return config.spin
    with GpawCalculator(config, size=size) as calculator:
        (found,) = evaluate(calculator, [atoms])
    if found.error is not None:
        raise RuntimeError(found.error)
    return "on" if calculator.spinpol else "off"
