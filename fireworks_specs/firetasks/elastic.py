"""Elastic: relaxation and elastic tensor of a few candidates with a machine-learned potential (stage II)."""

from __future__ import annotations

from typing import Any

from fireworks import explicit_serialize

from fireworks_specs.firetasks.base import CampaignTask
from fireworks_specs.progress import report
from stores.queries import structures_by_id


@explicit_serialize
class ElasticTask(CampaignTask):
    """Insert one calculation per structure id as soon as it is finished, failures included."""

    required_params = ("campaign", "round", "structure_ids")
    optional_params = ("before", "total")

    def work(self) -> None:
        """Compute what has no result under the protocol yet."""
        from fireworks_specs.pool import map_structures
        from fireworks_specs.protocols import mlip_protocol
        from inv_design.mechanics.stages import failed, measure_elasticities

        stage = self.config.stages.mlip
        protocol = mlip_protocol(self.config)
        todo = without_calculation(self["structure_ids"], "elastic", protocol)
        structures = structures_by_id(todo)
        for missing in (i for i in todo if i not in structures):
            record = failed(f"structure {missing} is not in the database")
            insert_result(
                record, missing, kind="elastic", method="mlip", protocol=protocol, provenance=self.provenance([])
            )
        ids = [i for i in todo if i in structures]
        text = f"round {self['round']}: stage II, {stage.calculator}"
        records = map_structures(
            measure_elasticities,
            [structures[i] for i in ids],
            calculator=stage.calculator,
            fmax=stage.fmax,
            max_steps=stage.max_steps,
            keep_structure=stage.keep_structure,
        )
        for done, (index, record) in enumerate(records, start=1):
            insert_result(
                record,
                ids[index],
                kind="elastic",
                method="mlip",
                protocol=protocol,
                provenance=self.provenance([ids[index]]),
            )
            report(text, self.get("before", 0) + done, self.get("total", len(ids)))


def without_calculation(ids: list[str], kind: str, protocol: dict[str, Any]) -> list[str]:
    """Return the structure ids that have no calculation of this kind and protocol."""
    from stores.documents.calculation import Calculation
    from stores.protocol import protocol_id

    known = set(
        Calculation.objects(structure_id__in=ids, kind=kind, protocol_id=protocol_id(protocol)).scalar("structure_id")
    )
    return [i for i in ids if i not in known]


def insert_result(
    record: dict[str, Any],
    structure_id: str,
    *,
    kind: str,
    method: str,
    protocol: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Insert the relaxed structure and the calculation of a computed record."""
    from pymatgen.core import Structure

    from stores.protocol import protocol_id
    from stores.records import insert_calculation, insert_structure

    output = None
    if record["structure"] is not None:
        try:
            output = insert_structure(
                Structure.from_dict(record["structure"]),
                {"kind": "relaxed", "id": structure_id},
                provenance,
            )
        except ValueError as error:  # a cell that collapsed has no identity; the numbers are kept
            record = {
                **record,
                "flags": [*record["flags"], "no_output_structure"],
                "error": record["error"] or str(error),
            }
    insert_calculation(
        structure_id=structure_id,
        kind=kind,
        method=method,
        protocol_id=protocol_id(protocol),
        protocol=protocol,
        state=record["state"],
        results=record["results"],
        flags=record["flags"],
        error=record["error"],
        output_structure_id=output,
        provenance=provenance,
    )
