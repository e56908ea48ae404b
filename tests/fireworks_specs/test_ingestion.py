"""Ingestion of flows that others ran: one around several crystals gives each its own tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pymatgen.core import Lattice, Structure

from fireworks_specs.ingestion import ingest_outputs

if TYPE_CHECKING:
    from pathlib import Path

    from stores.connection import Connection

pytestmark = pytest.mark.filterwarnings("ignore")

LATTICES = {"Al": 3.99, "Cu": 3.59}
MODULI = {"Al": 39.5, "Cu": 134.0}  # GPa, ASE's EMT from E(V)


def test_a_flow_around_two_crystals_gives_each_its_own_tensor(embedded_connection: Connection, tmp_path: Path) -> None:
    from atomate2.forcefields.flows.elastic import ElasticMaker
    from jobflow import Flow

    from fireworks_specs.flows import run_flow
    from fireworks_specs.jobstore import campaign_job_store
    from stores.protocol import protocol_id
    from stores.provenance import provenance
    from stores.records import insert_structure

    maker = ElasticMaker.from_force_field_name({"@module": "ase.calculators.emt", "@callable": "EMT"})
    protocol = {"code": "emt"}
    ids: dict[str, str] = {}
    flows: list[Any] = []
    for element, a in LATTICES.items():
        crystal = Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [element], [[0, 0, 0]])
        ids[element] = insert_structure(crystal, {"kind": "ingested", "id": element}, provenance())
        flow = maker.make(crystal.get_primitive_structure())
        tag = {"structure_id": ids[element], "inputs": [ids[element]], "kind": "elastic", "method": "surrogate"}
        flow.update_metadata({**tag, "protocol": protocol, "protocol_id": protocol_id(protocol)}, dynamic=True)
        flows.append(flow)
    run_flow(Flow(flows), campaign_job_store(), tmp_path)
    outputs, calculations = embedded_connection.db["outputs"], embedded_connection.db["calculations"]

    outputs.update_many({}, {"$set": {"metadata.structure_id": ids["Al"]}})  # two tensors: nobody knows which
    done = ingest_outputs()
    assert (done.inserted, done.unreadable, calculations.count_documents({})) == (0, 1, 0)

    for element, flow in zip(LATTICES, flows, strict=True):
        outputs.update_many({"hosts": flow.uuid}, {"$set": {"metadata.structure_id": ids[element]}})
    assert ingest_outputs().inserted == 2
    for element, flow in zip(LATTICES, flows, strict=True):
        (calculation,) = calculations.find({"structure_id": ids[element]})
        assert calculation["results"]["bulk_modulus_vrh"] == pytest.approx(MODULI[element], rel=0.08)
        jobs = {output["uuid"] for output in outputs.find({"hosts": flow.uuid})}
        assert set(calculation["provenance"]["inputs"]) == {ids[element], *jobs}
