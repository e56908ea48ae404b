"""Recovery: which fireworks have lost their worker, told by its process and by its claim, and giving them up."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fireworks import LaunchPad

    from stores.connection import Connection

SETTLE_SECONDS = 5.0
"""A worker that gave its claim back has told the launchpad within this time that its firework is done."""
UNLAUNCHED_SECONDS = 600
"""A firework that is reserved for so long without a launch is lost: the two are milliseconds apart."""
ACTIVE_STATES = ["READY", "RESERVED", "RUNNING", "WAITING"]


def recover(launchpad: LaunchPad, campaign: str, *, everything: bool, failed: bool = True) -> int:
    """Give up the fireworks of dead workers; return how many.

    The records, not the launchpad, say what is done: what a lost workflow left undone is planned anew. A worker is dead
    if it is a process of this machine that is gone, or if its claim ended more than a lease ago. ``everything`` treats
    every unfinished workflow as lost (the embedded store has one process, so no other can be at work); ``failed``
    gives up fireworks that failed, too.
    """
    from fireworks_specs.steps import firework_key
    from stores.connection import connect_from_launchpad

    connection = connect_from_launchpad(launchpad)
    query: dict[str, Any] = {"spec.campaign": campaign, "state": {"$in": [*ACTIVE_STATES, "FIZZLED"]}}
    states = {d["fw_id"]: d["state"] for d in launchpad.fireworks.find(query, {"fw_id": 1, "state": 1})}
    taken = [] if everything else [fw_id for fw_id, state in states.items() if state in ("RUNNING", "RESERVED")]
    dead = _without_live_worker(connection, launchpad, taken)
    live = set(taken) - dead
    lost = dead | {f for f, state in states.items() if everything or (failed and state == "FIZZLED")}
    for workflow in launchpad.workflows.find({"nodes": {"$in": sorted(lost)}}, {"nodes": 1}):
        nodes = set(workflow["nodes"])
        # somebody works on the rest of it, such as the advance that follows a failure: that goes on
        lost = lost - nodes if live & nodes else lost | nodes
    # written directly: a process killed in the middle may have left a workflow that FireWorks cannot load
    chosen = {"fw_id": {"$in": sorted(lost)}}
    unfinished = {"state": {"$in": [*ACTIVE_STATES, "FIZZLED"]}}
    launchpad.fireworks.update_many(chosen | unfinished, {"$set": {"state": "ARCHIVED"}})
    launchpad.launches.update_many(chosen | {"state": {"$in": ["RUNNING", "RESERVED"]}}, {"$set": {"state": "FIZZLED"}})
    # FireWorks takes a workflow for locked that has the field at all
    archived = {"$set": {"state": "ARCHIVED"}, "$unset": {"locked": ""}}
    launchpad.workflows.update_many({"nodes": {"$in": sorted(lost)}}, archived)
    keys = [firework_key(d["fw_id"], d["launch_id"]) for d in launchpad.launches.find({"fw_id": {"$in": sorted(lost)}})]
    if keys:
        connection.db["claims"].delete_many({"key": {"$in": keys}})
    return len(lost)


def _without_live_worker(connection: Connection, launchpad: LaunchPad, fw_ids: list[int]) -> set[int]:
    """Return which of some fireworks that are taken have no worker any more."""
    signs = {fw_id: _sign_of_life(connection, launchpad, fw_id) for fw_id in fw_ids}
    silent = [fw_id for fw_id, sign in signs.items() if sign is None]
    if silent:  # the claim is given back a moment before the launchpad hears that the firework is done
        time.sleep(SETTLE_SECONDS)
        still = {"fw_id": {"$in": silent}, "state": {"$in": ["RUNNING", "RESERVED"]}}
        for fw_id in [document["fw_id"] for document in launchpad.fireworks.find(still, {"fw_id": 1})]:
            signs[fw_id] = bool(_sign_of_life(connection, launchpad, fw_id))
    return {fw_id for fw_id, sign in signs.items() if sign is False}


def _sign_of_life(connection: Connection, launchpad: LaunchPad, fw_id: int) -> bool | None:
    """Return whether a firework's worker is alive; ``None`` for one that should have a claim and has none."""
    from fireworks_specs.steps import firework_key
    from stores.claims import lease_seconds
    from stores.workers import is_dead, this_worker

    fields = {"launch_id": 1, "state": 1, "fworker.env": 1, "state_history": 1}
    launch = launchpad.launches.find_one({"fw_id": fw_id}, fields, sort=[("launch_id", -1)])
    if launch is None:
        return not _never_launched(launchpad, fw_id)
    claim = connection.db["claims"].find_one({"key": firework_key(fw_id, launch["launch_id"])})
    if claim is not None:
        past = (connection.now() - claim["expires_at"]).total_seconds()
        return past <= lease_seconds() and not is_dead(claim.get("worker") or {})
    worker = ((launch.get("fworker") or {}).get("env") or {}).get("worker") or {}
    if worker == this_worker() or is_dead(worker):
        return False
    if launch.get("state") == "RESERVED":  # it waits in a queue
        return True
    since = launched_at(launch)
    return None if since and (connection.now() - since).total_seconds() > lease_seconds() else True


def launched_at(launch: dict[str, Any]) -> datetime | None:
    """Return when a launch came into its state, in UTC; ``None`` if it does not say."""
    history = launch.get("state_history") or [{}]
    found = history[-1].get("created_on")
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = datetime.fromisoformat(found)
    if not isinstance(found, datetime):
        return None
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def _never_launched(launchpad: LaunchPad, fw_id: int) -> bool:
    """Return whether a worker died, or lost the server's answer, between reserving a firework and launching it."""
    firework = launchpad.fireworks.find_one({"fw_id": fw_id, "state": "RESERVED"}, {"updated_on": 1})
    reserved = (firework or {}).get("updated_on")
    if not isinstance(reserved, datetime):
        return False
    return (datetime.now(UTC).replace(tzinfo=None) - reserved).total_seconds() > UNLAUNCHED_SECONDS
