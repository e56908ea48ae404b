"""Elastic: relaxation and elastic tensor of a few candidates with a machine-learned potential (stage II)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fireworks import explicit_serialize

from fireworks_specs.checkpoints import answers_kept
from fireworks_specs.firetasks.base import CampaignTask
from fireworks_specs.progress import report
from stores import checkpoints
from stores.claims import Claims, result_key
from stores.queries import structures_by_id

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG = logging.getLogger(__name__)


@explicit_serialize
class ElasticTask(CampaignTask):
    """Insert one calculation per structure id as soon as it is finished, failures included."""

    required_params = ("campaign", "round", "structure_ids")
    optional_params = ("before", "total")

    def work(self) -> None:
        """Compute what has no result under the protocol yet and no other worker is at work on."""
        from fireworks_specs.pool import map_structures
        from fireworks_specs.protocols import mlip_protocol, round_calculator
        from inv_design.mechanics.stages import failed, measure_elasticities
        from stores.protocol import protocol_id

        stage = self.config.stages.mlip
        calculator = round_calculator(self["campaign"], self.config, self["round"])
        protocol = mlip_protocol(self.config, calculator)
        where: dict[str, Any] = {"kind": "elastic", "method": "mlip", "protocol": protocol}
        text = f"round {self['round']}: stage II, {calculator}"
        done = self.get("before", 0)
        with Claims(campaign=self["campaign"], stage="mlip") as claims:
            shares = to_compute(claims, self["structure_ids"], where["kind"], protocol, retries=stage.retries)
            for todo in shares:
                structures = structures_by_id(todo)
                for missing in (i for i in todo if i not in structures):
                    record = failed(f"structure {missing} is not in the database")
                    insert_result(record, missing, **where, provenance=self.provenance([]), claims=claims)
                ids = [i for i in todo if i in structures]
                records = map_structures(
                    measure_elasticities,
                    [structures[i] for i in ids],
                    calculator=calculator,
                    fmax=stage.fmax,
                    max_steps=stage.max_steps,
                    keep_structure=stage.keep_structure,
                )
                identity = protocol_id(protocol)
                with answers_kept([result_key(i, where["kind"], identity) for i in ids], identity, claims) as answers:
                    for index, record in records:
                        provenance = self.provenance([ids[index]])
                        insert_result(record, ids[index], **where, provenance=provenance, claims=claims)
                        answers.forget(index)
                        done += 1
                        report(text, done, self.get("total", len(self["structure_ids"])))
            # a worker that was killed between a result and the end of its checkpoint leaves one
            checkpoints.discard(result_key(i, where["kind"], protocol_id(protocol)) for i in self["structure_ids"])


def to_compute(
    claims: Claims, ids: list[str], kind: str, protocol: dict[str, Any], *, retries: int = 0
) -> Iterator[list[str]]:
    """Yield the structure ids to compute, claimed, until every one of them has a calculation; see ``Claims.shares``.

    A firework that ended while others still compute some of its items would leave its campaign waiting for nobody.
    After a failure that may pass there are up to ``retries`` further attempts, one per firework.
    """
    from stores.attempts import next_attempts
    from stores.protocol import protocol_id

    identity = protocol_id(protocol)
    shares = claims.shares(
        list(dict.fromkeys(ids)),
        key=lambda i: result_key(i, kind, identity),
        lacking=lambda some: without_calculation(some, kind, protocol, retries=retries),
    )
    for share in shares:
        numbers = next_attempts(share, kind, identity)
        claims.attempts.update({result_key(i, kind, identity): number for i, number in numbers.items()})
        yield share


def without_calculation(ids: list[str], kind: str, protocol: dict[str, Any], *, retries: int = 0) -> list[str]:
    """Return the structure ids that have no calculation of this kind and protocol, or whose failure may be retried."""
    from stores.attempts import lacking
    from stores.protocol import protocol_id

    return lacking(ids, kind, protocol_id(protocol), retries=retries)


def insert_result(
    record: dict[str, Any],
    structure_id: str,
    *,
    kind: str,
    method: str,
    protocol: dict[str, Any],
    provenance: dict[str, Any],
    claims: Claims | None = None,
) -> bool:
    """Insert the relaxed structure and the calculation of a computed record, then release the claim of it.

    Returns whether the calculation is new.

    A failed record may have a ``reason`` of :data:`inv_design.screening.retries.FAILURES`; else its error tells it. A
    completed one is inserted although a failure came first: it is a further attempt then.
    """
    from pymatgen.core import Structure

    from inv_design.screening.retries import reason_of
    from stores.attempts import attempts_at, next_attempts
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
    identity = protocol_id(protocol)
    key = result_key(structure_id, kind, identity)
    failed = record["state"] == "failed"
    fields: dict[str, Any] = {
        "structure_id": structure_id,
        "kind": kind,
        "method": method,
        "protocol_id": identity,
        "protocol": protocol,
        "state": record["state"],
        "results": record["results"],
        "flags": record["flags"],
        "error": record["error"],
        "reason": record.get("reason") or reason_of(record["error"]) if failed else None,
        "output_structure_id": output,
        "provenance": provenance,
    }
    _, new = insert_calculation(**fields, attempt=claims.attempts.get(key, 1) if claims is not None else 1)
    if not new and not failed:  # a worker that was given up and comes late: what it finished is not lost
        earlier = attempts_at([structure_id], kind, identity).get(structure_id, [])
        if not any(a["state"] == "completed" for a in earlier):
            number = next_attempts([structure_id], kind, identity)[structure_id]
            _, new = insert_calculation(**fields, attempt=number)
    if not new:
        LOG.warning("another worker was faster with %s of %s; its result counts", kind, structure_id)
    if claims is not None:
        claims.release([key])
    return new
