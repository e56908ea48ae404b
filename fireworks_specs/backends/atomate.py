"""Backends that are an atomate2 elastic flow: run in the firework's directory, read into one record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inv_design.mechanics.stages import failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from atomate2.common.flows.elastic import BaseElasticMaker
    from jobflow import JobStore
    from pymatgen.core import Structure

    from fireworks_specs.flows import JobFailed
    from inv_design.config import CampaignConfig

FOLDER = "dft"
"""Below the working directory: a folder per crystal, in it one per job."""
FINAL_JOB = "fit_elastic_tensor"
"""The job whose output is the flow's."""
SHORTEST = 0.7  # Å; a cell with atoms nearer than this is no crystal


class AtomateElastic:
    """An elastic tensor by an atomate2 maker, its jobs run one after the other by jobflow in this process.

    What the jobs give is kept in the JobStore of the campaign's database as they finish.
    """

    method: str
    kind = "elastic"
    batch = 1
    label: str

    def maker(self) -> BaseElasticMaker:
        """Return the flow's maker with this backend's settings."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the result, for the protocol."""
        raise NotImplementedError

    def require(self) -> None:
        """Raise RuntimeError with the cure if this worker cannot run the code."""
        raise NotImplementedError

    def record(self, documents: Sequence[Any]) -> dict[str, Any]:
        """Return the record of a finished flow's outputs."""
        return record_of(documents)

    def failure(self, error: JobFailed) -> tuple[str, str]:
        """Return (reason, error in one line) of a job that failed; raise RuntimeError if this worker is at fault."""
        from inv_design.screening.retries import reason_of

        cause = error.__cause__ or error
        text = f"{error.name}: {type(cause).__name__}: {cause}"
        return reason_of(text), text

    def protocol(self, _: CampaignConfig) -> dict[str, Any]:
        """Return code versions and settings."""
        from importlib.metadata import version

        return {"code": "atomate2", "version": version("atomate2"), "backend": self.method, **self.settings()}

    def compute(
        self, structures: Sequence[Any], _: CampaignConfig, *, tags: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (index, record) of each crystal; a flow that fails is a record, a worker without the code is an error.

        Parameters
        ----------
        tags
            For each crystal what its outputs are marked with in the JobStore; see :func:`run_elastic_flow`.

        Raises
        ------
        RuntimeError
            If this worker lacks the code or cannot start it: the firework fails and no candidate is blamed for it.
        """
        self.require()
        for index, structure in enumerate(structures):
            yield index, self.measure(structure, tags[index] if tags else {})

    def measure(self, structure: Structure, tag: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record of one crystal."""
        from fireworks_specs.flows import JobFailed
        from stores.outage import LOST

        if (problem := unphysical(structure)) is not None:
            return failed(problem) | {"reason": "unphysical"}
        try:
            return run_elastic_flow(self.maker(), structure, tag=tag, read=self.record)
        except LOST:
            raise
        except JobFailed as error:
            reason, text = self.failure(error)
            return failed(text) | {"reason": reason}
        except Exception as error:  # a failed flow is a record, never a silence
            return failed(f"{type(error).__name__}: {error}")


def run_elastic_flow(
    maker: BaseElasticMaker,
    structure: Structure,
    *,
    tag: Mapping[str, Any] | None = None,
    store: JobStore | None = None,
    folder: Path | None = None,
    read: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Run an elastic flow here and return its record (moduli in GPa); ``jobs`` are the ids of its jobs.

    Parameters
    ----------
    tag
        What the outputs are marked with: ``campaign``, ``structure_id``, ``protocol_id``, and for the last one
        ``kind``, ``method``, ``protocol`` and ``inputs``, of which
        :func:`fireworks_specs.ingestion.ingest_outputs` makes the calculation if this process does not come to it.
    store
        That of the campaign's database by default.
    folder
        Where the jobs' folders go: ``dft/STRUCTURE_ID`` in the working directory by default.
    read
        Makes the record of the outputs: :func:`record_of` by default.

    Raises
    ------
    fireworks_specs.flows.JobFailed
        If a job of the flow fails.
    """
    from fireworks_specs.flows import run_flow
    from fireworks_specs.jobstore import campaign_job_store

    tag = dict(tag or {})
    flow = maker.make(structure)
    everywhere: dict[str, Any] = {
        name: tag[name] for name in ("campaign", "structure_id", "protocol_id") if name in tag
    }
    flow.update_metadata(everywhere, dynamic=True)
    flow.update_metadata(tag, name_filter=FINAL_JOB)
    folder = folder or Path.cwd() / FOLDER / str(tag.get("structure_id", "crystal"))
    store = store or campaign_job_store()
    documents = run_flow(flow, store, folder)
    return (read or record_of)(documents) | {"jobs": job_ids(store, flow.uuid)}


def unphysical(structure: Structure) -> str | None:
    """Return what is wrong with a cell that no code should be given, ``None`` if nothing."""
    import numpy as np

    if not np.isfinite(structure.lattice.matrix).all() or structure.volume < 1e-3:
        return f"the cell has a volume of {structure.volume:g} Å^3"
    distances = structure.distance_matrix + np.diag([np.inf] * len(structure))
    nearest = min(float(distances.min()), *structure.lattice.abc)
    return f"two atoms are {nearest:.2f} Å apart, less than {SHORTEST} Å" if nearest < SHORTEST else None


def job_ids(store: JobStore, flow_id: str, whose: Mapping[str, str] | None = None) -> list[str]:
    """Return the ids of a flow's jobs in the order in which they were finished; ``whose`` as for flow_documents."""
    found = store.docs_store.query(_jobs_of(flow_id, whose), ["uuid"], sort={"completed_at": 1})
    return list(dict.fromkeys(document["uuid"] for document in found))


def flow_documents(store: JobStore, flow_id: str, whose: Mapping[str, str] | None = None) -> list[Any]:
    """Return what the finished jobs of a flow gave, in the order in which they were finished.

    Parameters
    ----------
    whose
        Only jobs with these metadata: a flow may be around those of several crystals.
    """
    from monty.json import MontyDecoder

    found = store.docs_store.query(_jobs_of(flow_id, whose), sort={"completed_at": 1})
    return [MontyDecoder().process_decoded(document["output"]) for document in found]


def _jobs_of(flow_id: str, whose: Mapping[str, str] | None) -> dict[str, str]:
    return {"hosts": flow_id} | {f"metadata.{name}": value for name, value in (whose or {}).items()}


def record_of(documents: Sequence[Any]) -> dict[str, Any]:
    """Return the record of a finished flow's outputs, from its ElasticDocument.

    Born's criterion is applied here: atomate2 gives moduli for unstable tensors too.
    """
    import numpy as np

    from inv_design.mechanics.born import born_stable
    from inv_design.mechanics.flags import tensor_flags

    document = next((d for d in documents if getattr(d, "elastic_tensor", None) is not None), None)
    if document is None:
        return failed("the flow ended without an elastic tensor")
    tensor = document.elastic_tensor.ieee_format
    stable, eigenvalues = born_stable(tensor)
    derived = document.derived_properties
    return {
        "state": "completed",
        "results": {
            "bulk_modulus_vrh": derived.k_vrh,
            "bulk_modulus_voigt": derived.k_voigt,
            "bulk_modulus_reuss": derived.k_reuss,
            "shear_modulus_vrh": derived.g_vrh,
            "elastic_tensor": [list(row) for row in tensor],
            "born_stable": bool(stable),
            "eigenvalues": [float(v) for v in eigenvalues],
            "relaxed": True,
            "volume_per_atom": document.structure.volume / len(document.structure),
        },
        "flags": [str(w) for w in (document.warnings or [])]
        + tensor_flags(np.array(document.elastic_tensor.raw), document.structure),
        "error": None,
        "structure": document.structure.as_dict(),
    }
