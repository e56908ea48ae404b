"""Reference data into the records: structures and calculations of kind and method ``reference``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stores.protocol import protocol_id
from stores.provenance import provenance
from stores.records import insert_calculations, insert_structures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from inv_design.datasets.mp_binaries import LabelledStructure

BATCH = 200
UNITS = {"bulk_modulus_vrh": "GPa", "shear_modulus_vrh": "GPa", "energy_per_atom": "eV/atom", "e_above_hull": "eV/atom"}


def ingest_reference(
    entries: Sequence[LabelledStructure],
    source: str,
    *,
    protocol: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, int]:
    """Write labelled structures as reference calculations; return counts.

    Parameters
    ----------
    entries
        Crystals with labels in the fixed units (GPa for moduli).
    source
        Where the labels come from, such as ``inv_design.datasets.mp_binaries.SOURCE``.
    protocol
        What determined the labels, besides the source; ``{"functional": "PBE"}`` by default, as Materials Project's.
    progress
        Called with (entries done, entries in all, "").

    Returns
    -------
    dict
        ``entries``, ``structures`` (new), ``calculations`` (new), ``known`` (calculations that were there, or that
        another entry with the same crystal has given).
    """
    from stores.connection import current

    settings: dict[str, Any] = {"source": source, **(protocol if protocol is not None else {"functional": "PBE"})}
    identity = protocol_id(settings)
    made = provenance(inputs=[source])
    structures = current().db["structures"]
    before = structures.estimated_document_count()
    ids: list[str] = []
    for start in range(0, len(entries), BATCH):
        part = entries[start : start + BATCH]
        sources = [{"kind": "reference", "id": entry.source_id, "source": source} for entry in part]
        ids += insert_structures([entry.structure for entry in part], sources, made)
        if progress is not None:
            progress(len(ids), len(entries), "")
    calculations = insert_calculations(
        {
            "structure_id": structure_id,
            "kind": "reference",
            "method": "reference",
            "protocol_id": identity,
            "protocol": {**settings, "units": {name: UNITS[name] for name in entry.labels if name in UNITS}},
            "state": "completed",
            "results": {**entry.labels, "source_id": entry.source_id},
            "provenance": made,
        }
        for structure_id, entry in zip(ids, entries, strict=True)
    )
    new = sum(inserted for _, inserted in calculations)
    return {
        "entries": len(entries),
        "structures": structures.estimated_document_count() - before,
        "calculations": new,
        "known": len(calculations) - new,
    }
