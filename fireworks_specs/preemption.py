"""Preemption: a worker that is told to end (SIGTERM, Ctrl-C) stops its firework, gives it back, and ends.

Slurm sends SIGTERM some time before the walltime if the job asks for it, at ``scancel`` and before it gives the node to
another job; PBS likewise. FireWorks would take the exception for a failure and the worker for free: it would begin the
next firework on a node that is about to go.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fireworks import LaunchPad

LOG = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds within which a computation should reach a safe point; then it is cut off where it stands.

Slurm's ``KillWait``, the time from SIGTERM to SIGKILL at ``scancel``, is 30 s by default.
"""
IN_VAIN = 3
"""Launches in a row that were told to end with nothing to show: then the wall time is too short for the firework."""
BRIEF = 300.0
"""Seconds; a launch that was told to end sooner says nothing about the wall time."""
TOO_SHORT = (
    f"out_of_time: {IN_VAIN} launches in a row were told to end before anything new was stored; "
    "the wall time is too short for one step of it"
)
DEFAULTS: dict[signal.Signals, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
"""The signals that end a worker, and what they do where nobody handles them."""


class Preempted(BaseException):
    """The process was told to end by a signal; not an Exception, so that nothing takes it for a failed crystal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class OutOfTime(Preempted):
    """The time of the scheduler's job is over, although no signal said so: a program was stopped for it."""

    def __init__(self) -> None:
        super().__init__(signal.SIGTERM)
        self.args = ("the time of the job is over",)


class _Watch:
    """What is known of signals while a firework runs."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.said = 0.0
        self.safe_points = 0
        self.reminder: threading.Timer | None = None

    def on_signal(self, number: int, _frame: object) -> None:
        """Raise :class:`Preempted`, or leave it to the next safe point if there is one; said again after the grace."""
        now, first = time.monotonic(), self.number is None
        if not first and now - self.said < GRACE:  # a group of processes may be told twice
            return
        self.number, self.said = number, now
        self.remind()
        if first and self.safe_points:
            return
        raise Preempted(number)

    def remind(self) -> None:
        """Send the signal again after the grace: a library may have swallowed the exception."""
        self.forget()
        self.reminder = threading.Timer(GRACE + 0.1, os.kill, (os.getpid(), self.number))
        self.reminder.daemon = True
        self.reminder.start()

    def forget(self) -> None:
        """Send nothing any more."""
        if self.reminder is not None:
            self.reminder.cancel()


_watch: _Watch | None = None
_unheeded: _Watch | None = None
"""Of a block that came to its end although the process was told to end: it waited for a safe point that never came."""


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
    """Turn the signals that end a worker into :class:`Preempted` while the block runs.

    Only in the main thread, and only where nobody else handles them: `inv-design run` does it itself. If a block ends
    before it was stopped, what it did is recorded, :func:`stop_here` raises in the next block, and without a next one
    the signal comes again after the grace.
    """
    global _watch, _unheeded  # noqa: PLW0603
    free = threading.current_thread() is threading.main_thread() and _watch is None
    before = {s: signal.getsignal(s) for s in DEFAULTS if free and _is_free(s)}
    if not before:
        yield
        return
    _watch = watch = _unheeded or _Watch()
    _unheeded = None
    for number in before:
        signal.signal(number, watch.on_signal)
    try:
        yield
    except Preempted:
        watch.number = None  # heeded: whoever catches it ends the process
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        watch.forget()
        _watch = None
        if watch.number is not None:
            _unheeded = watch
            watch.remind()


def _is_free(number: signal.Signals) -> bool:
    """Return whether a signal does what it does by default, or what FireWorks' scripts do: they exit."""
    handler = signal.getsignal(number)
    code = getattr(handler, "__code__", None)
    of_fireworks = code is not None and Path(code.co_filename).parts[-3:-1] == ("fireworks", "scripts")
    return of_fireworks or handler == DEFAULTS[number]


@contextlib.contextmanager
def safe_points() -> Iterator[None]:
    """Say that the block calls :func:`stop_here` every few seconds: a first signal waits for that."""
    watch = _watch
    if watch is not None:
        watch.safe_points += 1
    try:
        yield
    finally:
        if watch is not None:
            watch.safe_points -= 1


def is_asked_to_stop() -> bool:
    """Return whether the process was told to end."""
    return _watch is not None and _watch.number is not None


def stop_here() -> None:
    """Raise :class:`Preempted` if the process was told to end."""
    if _watch is not None and _watch.number is not None:
        raise Preempted(_watch.number)


def put_back(launchpad: LaunchPad, fw_id: int, launch_id: int) -> bool:
    """Make a firework that this launch runs READY again, so that any worker takes it; return whether it was.

    It has not failed: the launch is archived, and what follows the firework still waits for it. A firework that others
    have given up or taken over meanwhile is theirs. One whose last :data:`IN_VAIN` launches left nothing fails.
    """
    from fireworks import FWAction

    running = launchpad.fireworks.find_one({"fw_id": fw_id, "state": "RUNNING"}, {"launches": 1})
    if running is None or running["launches"][-1:] != [launch_id]:
        return False
    in_vain, stored = launches_in_vain(launchpad, fw_id, launch_id)
    if in_vain >= IN_VAIN:
        LOG.warning("firework %d fails: %s", fw_id, TOO_SHORT)
        error = {"_stacktrace": TOO_SHORT, "_details": None}
        launchpad.complete_launch(launch_id, FWAction(stored_data={"_exception": error}, exit=True), "FIZZLED")
        return False
    note = {"spec.put_back": {"in_vain": in_vain, "stored": stored}}
    launchpad.fireworks.update_one({"fw_id": fw_id}, {"$set": note})
    launchpad.rerun_fw(fw_id, rerun_duplicates=False)
    of_ours: dict[str, Any] = {"launch_id": launch_id, "state": "RUNNING"}
    launchpad.launches.update_one(of_ours, {"$set": {"state": "ARCHIVED"}})
    return True


def launches_in_vain(launchpad: LaunchPad, fw_id: int, launch_id: int) -> tuple[int, list[Any]]:
    """Return how many launches in a row, with this one, have left nothing of a firework's crystals; what there is.

    Only of fireworks that name their crystals: the others keep checkpoints, or take moments. A brief launch that left
    nothing changes nothing.
    """
    spec = (launchpad.fireworks.find_one({"fw_id": fw_id}, {"spec": 1}) or {}).get("spec") or {}
    ids = [identity for task in spec.get("_tasks", ()) for identity in task.get("structure_ids", ())]
    if not ids:
        return 0, []
    stored = _stored(launchpad, ids)
    before = spec.get("put_back") or {"in_vain": 0, "stored": [0, 0, []]}
    if stored != before["stored"]:
        return 0, stored
    return before["in_vain"] + int(not _is_brief(launchpad, launch_id)), stored


def _stored(launchpad: LaunchPad, ids: list[str]) -> list[Any]:
    """Return what tells whether anything was stored of some crystals: jobs, calculations, versions of checkpoints."""
    mine = {"$in": ids}
    done = {"metadata.structure_id": mine, "metadata.work": {"$exists": True}, "metadata.adopted": {"$exists": False}}
    saved = launchpad.db["checkpoints"].find({"part": 0}, {"key": 1, "version": 1})
    return [
        launchpad.db["outputs"].count_documents(done),
        launchpad.db["calculations"].count_documents({"structure_id": mine}),
        sorted(c["version"] for c in saved if c["key"].partition("/")[0] in ids),
    ]


def _is_brief(launchpad: LaunchPad, launch_id: int) -> bool:
    """Return whether a launch of this process began a moment ago."""
    from datetime import UTC, datetime

    from fireworks_specs.recovery import launched_at

    since = launched_at(launchpad.launches.find_one({"launch_id": launch_id}, {"state_history": 1}) or {})
    return since is not None and (datetime.now(UTC).replace(tzinfo=None) - since).total_seconds() < BRIEF


def end_process(number: int) -> NoReturn:
    """End this process by a signal, as if nobody had handled it: FireWorks' rocket would go on to the next firework."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def ignore_signals() -> None:
    """Let nothing but SIGKILL end this process: what is left to do takes moments."""
    for number in DEFAULTS:
        signal.signal(number, signal.SIG_IGN)
