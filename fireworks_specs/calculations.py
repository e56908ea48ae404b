"""Calculations outside of campaigns: batches of structures on the launchpad, and the rockets that run them here."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fireworks import Firework, Workflow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stores.connection import Connection

ROLE = "calculation"
WAITING = {"spec.role": ROLE, "state": {"$in": ["READY", "RESERVED", "RUNNING", "WAITING"]}}
MAX_BATCH = 200
"""Structures per firework at most: their ids keep its spec below 8 kB."""


@dataclass(frozen=True)
class Launched:
    """What was put on the launchpad: numbers of workflows, of structures in them, and of those left out.

    ``known`` have the result already, ``waiting`` are in a firework that has not ended, ``failed`` failed of something
    that another attempt would meet again. ``again`` of ``structures`` failed before of something that may pass.
    """

    workflows: int
    structures: int
    known: int
    waiting: int
    failed: int
    again: int


def calculation_workflows(
    kind: str,
    structure_ids: Sequence[str],
    *,
    calculator: str,
    settings: Mapping[str, Any],
    batch: int = 10,
    retries: int = 0,
) -> list[Workflow]:
    """Return one workflow per batch of structures; specs carry ids and settings, never structures.

    ``retries`` are the further attempts after failures that may pass, those that were made included.

    Raises
    ------
    ValueError
        If there is no such kind, or a batch of that size.
    """
    from fireworks_specs.firetasks.calculate import CalculateTask, measure_of

    measure_of(kind)
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"a batch of {batch} structures; give 1 to {MAX_BATCH}")
    ids = list(dict.fromkeys(structure_ids))
    parts = [ids[start : start + batch] for start in range(0, len(ids), batch)]
    spec = {"_add_launchpad_and_fw_id": True, "_category": "mlip", "role": ROLE, "kind": kind, "calculator": calculator}
    spec |= {"campaign": None}  # said, so that `doctor` looks after it as after any campaign's
    workflows = []
    for number, part in enumerate(parts, start=1):
        task = CalculateTask(
            campaign=None,
            kind=kind,
            calculator=calculator,
            structure_ids=part,
            settings=dict(settings),
            retries=retries,
        )
        name = f"{kind} {calculator} {number}/{len(parts)}"
        firework = Firework([task], spec=spec, name=name)
        workflows.append(Workflow([firework], name=name, metadata={"role": ROLE, "kind": kind}))
    return workflows


def launch_calculations(
    connection: Connection,
    kind: str,
    structure_ids: Sequence[str],
    *,
    calculator: str,
    settings: Mapping[str, Any],
    batch: int = 10,
) -> Launched:
    """Put on the launchpad what has no result yet and does not wait there already.

    What failed of something that may pass, such as a kill or a full memory, gets one more attempt.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError, LookupError
        If there is no such kind, batch or calculator.
    """
    from fireworks_specs.protocols import calculation_protocol
    from inv_design.screening.retries import retry_due
    from stores.attempts import attempts_at
    from stores.protocol import protocol_id

    ids = list(dict.fromkeys(structure_ids))
    made = attempts_at(ids, kind, protocol_id(calculation_protocol(kind, calculator, settings)), connection=connection)
    lacking = [i for i in ids if i not in made or retry_due(made[i], len(made[i]))]
    failed = len(made.keys() - lacking) - sum(any(a["state"] == "completed" for a in group) for group in made.values())
    launchpad = connection.launchpad()
    same = {"spec.kind": kind, "spec.calculator": calculator}
    busy = {
        identity
        for firework in launchpad.fireworks.find(WAITING | same, {"spec._tasks": 1})
        for task in firework["spec"]["_tasks"]
        if dict(task.get("settings") or {}) == dict(settings)
        for identity in task["structure_ids"]
    }
    todo = [i for i in lacking if i not in busy]
    again = [len(made[i]) for i in todo if i in made]
    workflows = calculation_workflows(
        kind, todo, calculator=calculator, settings=settings, batch=batch, retries=max(again, default=0)
    )
    if workflows:
        with contextlib.redirect_stderr(io.StringIO()):  # FireWorks draws a bar of its own
            launchpad.bulk_add_wfs(workflows)
    return Launched(
        workflows=len(workflows),
        structures=len(todo),
        known=len(ids) - len(lacking) - failed,
        waiting=len(lacking) - len(todo),
        failed=failed,
        again=len(again),
    )


def run_calculations(connection: Connection) -> tuple[int, int]:
    """Run the calculations that wait on the launchpad, in this process; return (fireworks run, fireworks failed).

    In an embedded database, which has one process, what is still marked as running was cut off and is run again.
    """
    from fireworks import FWorker
    from fireworks.core.rocket_launcher import launch_rocket

    from fireworks_specs.execution import _quietly, worker_name
    from stores.workers import this_worker

    launchpad = connection.launchpad()
    if connection.kind == "embedded":
        cut_off = {"spec.role": ROLE, "state": {"$in": ["RUNNING", "RESERVED"]}}
        for firework in list(launchpad.fireworks.find(cut_off, {"fw_id": 1})):
            launchpad.rerun_fw(firework["fw_id"])
    worker = FWorker(name=worker_name(), query={"spec.role": ROLE}, env={"worker": this_worker()})
    ready = {"spec.role": ROLE, "state": "READY"}
    count = 0
    before = launchpad.fireworks.count_documents({"spec.role": ROLE, "state": "FIZZLED"})
    with _quietly():
        while launchpad.fireworks.find_one(ready, {"fw_id": 1}) is not None:
            launch_rocket(launchpad, worker, strm_lvl="CRITICAL", err_file=io.StringIO())
            count += 1
    return count, launchpad.fireworks.count_documents({"spec.role": ROLE, "state": "FIZZLED"}) - before
