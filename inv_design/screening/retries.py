"""Failures of calculations: their kinds, which of them may pass, and whether another attempt is due."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PASSING = ("killed", "out_of_memory", "out_of_time", "truncated_output", "not_available")
"""Failures of the place, which another attempt may not meet: a kill, a full memory or disk, a limit of time."""

LASTING = ("electronic_nonconvergence", "ionic_nonconvergence", "unphysical", "error")
"""Failures of the crystal or its settings, which another attempt would meet again."""

FAILURES = (*PASSING, *LASTING)

ERRORS = (
    (
        r"OutOfMemory|MemoryError|bad_alloc|out of memory|cannot allocate|insufficient virtual|oom.?kill"
        r"|exceed\w* (\w+ )?memory limit|mem \w+ exceeded limit",
        "out_of_memory",
    ),
    (r"due to time limit|walltime .*exceeded", "out_of_time"),
    (r"worker process died|BrokenProcessPool", "killed"),
    (
        r"no space left|disk quota exceeded|stale (NFS )?file handle|input/output error|remote i/o error"
        r"|read-only file system|transport endpoint|permission denied",
        "not_available",
    ),
)
"""Expression that the text of an error, or a log, matches in any case -> the reason; the first one counts."""


def reason_of(error: str | None) -> str:
    """Return what kind of failure an error's text tells of; ``error`` where it tells nothing."""
    return next((reason for pattern, reason in ERRORS if re.search(pattern, error or "", re.IGNORECASE)), "error")


def may_pass(calculation: Mapping[str, Any]) -> bool:
    """Return whether a calculation failed of something that another attempt may not meet; without a reason: no."""
    return calculation.get("state") == "failed" and calculation.get("reason") in PASSING


def attempt_of(calculation: Mapping[str, Any]) -> int:
    """Return which attempt a calculation is, from 1; the first one does not say."""
    return int(calculation.get("attempt") or 1)


def retry_due(calculations: Iterable[Mapping[str, Any]], retries: int) -> bool:
    """Return whether attempts at one result, all of the same crystal and protocol, ask for another one.

    None of them is completed, the last one failed of something that may pass, and there were at most ``retries``.
    """
    attempts = sorted(calculations, key=attempt_of)
    if not attempts or any(a.get("state") == "completed" for a in attempts):
        return False
    return len(attempts) <= retries and may_pass(attempts[-1])
