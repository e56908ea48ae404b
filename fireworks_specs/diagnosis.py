"""Diagnosis: what is the matter with a firework that is taken, told from the facts; no database, no scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fireworks_specs import recovery
from fireworks_specs.schedulers import ALIVE, UNTOLD

if TYPE_CHECKING:
    from fireworks_specs.schedulers import Fate, Job

SUBMITTED_SECONDS = 60.0
"""A job that was submitted longer ago than this is in its scheduler's list."""

FINE = ("running", "waiting", "unknown")
Verdict = Literal[
    "running", "waiting", "unknown",
    "killed", "timeout", "out_of_memory", "preempted", "cancelled", "node_failed", "job_ended", "never_started",
    "worker_dead", "silent", "untold", "stuck",
]  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What is known about a firework that is taken.

    Attributes
    ----------
    state
        ``RUNNING`` or ``RESERVED``.
    age
        Seconds since it came into that state; ``None`` if nobody wrote it down.
    launch_state
        Of its last launch; ``None`` if it has none.
    past
        Seconds since its worker's claim ended, negative while it holds; ``None`` without a claim.
    alive, dead
        Whether the worker is known to be alive, or dead: a process of this machine.
    job_id
        Of the scheduler's job that it runs in, or waits for.
    asked
        Whether the scheduler answered, and the job is one of its cluster's.
    job
        What it answered; ``None`` if it does not know the job.
    log
        How the job ended by its own log.
    """

    state: str
    age: float | None = None
    launch_state: str | None = "RUNNING"
    past: float | None = None
    alive: bool = False
    dead: bool = False
    job_id: str | None = None
    asked: bool = False
    job: Job | None = None
    log: tuple[Fate, str] | None = None


def judge(facts: Facts, *, lease: float) -> tuple[Verdict, str, float]:  # noqa: PLR0911, PLR0912 (one line per case)
    """Return what is the matter with a taken firework: the verdict, why, and when to look again.

    That is in seconds: 0 is sure, and what a live worker passes through is lost only if it is so then. A claim alone
    does not tell: who could not renew it, because the database was away, does so when that is back.

    Parameters
    ----------
    lease
        Seconds that a claim holds; a worker that has not renewed its claim for twice as long is given up.
    """
    job, name, settle = facts.job, f"job {facts.job_id}", recovery.SETTLE_SECONDS
    if facts.launch_state in ("COMPLETED", "FIZZLED"):
        why = f"its launch is {facts.launch_state}, and its worker ended before the launchpad heard it"
        return "untold", why, settle
    if facts.alive and facts.past is not None:
        return "running", "its worker's process is alive on this machine", 0
    if facts.past is not None and facts.past <= 0 and not facts.dead:  # whatever anybody says of its job
        return "running", "its worker renews its claim", 0
    if facts.asked and job is not None and job.ended:
        verdict, why = _ended(job, facts.log)
        if facts.state == "RESERVED":
            return "never_started", f"{name} ended before it took the firework: {why}", 0
        return verdict, f"{name} ended: {why}", settle if facts.past is None and not facts.dead else 0
    if facts.dead:
        if facts.asked and job is not None and job.fate in ("running", "suspended"):
            return "worker_dead", f"its worker's process is gone, and {name} still runs", 0
        verdict, why = _gone(facts.log, "its worker's process is gone")
        return verdict, why, 0
    if facts.state == "RESERVED":
        return (*_judge_reserved(facts), 0)
    if facts.asked and job is not None and job.fate == "waiting":
        return "preempted", f"{name} was put back into the queue: {job.said}", 0
    if facts.asked and job is not None and job.fate == "suspended":  # nor can it renew its claim
        return "waiting", f"{name} is suspended: {job.said}", 0
    if facts.past is not None and facts.past <= lease:
        left = f"without a sign of life it is given up in {lease - facts.past:.0f} s"
        return "unknown", f"its worker's claim ended {facts.past:.0f} s ago; {left}", 0
    if facts.past is None and (facts.age is None or facts.age <= lease):
        return "running", "it starts, or ends", 0
    # a claim is given back a moment before the launchpad hears that the work is done
    unclaimed, unrenewed = (settle, settle) if facts.past is None else (0, recovery.renewal_seconds(lease))
    silent = f"its worker's claim ended {facts.past:.0f} s ago" if facts.past is not None else "its worker has no claim"
    if facts.asked and job is not None and job.fate == "running":
        return "worker_dead", f"{silent}, and {name} still runs", unrenewed
    if facts.asked and job is None:
        verdict, why = _gone(facts.log, f"{silent}, and {name} is gone from the queue")
        return verdict, why, unclaimed
    if facts.log is not None:
        return facts.log[0], f"{silent}; {facts.log[1]}", unclaimed  # type: ignore[return-value]
    return "silent", f"{silent}; no scheduler here tells more", unrenewed


def _judge_reserved(facts: Facts) -> tuple[Verdict, str]:
    """Return the verdict on a reserved firework whose job has not ended."""
    name, job = f"job {facts.job_id}", facts.job
    if facts.job_id is None or facts.launch_state is None:
        if facts.age is not None and facts.age > recovery.UNLAUNCHED_SECONDS:
            return "never_started", f"reserved {facts.age:.0f} s ago, and no job was submitted"
        return "waiting", "it is being submitted"
    if facts.asked and job is not None and job.fate in ALIVE:
        return "waiting", f"{name} is in the queue: {job.said}"
    if facts.asked and job is None and (facts.age is None or facts.age > SUBMITTED_SECONDS):
        _, why = _gone(facts.log, f"{name} is not in the queue")
        return "never_started", why
    return "unknown", f"{name} was submitted on another machine, or no scheduler answers here"


def _ended(job: Job, log: tuple[Fate, str] | None) -> tuple[Verdict, str]:
    """Return the verdict where the job has ended: its scheduler's word, or what that wrote into the job's log."""
    if log is not None and job.fate in UNTOLD:
        return log[0], log[1]  # type: ignore[return-value]
    if job.fate in ("completed", "failed"):
        return "job_ended", job.said
    return job.fate, job.said  # type: ignore[return-value]


def _gone(log: tuple[Fate, str] | None, why: str) -> tuple[Verdict, str]:
    """Return the verdict where only the job's log can tell how its worker ended."""
    return ("killed", why) if log is None else (log[0], f"{why}; {log[1]}")  # type: ignore[return-value]
