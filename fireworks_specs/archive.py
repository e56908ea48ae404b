"""Archive: workflows of closed rounds leave the launchpad; who ran what, when and how it ended is kept."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from fireworks_specs.calculations import ROLE
from fireworks_specs.steps import round_closed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from stores.connection import Connection

FINAL = ("COMPLETED", "FIZZLED", "ARCHIVED", "DEFUSED")
"""States from which a firework moves only if somebody reruns it."""
LOCK = "archiving"
"""The lock of a workflow that is being archived; FireWorks asks only whether there is one."""
COLLECTION = "archived_fireworks"
BATCH = 250
MILLISECOND = timedelta(milliseconds=1)
"""To which the database keeps times."""


@dataclass
class ArchiveReport:
    """What left the launchpad, or with ``dry_run`` would.

    ``kept`` workflows stay because something of them waits, runs or is being written, ``recent`` ones because they
    changed too short a time ago.
    """

    campaign: str | None
    dry_run: bool
    rounds: list[int]
    workflows: int = 0
    fireworks: int = 0
    launches: int = 0
    kept: int = 0
    recent: int = 0

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def archive_workflows(
    connection: Connection,
    campaign: str | None,
    *,
    older_than: timedelta = timedelta(0),
    dry_run: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> ArchiveReport:
    """Move the finished workflows of a campaign's closed rounds from the launchpad into ``archived_fireworks``.

    A workflow with a firework that waits, runs, is paused or was touched later than ``older_than`` ago is kept. Killed
    at any moment, the next call goes on: what is kept is written before anything is removed.

    Parameters
    ----------
    campaign
        Its name; ``None`` moves the finished calculations that are of no campaign, which have no rounds.
    older_than
        Since the workflow's last change.
    progress
        Called with (workflows done, all of them, "").

    Raises
    ------
    RuntimeError
        If other fireworks are kept under the ids of some, which stay on the launchpad then; all others have left it.
    """
    workflows = connection.launchpad().workflows
    closed: list[int] = []
    found: dict[str, Any] = {"metadata.role": ROLE, "metadata.campaign": None}
    if campaign is not None:
        rounds = workflows.distinct("metadata.round", {"metadata.campaign": campaign})
        closed = [number for number in sorted(n for n in rounds if n is not None) if round_closed(campaign, number)]
        found = {"metadata.campaign": campaign, "metadata.round": {"$in": closed}}
    report = ArchiveReport(campaign, dry_run, closed)
    before = connection.now() - older_than
    changed = {
        workflow["_id"]: _utc(workflow.get("updated_on")) for workflow in workflows.find(found, {"updated_on": 1})
    }
    ids = [_id for _id, when in changed.items() if (when or before) <= before]
    report.recent = len(changed) - len(ids)
    taken: set[int] = set()
    for start in range(0, len(ids), BATCH):
        taken |= _archive_batch(connection, ids[start : start + BATCH], report)
        if progress is not None:
            progress(min(start + BATCH, len(ids)), len(ids), "")
    if taken:
        raise RuntimeError(
            f"{COLLECTION} keeps others under the ids of {len(taken)} fireworks, such as {min(taken)}, from before the "
            "launchpad was reset; they stay on the launchpad until that collection is renamed"
        )
    return report


def archived_firework(connection: Connection, fw_id: int) -> dict[str, Any] | None:
    """Return what is kept of a firework that left the launchpad; ``None`` if there is nothing."""
    found: dict[str, Any] | None = connection.db[COLLECTION].find_one({"fw_id": fw_id}, {"_id": 0})
    return found


def _archive_batch(connection: Connection, ids: list[Any], report: ArchiveReport) -> set[int]:
    """Archive some workflows: lock, look again, keep, remove; return the ids under which others are kept."""
    launchpad = connection.launchpad()
    if not report.dry_run:  # nobody reruns what is locked; a lock of a call that was killed is ours
        launchpad.workflows.update_many({"_id": {"$in": ids}, "locked": {"$exists": False}}, {"$set": {"locked": LOCK}})
    wanted: dict[str, Any] = {"_id": {"$in": ids}} | ({} if report.dry_run else {"locked": LOCK})
    workflows = list(launchpad.workflows.find(wanted, {"nodes": 1, "metadata": 1}))
    nodes = [node for workflow in workflows for node in workflow["nodes"]]
    fireworks = {d["fw_id"]: d for d in launchpad.fireworks.find({"fw_id": {"$in": nodes}})}
    busy = [w for w in workflows if any(fireworks[n]["state"] not in FINAL for n in w["nodes"] if n in fireworks)]
    launches = _launches(launchpad.launches, nodes)
    now = connection.now()
    records = {
        node: _record(fireworks[node], workflow, launches[node], now)
        for workflow in workflows
        if workflow not in busy
        for node in workflow["nodes"]
        if node in fireworks  # of one that was removed by a call that was killed, the record is there
    }
    taken = _taken(connection, records)
    left = [workflow for workflow in workflows if workflow in busy or taken & set(workflow["nodes"])]
    done = [workflow for workflow in workflows if workflow not in left]
    report.kept += len(ids) - len(done)
    if left and not report.dry_run:
        own = {"_id": {"$in": [workflow["_id"] for workflow in left]}, "locked": LOCK}
        launchpad.workflows.update_many(own, {"$unset": {"locked": ""}})
    nodes = [node for workflow in done for node in workflow["nodes"]]
    report.workflows += len(done)
    report.fireworks += sum(node in fireworks for node in nodes)
    report.launches += sum(len(launches[node]) for node in nodes)
    if report.dry_run or not done:
        return taken
    _keep(connection, [records[node] for node in nodes if node in records])
    launch_ids = [launch["launch_id"] for node in nodes for launch in launches[node]]
    _remove_large_actions(connection, launch_ids)
    launchpad.launches.delete_many({"launch_id": {"$in": launch_ids}})
    launchpad.fireworks.delete_many({"fw_id": {"$in": nodes}, "state": {"$in": list(FINAL)}})
    launchpad.workflows.delete_many({"_id": {"$in": [workflow["_id"] for workflow in done]}, "locked": LOCK})
    return taken


def _taken(connection: Connection, records: dict[int, dict[str, Any]]) -> set[int]:
    """Return the ids under which other fireworks are kept: a launchpad that was reset counts from 1 again."""
    fields = dict.fromkeys(("fw_id", "workflow", "name", "campaign", "started"), 1)
    found = connection.db[COLLECTION].find({"fw_id": {"$in": list(records)}}, fields)
    return {kept["fw_id"] for kept in found if not _is_same(kept, records[kept["fw_id"]])}


def _is_same(kept: dict[str, Any], record: dict[str, Any]) -> bool:
    """Return whether what is kept is of the same firework; a call that was killed may have removed its launches."""
    if any(kept.get(name) != record.get(name) for name in ("workflow", "name", "campaign")):
        return False
    started = _utc(kept.get("started"))
    if not record["launches"]:
        return True
    if started is None or record.get("started") is None:
        return started is record.get("started")
    return bool(abs(record["started"] - started) < MILLISECOND)


def _launches(collection: Any, nodes: list[int]) -> dict[int, list[dict[str, Any]]]:
    """Return firework -> its launches in the order of their making, without what they handed on."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    hidden = {"action.additions": 0, "action.detours": 0, "action.update_spec": 0, "action.mod_spec": 0}
    for launch in collection.find({"fw_id": {"$in": nodes}}, hidden):
        found[launch["fw_id"]].append(launch)
    for launches in found.values():
        launches.sort(key=lambda launch: int(launch["launch_id"]))
    return found


def _record(
    firework: dict[str, Any], workflow: dict[str, Any], launches: list[dict[str, Any]], now: datetime
) -> dict[str, Any]:
    """Return what is kept of a firework; absent is what it does not have."""
    spec, last = firework.get("spec") or {}, launches[-1] if launches else {}
    times = dict(_times(last.get("state_history") or []))
    started, ended = times.get("RUNNING"), times.get("COMPLETED") or times.get("FIZZLED")
    worker = last.get("fworker") or {}
    about = (worker.get("env") or {}).get("worker") or {}
    record = {
        "fw_id": firework["fw_id"],
        "workflow": min(workflow["nodes"]),
        "name": firework.get("name"),
        "campaign": spec.get("campaign"),
        "round": spec.get("round", workflow["metadata"].get("round")),
        "step": spec.get("step", workflow["metadata"].get("step")),
        "role": spec.get("role"),
        "task": ", ".join(_tasks(spec)) or None,
        "state": firework["state"],
        "worker": worker.get("name"),
        "host": last.get("host"),
        "job": (about.get("job") or {}).get("id") or _reservation(last),
        "started": started,
        "ended": ended,
        "seconds": (ended - started).total_seconds() if started and ended else None,
        "launches": len(launches),
        "error": _error(last) if firework["state"] != "COMPLETED" else None,
        "lost": spec.get("_doctor") or None,
        "archived_at": now,
    }
    return {name: value for name, value in record.items() if value is not None}


def _keep(connection: Connection, records: list[dict[str, Any]]) -> None:
    """Insert what is kept; what a call that was killed has inserted is there already."""
    from pymongo.errors import BulkWriteError

    if not records:
        return
    try:
        connection.db[COLLECTION].insert_many(records, ordered=False)
    except BulkWriteError as error:
        if any(problem["code"] != 11000 for problem in error.details["writeErrors"]):
            raise
    ids = [record["fw_id"] for record in records]
    kept = {d["fw_id"] for d in connection.db[COLLECTION].find({"fw_id": {"$in": ids}}, {"fw_id": 1})}
    if missing := sorted(set(ids) - kept):
        raise RuntimeError(f"{len(missing)} fireworks, such as {missing[0]}, were not kept, and stay on the launchpad")


def _remove_large_actions(connection: Connection, launch_ids: list[int]) -> None:
    """Remove what FireWorks has put into GridFS because it was too large for a launch."""
    files = connection.gridfs("fw_gridfs")
    found = connection.db["fw_gridfs.files"].find({"metadata.launch_id": {"$in": launch_ids}}, {"_id": 1})
    for file in list(found):
        files.delete(file["_id"])


def _tasks(spec: dict[str, Any]) -> Iterator[str]:
    for task in spec.get("_tasks") or []:
        yield str(task.get("_fw_name", "")).strip("{}").rpartition(".")[2]


def _times(history: Iterable[dict[str, Any]]) -> Iterator[tuple[str, datetime]]:
    """Yield state -> when a launch came into it, in UTC."""
    for entry in history:
        when = _utc(entry.get("created_on"))
        if when is not None and entry.get("state"):
            yield entry["state"], when


def _reservation(launch: dict[str, Any]) -> str | None:
    found = [entry["reservation_id"] for entry in launch.get("state_history") or [] if "reservation_id" in entry]
    return str(found[-1]) if found else None


def _error(launch: dict[str, Any]) -> str | None:
    """Return the last line of a launch's trace."""
    stored = (launch.get("action") or {}).get("stored_data") or {}
    trace = str((stored.get("_exception") or {}).get("_stacktrace") or "").strip()
    return trace.splitlines()[-1][:1000] if trace else None


def _utc(value: Any) -> datetime | None:
    """Return a time that FireWorks wrote, as text or as a date, in UTC without a zone."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
