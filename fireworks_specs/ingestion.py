"""Ingestion: what finished in the JobStore becomes calculations, each once, whoever calls and how often."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

LOG = logging.getLogger(__name__)

NEEDED = ("structure_id", "protocol_id", "kind", "method", "protocol", "inputs")
"""What the metadata of a flow's last job say, so that it can be ingested."""
LIGHT = {"_id": 0, "uuid": 1, "index": 1, "hosts": 1, "metadata": 1, "completed_at": 1}


@dataclass
class Ingested:
    """What an ingestion did: finished flows found, calculations inserted, flows that could not be read."""

    found: int = 0
    inserted: int = 0
    unreadable: int = 0


def ingest_outputs(
    structure_ids: Sequence[str] | None = None, *, protocol_id: str | None = None, campaign: str | None = None
) -> Ingested:
    """Insert a calculation of every finished elastic flow of the JobStore that has none; a second call changes nothing.

    A firework inserts the calculation of the flow that it ran itself; this is for flows whose firework ended between
    the two, and for flows that somebody ran with jobflow's own managers.

    Parameters
    ----------
    structure_ids, protocol_id, campaign
        Only those.
    """
    from fireworks_specs.backends.atomate import FINAL_JOB
    from stores.connection import current

    outputs = current().db["outputs"]
    criteria: dict[str, Any] = {"name": FINAL_JOB}
    wanted = {"protocol_id": protocol_id, "campaign": campaign}
    criteria |= {f"metadata.{name}": value for name, value in wanted.items() if value is not None}
    criteria["metadata.structure_id"] = {"$in": list(structure_ids)} if structure_ids is not None else {"$exists": True}
    flows = sorted(outputs.find(criteria, LIGHT), key=lambda flow: str(flow.get("completed_at")))
    done = Ingested(found=len(flows))
    for flow in _without_calculation(flows):
        try:
            done.inserted += _ingest(flow)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            done.unreadable += 1
            LOG.warning("output %s cannot be ingested (%s: %s)", flow.get("uuid"), type(error).__name__, error)
    return done


def provenance_inputs(tag: Mapping[str, Any], jobs: Iterable[str]) -> list[str]:
    """Return the ids that a flow's calculation came from: crystal, stage-II calculation, jobs."""
    return list(dict.fromkeys([*tag["inputs"], *jobs]))


def _without_calculation(flows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the flows, the first of each structure and protocol, that have no completed calculation."""
    from stores.attempts import attempts_at

    groups: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for flow in flows:
        tag = flow.get("metadata") or {}
        if any(tag.get(name) is None for name in NEEDED):
            LOG.warning("output %s does not say whose it is; it is left", flow.get("uuid"))
            continue
        groups.setdefault((tag["kind"], tag["protocol_id"]), {}).setdefault(tag["structure_id"], flow)
    lacking: list[Mapping[str, Any]] = []
    for (kind, protocol), group in groups.items():
        known = attempts_at(group, kind, protocol)
        lacking += [f for i, f in group.items() if not any(a["state"] == "completed" for a in known.get(i, ()))]
    return lacking


def _ingest(flow: Mapping[str, Any]) -> bool:
    """Insert the calculation of a flow's last job, read from the jobs of the same crystal and protocol.

    Raises
    ------
    ValueError
        If the outermost flow has several tensors of them: which other jobs belong to this one is not known.
    """
    from fireworks_specs.backends import get_backend
    from fireworks_specs.backends.atomate import flow_documents, job_ids, record_of
    from fireworks_specs.firetasks.elastic import insert_result
    from fireworks_specs.jobstore import campaign_job_store
    from stores.provenance import provenance

    tag = flow["metadata"]
    store = campaign_job_store()
    flow_id = flow["hosts"][-1]
    whose = {name: tag[name] for name in ("structure_id", "protocol_id")}
    documents = flow_documents(store, flow_id, whose)
    found = [document for document in documents if getattr(document, "elastic_tensor", None) is not None]
    tensors = len({str(document.elastic_tensor.raw) for document in found})  # later jobs may pass it on
    if tensors > 1:
        raise ValueError(f"flow {flow_id} has {tensors} elastic tensors of {tag['structure_id']}")
    read = getattr(get_backend(tag["method"]), "record", record_of)
    record = read(documents)
    if record["state"] != "completed":
        return False
    return insert_result(
        record,
        tag["structure_id"],
        kind=tag["kind"],
        method=tag["method"],
        protocol=tag["protocol"],
        provenance=provenance(inputs=provenance_inputs(tag, job_ids(store, flow_id, whose))),
    )
