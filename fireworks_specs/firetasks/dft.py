"""DFT: label the bulk modulus of one candidate with the campaign's stage-III backend."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fireworks import explicit_serialize

from fireworks_specs.firetasks.base import CampaignTask
from fireworks_specs.firetasks.elastic import insert_result, to_compute
from fireworks_specs.progress import report
from stores.claims import Claims
from stores.queries import structures_by_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from inv_design.config import CampaignConfig, MlipConfig

LOG = logging.getLogger(__name__)


@explicit_serialize
class DftTask(CampaignTask):
    """Insert one calculation by the backend (``surrogate``, ``gpaw`` or ``vasp``), a failure included.

    The backend starts from the crystal that stage II relaxed; the result belongs to the candidate's structure.
    """

    required_params = ("campaign", "round", "structure_ids")
    optional_params = ("before", "total")

    def work(self) -> None:
        """Compute what has no result under the protocol yet and no other worker is at work on."""
        from fireworks_specs.backends import get_backend
        from fireworks_specs.backends.atomate import AtomateElastic
        from fireworks_specs.ingestion import ingest_outputs, provenance_inputs
        from fireworks_specs.protocols import dft_protocol, round_calculator
        from inv_design.mechanics.stages import failed
        from stores.protocol import protocol_id

        stage = self.config.stages.dft
        backend = get_backend(stage)
        protocol = dft_protocol(self.config)
        calculator = round_calculator(self["campaign"], self.config, self["round"])
        by = stage_two_protocol(self.config, calculator)
        where: dict[str, Any] = {"kind": backend.kind, "method": backend.method, "protocol": protocol}
        text = f"round {self['round']}: stage III, {backend.label}"
        done = self.get("before", 0)
        ingest_outputs(self["structure_ids"], protocol_id=protocol_id(protocol))  # what a killed firework finished
        with Claims(campaign=self["campaign"], stage="dft") as claims:
            for todo in to_compute(claims, self["structure_ids"], backend.kind, protocol, retries=stage.retries):
                starts = {i: relaxed_structure(i, by, calculator, self.config.stages.mlip) for i in todo}
                for missing in (i for i in todo if starts[i][1] is None):
                    record = failed(f"structure {missing} is not in the database")
                    insert_result(record, missing, **where, provenance=self.provenance([]), claims=claims)
                ids = [i for i in todo if starts[i][1] is not None]
                tags = [self._tag(i, starts[i][0], where) for i in ids]
                options: dict[str, Any] = {"tags": tags} if isinstance(backend, AtomateElastic) else {}
                records = backend.compute([starts[i][1] for i in ids], self.config, **options)
                for index, record in self._in_time(records, len(ids)):
                    provenance = self.provenance(provenance_inputs(tags[index], record.get("jobs", [])))
                    insert_result(record, ids[index], **where, provenance=provenance, claims=claims)
                    done += 1
                    report(text, done, self.get("total", len(self["structure_ids"])))

    def _in_time(self, records: Iterable[tuple[int, Any]], total: int) -> Iterator[tuple[int, Any]]:
        """Yield the (index, record) of so many crystals; whoever runs out of his job's time has not failed.

        The firework is put back instead, and goes on with the jobs that are not finished. Only where launches in a row
        have finished none, the time is too short for the crystal, which is a failure.

        Raises
        ------
        fireworks_specs.preemption.Preempted
            If the process was told to end, or the time of its job is over.
        """
        from fireworks_specs.preemption import IN_VAIN, TOO_SHORT, OutOfTime, Preempted, launches_in_vain
        from inv_design.mechanics.stages import failed
        from stores.workers import this_job

        def in_vain(launch: tuple[int, int]) -> bool:
            return launches_in_vain(self.launchpad, *launch)[0] >= IN_VAIN

        launch = self._launch()
        left = set(range(total))
        try:
            for index, record in records:
                if record.get("reason") == "out_of_time" and launch is not None and this_job() and not in_vain(launch):
                    raise OutOfTime
                left.discard(index)
                yield index, record
        except Preempted:
            if launch is not None and len(left) == 1 and in_vain(launch):  # else nobody knows whose fault it is
                yield left.pop(), failed(TOO_SHORT) | {"reason": "out_of_time"}
            raise

    def _tag(self, structure_id: str, parent: str, where: dict[str, Any]) -> dict[str, Any]:
        """Return what the JobStore is told of a calculation, so that its outputs can be ingested."""
        from stores.protocol import protocol_id

        inputs = list(dict.fromkeys([structure_id, parent]))
        place = {"campaign": self["campaign"], "structure_id": structure_id, "inputs": inputs}
        return {**place, **where, "protocol_id": protocol_id(where["protocol"])}


def stage_two_protocol(config: CampaignConfig, calculator: str) -> dict[str, Any] | None:
    """Return the protocol of stage II, ``None`` on a worker that lacks the weights, which it has no other use for."""
    from fireworks_specs.protocols import mlip_protocol

    try:
        return mlip_protocol(config, calculator)
    except (OSError, ImportError, ValueError, LookupError) as error:
        LOG.info("stage II's calculations are known by the name of %s here (%s)", calculator, error)
        return None


def relaxed_structure(
    structure_id: str,
    protocol: dict[str, Any] | None,
    calculator: str | None = None,
    stage: MlipConfig | None = None,
) -> tuple[str, Any]:
    """Return (id of the stage-II calculation or the structure, crystal to start from).

    The calculation is the one by ``protocol``; else the newest one by ``calculator`` under the settings of ``stage``;
    else the newest one, where another version of the program made it.
    """
    from builders.potentials import is_of_stage
    from stores.documents.calculation import Calculation
    from stores.protocol import protocol_id

    found = Calculation.objects(structure_id=structure_id, kind="elastic", method="mlip", state="completed")
    calculation = found.filter(protocol_id=protocol_id(protocol)).first() if protocol is not None else None
    if calculation is None:
        newest_first = list(found.order_by("-id"))
        same = (c for c in newest_first if calculator and stage and is_of_stage(c.protocol, calculator, stage))
        calculation = next(same, newest_first[0] if newest_first else None)
    if calculation is not None and calculation.output_structure_id:
        crystals = structures_by_id([calculation.output_structure_id])
        return calculation.calculation_id, crystals.get(calculation.output_structure_id)
    return structure_id, structures_by_id([structure_id]).get(structure_id)
