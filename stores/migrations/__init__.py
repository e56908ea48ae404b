"""Migrations: one file per schema version, each a list of steps that can be counted, done, and done again.

``vN.py`` holds ``STEPS``: what leads from schema N-1 to N. A step counts what it has left to do and does it, one
document after the other, so that what a killed migration did stays done and the next call does the rest. This is the
only place where authoritative records are changed; what was changed is in the history of the ``schema`` document.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stores.connection import Connection


@dataclass(frozen=True)
class Step:
    """One change of a schema.

    Attributes
    ----------
    name
        Short, unique in its version.
    text
        What it changes, for who reads the plan.
    pending
        Connection -> how many documents (or indexes) it has left to change; it writes nothing.
    run
        Connection -> a record of each change as it is made, for the history; each is durable when it is yielded.
    """

    name: str
    text: str
    pending: Callable[[Connection], int]
    run: Callable[[Connection], Iterator[dict[str, Any]]]


@dataclass(frozen=True)
class Planned:
    """A step, the version it leads to, and how much it has left to do."""

    version: int
    step: Step
    count: int


def steps_to(version: int) -> tuple[Step, ...]:
    """Return the steps that lead to a schema version from the one before."""
    steps: tuple[Step, ...] = importlib.import_module(f"stores.migrations.v{version}").STEPS
    return steps


def plan(connection: Connection, start: int, end: int) -> list[Planned]:
    """Return the steps from schema ``start`` to ``end`` in their order, with counts; nothing is written."""
    return [
        Planned(version, step, step.pending(connection))
        for version in range(start + 1, end + 1)
        for step in steps_to(version)
    ]
