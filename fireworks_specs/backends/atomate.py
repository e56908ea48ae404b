"""Backends that are an atomate2 elastic flow: run in the firework's directory, read into one record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inv_design.mechanics.stages import failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from atomate2.common.flows.elastic import BaseElasticMaker
    from pymatgen.core import Structure

    from inv_design.config import CampaignConfig


class AtomateElastic:
    """An elastic tensor by an atomate2 maker, its jobs run one after the other by jobflow in this process."""

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

    def protocol(self, _: CampaignConfig) -> dict[str, Any]:
        """Return code versions and settings."""
        from importlib.metadata import version

        return {"code": "atomate2", "version": version("atomate2"), "backend": self.method, **self.settings()}

    def compute(self, structures: Sequence[Any], _: CampaignConfig) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (index, record) of each crystal; a flow that fails is a record, a worker without the code is an error.

        Raises
        ------
        RuntimeError
            If this worker lacks the code: the firework fails and no candidate is blamed for it.
        """
        self.require()
        for index, structure in enumerate(structures):
            yield index, run_elastic_flow(self.maker(), structure)


def run_elastic_flow(maker: BaseElasticMaker, structure: Structure) -> dict[str, Any]:
    """Run an elastic flow here and return its record (moduli in GPa)."""
    from jobflow import JobStore, run_locally
    from maggma.stores import MemoryStore

    try:
        flow = maker.make(structure)
        store = JobStore(MemoryStore(), additional_stores={"data": MemoryStore()})
        responses = run_locally(flow, create_folders=True, store=store, ensure_success=True, log=False)
        documents = [r.output for found in responses.values() for r in found.values() if r.output is not None]
        return record_of(documents)
    except Exception as error:  # a failed flow is a record, never a silence
        return failed(f"{type(error).__name__}: {error}")


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
