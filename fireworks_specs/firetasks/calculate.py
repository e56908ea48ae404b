"""Calculate: relaxations, elastic tensors or equations of state of any structures of the database, in a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fireworks import explicit_serialize

from fireworks_specs.checkpoints import answers_kept
from fireworks_specs.firetasks.base import CampaignTask
from fireworks_specs.firetasks.elastic import insert_result, to_compute
from fireworks_specs.progress import report
from stores import checkpoints
from stores.claims import Claims, result_key
from stores.queries import structures_by_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = ("relax", "elastic", "eos")


@explicit_serialize
class CalculateTask(CampaignTask):
    """Insert one calculation of a ``kind`` per structure id, as soon as it is finished, failures included.

    It belongs to no campaign; results are those of stage II where calculator and ``settings`` are a campaign's.
    """

    required_params = ("kind", "calculator", "structure_ids", "settings")
    optional_params = ("campaign", "retries")

    def fetch_models(self) -> None:
        """Put the potential onto this machine, if it is a model of the database."""
        from fireworks_specs.firetasks.train_mlip import fetch_calculator

        fetch_calculator(self["calculator"])

    def work(self) -> None:
        """Compute what has no result under the protocol yet and no other worker is at work on."""
        from fireworks_specs.pool import map_structures
        from fireworks_specs.protocols import calculation_protocol
        from inv_design.mechanics.stages import failed
        from stores.protocol import protocol_id

        kind, calculator, settings = self["kind"], self["calculator"], self["settings"]
        protocol = calculation_protocol(kind, calculator, settings)
        where: dict[str, Any] = {"kind": kind, "method": "mlip", "protocol": protocol}
        identity = protocol_id(protocol)
        text, done = f"{kind}, {calculator}", 0
        with Claims(campaign=self["campaign"], stage=kind) as claims:
            shares = to_compute(claims, self["structure_ids"], kind, protocol, retries=self.get("retries", 0))
            for todo in shares:
                structures = structures_by_id(todo)
                for missing in (i for i in todo if i not in structures):
                    record = failed(f"structure {missing} is not in the database")
                    insert_result(record, missing, **where, provenance=self.provenance([]), claims=claims)
                ids = [i for i in todo if i in structures]
                crystals = [structures[i] for i in ids]
                records = map_structures(measure_of(kind), crystals, calculator=calculator, **settings)
                with answers_kept([result_key(i, kind, identity) for i in ids], identity, claims) as answers:
                    for index, record in records:
                        provenance = self.provenance([ids[index]])
                        insert_result(record, ids[index], **where, provenance=provenance, claims=claims)
                        answers.forget(index)
                        done += 1
                        report(text, done, len(self["structure_ids"]))
            # a worker that was killed between a result and the end of its checkpoint leaves one
            checkpoints.discard(result_key(i, kind, identity) for i in self["structure_ids"])


def measure_of(kind: str) -> Callable[..., Iterator[tuple[int, dict[str, Any]]]]:
    """Return what measures structures for a kind of calculation.

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    from inv_design.mechanics import stages

    functions: dict[str, Callable[..., Iterator[tuple[int, dict[str, Any]]]]] = {
        "relax": stages.measure_relaxations,
        "elastic": stages.measure_elasticities,
        "eos": stages.measure_equations_of_state,
    }
    if kind not in functions:
        raise ValueError(f"no calculation of kind {kind!r}; use {', '.join(KINDS)}")
    return functions[kind]
