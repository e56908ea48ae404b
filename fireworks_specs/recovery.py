"""Recovery: which fireworks have lost their worker, told by its process and by its claim, and giving them up."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fireworks import LaunchPad

    from stores.connection import Connection

LOG = logging.getLogger(__name__)

SETTLE_SECONDS = 5.0
"""A worker that gave its claim back has told the launchpad within this time that its firework is done."""
UNLAUNCHED_SECONDS = 600
"""A firework that is reserved for so long without a launch is lost: the two are milliseconds apart."""
ACTIVE_STATES = ["READY", "RESERVED", "RUNNING", "WAITING"]
LATER_SECONDS = 60.0
"""A process that is so much younger than a launch is another one, which has got the id of the launch's worker."""

Sign = Literal["alive", "dead", "unclaimed", "unrenewed"]
"""Of a worker: the last two are in doubt, it should have a claim and has none, or has not renewed it for two leases."""

_unrenewed: set[tuple[str, datetime]] = set()
"""Claims that this process has waited for in vain, by key and end: who renews one makes another of it."""


def recover(launchpad: LaunchPad, campaign: str, *, everything: bool, failed: bool = True) -> int:
    """Give up the fireworks of dead workers; return how many.

    The records, not the launchpad, say what is done: what a lost workflow left undone is planned anew. A worker is dead
    if it is a process of this machine that is gone, or if its claim ended more than a lease ago and is not renewed
    either while it is waited for: after an outage of the database so are the claims of all who live. ``everything``
    treats every unfinished workflow as lost (the embedded store has one process, so no other can be at work);
    ``failed`` gives up fireworks that failed, too.
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
    doubtful = [fw_id for fw_id, sign in signs.items() if sign in ("unclaimed", "unrenewed")]
    if doubtful:
        wait_for_signs(len(doubtful), _seconds_of_doubt(set(signs.values())))
        still = {"fw_id": {"$in": doubtful}, "state": {"$in": ["RUNNING", "RESERVED"]}}
        for fw_id in [document["fw_id"] for document in launchpad.fireworks.find(still, {"fw_id": 1})]:
            signs[fw_id] = _sign_of_life(connection, launchpad, fw_id, again=True)
    return {fw_id for fw_id, sign in signs.items() if sign == "dead"}


def _seconds_of_doubt(signs: set[Sign]) -> float:
    from stores.claims import lease_seconds

    # a claim is given back a moment before the launchpad hears that the firework is done
    return renewal_seconds(lease_seconds()) if "unrenewed" in signs else SETTLE_SECONDS


def renewal_seconds(lease: float) -> float:
    """Return within how many seconds a live worker has renewed its claims, also when the database was away before."""
    from stores.claims import RENEWALS

    return lease / RENEWALS + SETTLE_SECONDS


def wait_for_signs(count: int, seconds: float) -> None:
    """Wait before the second look at fireworks whose workers may be alive; say so if it takes long."""
    if seconds > SETTLE_SECONDS:
        what = f"{count} fireworks" if count > 1 else "a firework"
        LOG.warning("looking again in %.0f s whether the workers of %s renew their claims", seconds, what)
    time.sleep(seconds)


def _sign_of_life(connection: Connection, launchpad: LaunchPad, fw_id: int, *, again: bool = False) -> Sign:
    """Return whether a firework's worker is alive; who was in doubt is dead if it is so ``again``."""
    from fireworks_specs.steps import firework_key

    fields = {"launch_id": 1, "state": 1, "fworker.env": 1, "state_history": 1}
    launch = launchpad.launches.find_one({"fw_id": fw_id}, fields, sort=[("launch_id", -1)])
    if launch is None:
        return "dead" if _never_launched(launchpad, fw_id) else "alive"
    claim = connection.db["claims"].find_one({"key": firework_key(fw_id, launch["launch_id"])})
    now = connection.now()
    sign = _sign_of_launch(launch, now) if claim is None else _sign_of_claim(claim, launch, now, again=again)
    return "dead" if again and sign != "alive" else sign


def _sign_of_claim(claim: Mapping[str, Any], launch: Mapping[str, Any], now: datetime, *, again: bool) -> Sign:
    from stores.claims import lease_seconds
    from stores.workers import is_dead

    worker, seen = claim.get("worker") or {}, (claim["key"], claim["expires_at"])
    if is_dead(worker):
        return "dead"
    if (now - claim["expires_at"]).total_seconds() <= lease_seconds() or works_here(worker, launch):
        return "alive"
    if again:
        _unrenewed.add(seen)
    return "dead" if seen in _unrenewed else "unrenewed"


def _sign_of_launch(launch: Mapping[str, Any], now: datetime) -> Sign:
    from stores.claims import lease_seconds
    from stores.workers import is_dead, this_worker

    worker = ((launch.get("fworker") or {}).get("env") or {}).get("worker") or {}
    if worker == this_worker() or is_dead(worker):
        return "dead"
    since, waits_in_a_queue = launched_at(launch), launch.get("state") == "RESERVED"
    if waits_in_a_queue or since is None or (now - since).total_seconds() <= lease_seconds():
        return "alive"
    return "unclaimed"


def works_here(worker: Mapping[str, Any], launch: Mapping[str, Any]) -> bool:
    """Return whether a launch's worker is known to be alive: another process of this machine that is there.

    One that has ended, and that nobody has asked how, is not; nor is one that began after the launch: it got its id.
    """
    from stores.workers import is_alive, this_worker

    if not is_alive(worker) or worker == this_worker():
        return False
    since, (state, age) = launched_at(launch), _state_and_age(worker["pid"])
    if state in ("Z", "X"):
        return False
    return since is None or age + LATER_SECONDS >= (datetime.now(UTC).replace(tzinfo=None) - since).total_seconds()


def _state_and_age(pid: int) -> tuple[str, float]:
    """Return a process's state, as ``ps`` has it, and for how many seconds it runs; "" and inf if that is not told."""
    try:
        after_name = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return "", math.inf
    return after_name[0], age


def launched_at(launch: Mapping[str, Any]) -> datetime | None:
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
