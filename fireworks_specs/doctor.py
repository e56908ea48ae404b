"""Doctor: joins what the launchpad takes for running with workers, claims and the scheduler; reruns what is lost."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fireworks_specs import recovery
from fireworks_specs.diagnosis import FINE, Facts, judge
from fireworks_specs.schedulers import fate_of_log, job_id_of_log, job_logs, tail

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from fireworks import LaunchPad

    from fireworks_specs.diagnosis import Verdict
    from fireworks_specs.schedulers import Fate, Queue, Scheduler
    from stores.connection import Connection

BATCH = 1000
TAKEN = ("RUNNING", "RESERVED")
DONE = ("COMPLETED", "FIZZLED")
RECORD = "_doctor"
"""Where a firework's spec keeps what the doctor did to it: one entry per rerun."""


@dataclass(frozen=True)
class Case:
    """A firework that is taken, or stuck: what is the matter, and what was done about it.

    Attributes
    ----------
    verdict, why
        In one word, and in a sentence.
    doubtful
        Seconds after which to look again, since a live worker passes through this state; 0 if it is sure.
    reruns
        How often the doctor has rerun it before.
    action
        ``rerun`` or ``refresh`` where it was cured, ``left`` where it was not, else empty.
    """

    fw_id: int
    name: str
    campaign: str
    state: str
    verdict: Verdict
    why: str
    doubtful: float = 0
    launch_id: int | None = None
    worker: dict[str, Any] | None = None
    job: str | None = None
    host: str | None = None
    since: datetime | None = None
    reruns: int = 0
    action: str = ""

    @property
    def lost(self) -> bool:
        """Whether nobody will finish it as it is."""
        return self.verdict not in FINE

    def record(self) -> dict[str, Any]:
        """Return what ``inv-design doctor --json`` writes."""
        names = ("fw_id", "name", "campaign", "state", "verdict", "lost", "why", "job", "host", "since", "reruns")
        return {**{name: getattr(self, name) for name in names}, "action": self.action or None}


class Doctor:
    """Examines the fireworks of one campaign, or of all, and reruns what is lost.

    Parameters
    ----------
    connection
        The database that the launchpad is on.
    campaign
        Its name; all campaigns by default. Fireworks of no campaign are left to FireWorks' own ``detect_lostruns``.
    scheduler
        Whom to ask about jobs; without one, claims and processes tell.

    Attributes
    ----------
    warnings
        What could not be found out; never a reason to call anything lost.
    """

    def __init__(
        self, connection: Connection, *, campaign: str | None = None, scheduler: Scheduler | None = None
    ) -> None:
        self.connection = connection
        self.launchpad: LaunchPad = connection.launchpad()
        self.campaign = campaign
        self.scheduler = scheduler
        self.warnings: list[str] = []
        self.queue: Queue | None = None

    # -- diagnosis ----------------------------------------------------------------------------------------------------

    def examine(self) -> list[Case]:
        """Return every firework that is running, reserved or stuck; what may pass is looked at twice."""
        first = [*self._taken(), *self._stuck()]
        doubtful = {case.fw_id for case in first if case.doubtful}
        if not doubtful:
            return first
        recovery.wait_for_signs(len(doubtful), max(case.doubtful for case in first))
        again = [*self._taken(sorted(doubtful)), *self._stuck(doubtful)]
        sure = [case for case in first if not case.doubtful]
        return sorted([*sure, *again], key=lambda case: case.fw_id)

    def _taken(self, fw_ids: Sequence[int] | None = None) -> list[Case]:
        """Return the fireworks that are running or reserved."""
        wanted: dict[str, Any] = {"state": {"$in": list(TAKEN)}, "spec.campaign": self.campaign or {"$exists": True}}
        if fw_ids is not None:
            wanted["fw_id"] = {"$in": list(fw_ids)}
        fields = ("fw_id", "name", "state", "updated_on", "launches", "spec.campaign", f"spec.{RECORD}")
        fireworks = sorted(self.launchpad.fireworks.find(wanted, dict.fromkeys(fields, 1)), key=lambda d: d["fw_id"])
        launches = self._last_launches(fireworks)
        claims = self._claims(launches.values())
        now = self.connection.now()
        jobs = {fw_id: self._job_of(launch, claims.get(launch["launch_id"]), now) for fw_id, launch in launches.items()}
        self._ask(job["id"] for job in jobs.values() if job)
        cases = []
        for firework in fireworks:
            launch = launches.get(firework["fw_id"])
            claim = claims.get(launch["launch_id"]) if launch else None
            cases.append(self._case(firework, launch, claim, jobs.get(firework["fw_id"]) or {}, now))
        return cases

    def _case(
        self,
        firework: dict[str, Any],
        launch: dict[str, Any] | None,
        claim: dict[str, Any] | None,
        job: dict[str, Any],
        now: datetime,
    ) -> Case:
        from stores.claims import lease_seconds
        from stores.workers import is_dead

        worker = _worker(launch, claim)
        since = _since(firework, launch)
        asked = self.queue is not None and bool(job) and (job.get("here") or self.queue.owns(job))
        facts = Facts(
            state=firework["state"],
            age=(now - since).total_seconds() if since else None,
            launch_state=launch.get("state") if launch else None,
            past=(now - claim["expires_at"]).total_seconds() if claim else None,
            alive=recovery.works_here(worker, launch or {}),
            dead=is_dead(worker),
            job_id=job.get("id"),
            asked=bool(asked),
            job=self.queue[job["id"]] if self.queue is not None and asked else None,
            log=_log_fate(launch, job.get("id")),
        )
        verdict, why, doubtful = judge(facts, lease=lease_seconds())
        return Case(
            fw_id=firework["fw_id"],
            name=firework.get("name") or "",
            campaign=firework["spec"]["campaign"],
            state=firework["state"],
            verdict=verdict,
            why=why,
            doubtful=doubtful,
            launch_id=launch["launch_id"] if launch else None,
            worker=worker,
            job=job.get("id"),
            host=worker.get("host") or (launch or {}).get("host"),
            since=since,
            reruns=len(firework["spec"].get(RECORD) or []),
        )

    def _last_launches(self, fireworks: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Return firework -> its present launch, without its action."""
        owner = {firework["launches"][-1]: firework["fw_id"] for firework in fireworks if firework.get("launches")}
        found = _batched(self.launchpad.launches, "launch_id", list(owner), {"action": 0})
        return {owner[launch["launch_id"]]: launch for launch in found}

    def _claims(self, launches: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Return launch -> its worker's claim."""
        from fireworks_specs.steps import firework_key

        keys = {firework_key(launch["fw_id"], launch["launch_id"]): launch["launch_id"] for launch in launches}
        return {keys[claim["key"]]: claim for claim in _batched(self.connection.db["claims"], "key", list(keys))}

    def _job_of(self, launch: dict[str, Any], claim: dict[str, Any] | None, now: datetime) -> dict[str, Any]:
        """Return the job that a launch runs in or waits for: ``id``, and what a worker told about it.

        ``here`` says that it was submitted on this machine. A folder that is seen from here is none of its signs: two
        clusters may share it, and each count its jobs from 1. The name of a log beside a launch is a guess, the log may
        be another job's: it only tells of workers that nobody heard of for a lease.
        """
        from stores.claims import lease_seconds

        worker = _worker(launch, claim)
        told = worker.get("job")
        if told and told.get("id"):
            return dict(told)
        reserved = [entry["reservation_id"] for entry in launch.get("state_history") or [] if "reservation_id" in entry]
        if reserved:
            return {"id": str(reserved[-1]), "here": launch.get("host") == socket.gethostname()}
        since = recovery.launched_at(launch)
        silent = since is not None and (now - since).total_seconds() > lease_seconds()
        heard_of = claim is not None or worker or launch.get("state") != "RUNNING"
        if launch.get("launch_dir") and silent and not heard_of:
            ids = {job_id_of_log(path) for path in job_logs(Path(launch["launch_dir"]))} - {None}
            if len(ids) == 1:
                return {"id": ids.pop(), "here": True}
        return {}

    def _ask(self, ids: Iterable[str]) -> None:
        """Ask the scheduler about jobs; if it fails, say so and go on without."""
        self.queue = None
        wanted = list(ids)
        if self.scheduler is None or not wanted:
            return
        try:
            self.queue = self.scheduler.ask(wanted)
        except (OSError, ValueError) as error:
            text = f"{error}; judged without the scheduler, by claims and processes"
            if text not in self.warnings:
                self.warnings.append(text)

    def _stuck(self, only: Collection[int] | None = None) -> list[Case]:
        """Return what waits although all its parents are done: a worker died while it wrote the workflow."""
        parents = self._suspects(only)
        wanted = {"state": "WAITING", "spec.campaign": self.campaign or {"$exists": True}}
        fields = dict.fromkeys(("fw_id", "name", "spec.campaign", "spec._allow_fizzled_parents"), 1)
        waiting = list(_batched(self.launchpad.fireworks, "fw_id", sorted(parents), fields, wanted))
        above = sorted({parent for found in waiting for parent in parents[found["fw_id"]]})
        states = {
            d["fw_id"]: d["state"] for d in _batched(self.launchpad.fireworks, "fw_id", above, {"fw_id": 1, "state": 1})
        }
        why = "it waits, but all that it waits for is done: a worker ended while it wrote their workflow"
        return [
            Case(
                fw_id=found["fw_id"],
                name=found.get("name") or "",
                campaign=found["spec"]["campaign"],
                state="WAITING",
                verdict="stuck",
                why=why,
                doubtful=recovery.SETTLE_SECONDS,
            )
            for found in waiting
            if all(states.get(parent) in _done(found["spec"]) for parent in parents[found["fw_id"]])
        ]

    def _suspects(self, only: Collection[int] | None) -> dict[int, list[int]]:
        """Return what may be stuck -> its parents, by what unfinished workflows say of their fireworks.

        Of a parent that is done, a workflow that was left half-written says that it is taken.
        """
        wanted: dict[str, Any] = {"state": {"$in": [*recovery.ACTIVE_STATES, "FIZZLED", "PAUSED"]}}
        if only is not None:
            wanted = {"nodes": {"$in": sorted(only)}}
        found: dict[int, list[int]] = {}
        for workflow in self.launchpad.workflows.find(wanted, {"links": 1, "fw_states": 1}):
            states = {int(fw_id): state for fw_id, state in workflow["fw_states"].items()}
            parents: dict[int, list[int]] = defaultdict(list)
            for parent, children in workflow["links"].items():
                for child in children:
                    parents[child].append(int(parent))
            suspects = {
                child: above
                for child, above in parents.items()
                if states.get(child) == "WAITING" and all(states.get(p) in (*TAKEN, *DONE) for p in above)
            }
            found |= {child: above for child, above in suspects.items() if only is None or child in only}
        return found

    # -- cure ---------------------------------------------------------------------------------------------------------

    def cure(self, case: Case, *, again: bool = False) -> Case:
        """Rerun a lost firework, or let the launchpad hear that it is done; return the case with the ``action``.

        A firework is rerun once; ``again`` reruns one that was lost after that, too. What has replaced itself by other
        fireworks is left: a rerun would make a second set of them.
        """
        if not case.lost:
            return case
        if case.verdict in ("untold", "stuck"):
            return self._refresh(case)
        if case.reruns and not again:
            times = "once" if case.reruns == 1 else f"{case.reruns} times"
            return _left(case, f"the doctor has rerun it {times} before (--again reruns it)")
        return self._rerun(case)

    def _rerun(self, case: Case) -> Case:
        if self._has_replaced_itself(case.fw_id):
            return _left(case, "it has added other fireworks, which a rerun would double")
        entry = self._entry(case)
        if not self._mark(case, entry):
            return _left(case, "it has changed since: look again")
        self._unlock(case.fw_id)
        try:
            self.launchpad.rerun_fw(case.fw_id, rerun_duplicates=False)
        except (ValueError, RuntimeError, KeyError) as error:  # locked by somebody alive, or not to be read
            self._unmark(case)
            return _left(case, f"FireWorks cannot rerun it: {error!r}")
        self._record_loss(case, entry)
        self._release_claims(case)
        return replace(case, action="rerun")

    def _refresh(self, case: Case) -> Case:
        """Let the launchpad derive a workflow's states anew from its fireworks, parents first."""
        self._unlock(case.fw_id)
        links = self.launchpad.workflows.find_one({"nodes": case.fw_id}, {"links": 1})["links"]
        parents = [int(parent) for parent, children in links.items() if case.fw_id in children]
        try:
            for fw_id in [*parents, case.fw_id]:
                self.launchpad._refresh_wf(fw_id)
        except RuntimeError as error:  # a document that FireWorks cannot read: it has marked it as failed
            last = str(error).strip().splitlines()[-1]
            return _left(case, f"its workflow cannot be read: {last}")
        return replace(case, action="refresh")

    def _entry(self, case: Case) -> dict[str, Any]:
        import getpass

        by = f"{getpass.getuser()}@{socket.gethostname()}"
        names = ("launch_id", "verdict", "why", "job", "host")
        return {**{name: getattr(case, name) for name in names}, "at": self.connection.now(), "by": by}

    def _mark(self, case: Case, entry: dict[str, Any]) -> bool:
        """Write the rerun into the firework's spec, if it is as it was seen; of several doctors one succeeds."""
        as_seen = {"fw_id": case.fw_id, "state": case.state, f"spec.{RECORD}.{case.reruns}": {"$exists": False}}
        if case.launch_id is not None:
            as_seen["launches"] = case.launch_id
        marked = {"$push": {f"spec.{RECORD}": entry}}
        return self.launchpad.fireworks.find_one_and_update(as_seen, marked) is not None

    def _unmark(self, case: Case) -> None:
        """Take the mark of a rerun that was none from the firework's spec, so that the next doctor tries again."""
        path = f"spec.{RECORD}"
        ours = {"fw_id": case.fw_id, f"{path}.{case.reruns}": {"$exists": True}}
        last = {f"{path}.{case.reruns + 1}": {"$exists": False}}
        self.launchpad.fireworks.update_one({**ours, **last}, {"$pop": {path: 1}})

    def _has_replaced_itself(self, fw_id: int) -> bool:
        """Return whether a launch of a firework has added other fireworks."""
        made = [{"action.additions.0": {"$exists": True}}, {"action.detours.0": {"$exists": True}}]
        return self.launchpad.launches.find_one({"fw_id": fw_id, "$or": made}, {"launch_id": 1}) is not None

    def _unlock(self, fw_id: int) -> None:
        """Remove a workflow's lock that a dead worker left: one that nothing happens under for a while."""
        fields = {"locked": 1, "updated_on": 1, "fw_states": 1}
        seen = self.launchpad.workflows.find_one({"nodes": fw_id}, fields)
        end = time.monotonic() + recovery.SETTLE_SECONDS
        while seen is not None and seen.get("locked"):
            if time.monotonic() >= end:
                same = {"_id": seen["_id"], "locked": True, "updated_on": seen.get("updated_on")}
                self.launchpad.workflows.update_one(same, {"$unset": {"locked": ""}})
                return
            time.sleep(0.1)
            now = self.launchpad.workflows.find_one({"nodes": fw_id}, fields)
            if now != seen:
                end = time.monotonic() + recovery.SETTLE_SECONDS
            seen = now

    def _record_loss(self, case: Case, entry: dict[str, Any]) -> None:
        """Write into the launch why it ended, where FireWorks has the error of one that failed."""
        from fireworks import FWAction

        if case.launch_id is None:
            return

        error = {"_stacktrace": f"lost ({case.verdict}): {case.why}", "_details": None}
        action = FWAction(stored_data={"_exception": error}, exit=True).to_dict()
        history = {"state": "FIZZLED", "created_on": entry["at"], "updated_on": entry["at"]}
        unfinished = {"launch_id": case.launch_id, "state": {"$in": list(TAKEN)}}
        changes = {"$set": {"state": "FIZZLED", "action": action}, "$push": {"state_history": history}}
        self.launchpad.launches.update_one(unfinished, changes)

    def _release_claims(self, case: Case) -> None:
        """Remove what a lost worker held, so that nobody waits for its leases to end.

        Where only its claim says that it is dead, it may be cut off and still at work on what it holds.
        """
        from fireworks_specs.steps import firework_key
        from stores.workers import is_dead

        claims = self.connection.db["claims"]
        if case.launch_id is not None:
            claims.delete_many({"key": firework_key(case.fw_id, case.launch_id)})
        worker = case.worker or {}
        known_dead = case.verdict not in ("silent", "worker_dead") or is_dead(worker)
        if worker.get("machine") and worker.get("pid") and known_dead:
            claims.delete_many({f"worker.{name}": worker[name] for name in ("host", "pid", "machine")})


def _left(case: Case, why: str) -> Case:
    return replace(case, action="left", why=f"{case.why}; {why}")


def _worker(launch: dict[str, Any] | None, claim: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a worker says about itself: in its claim, or in its launch."""
    environment = ((launch or {}).get("fworker") or {}).get("env") or {}
    return (claim or {}).get("worker") or environment.get("worker") or {}


def _since(firework: dict[str, Any], launch: dict[str, Any] | None) -> datetime | None:
    """Return when a firework came into its state, in UTC."""
    if launch is not None:
        return recovery.launched_at(launch)
    found = firework.get("updated_on")
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = datetime.fromisoformat(found)
    if not isinstance(found, datetime):
        return None
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def _done(spec: dict[str, Any]) -> tuple[str, ...]:
    """Return the states of parents that a firework does not wait for."""
    return DONE if spec.get("_allow_fizzled_parents") else DONE[:1]


def _log_fate(launch: dict[str, Any] | None, job_id: str | None) -> tuple[Fate, str] | None:
    """Return how a job ended by its own log, where that can be seen from here."""
    if not launch or not launch.get("launch_dir") or job_id is None:
        return None
    for path in job_logs(Path(launch["launch_dir"]), job_id):
        if found := fate_of_log(tail(path)):
            return found
    return None


def _batched(
    collection: Any,
    field: str,
    values: Sequence[Any],
    fields: dict[str, int] | None = None,
    further: dict[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the documents whose field is one of some values, and that meet further conditions."""
    for start in range(0, len(values), BATCH):
        some = {field: {"$in": list(values[start : start + BATCH])}}
        yield from collection.find({**some, **(further or {})}, fields)
