"""Progress of firetasks: they report, whoever runs them shows; a worker without a terminal logs plain lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

Reporter = Callable[[str, int, int], None]
"""Called with (what is going on, units done, units in all)."""

logger = logging.getLogger("inv_design")
_LOG_EVERY_S = 30.0
_last_logged = 0.0


def _log(text: str, done: int, total: int) -> None:
    global _last_logged  # noqa: PLW0603
    now = time.monotonic()
    if done >= total or now - _last_logged > _LOG_EVERY_S:
        _last_logged = now
        logger.info("%s: %d of %d", text, done, total)


_reporter: Reporter = _log


def set_reporter(reporter: Reporter | None) -> None:
    """Send reports to ``reporter``; ``None`` goes back to log lines."""
    global _reporter  # noqa: PLW0603
    _reporter = reporter or _log


def report(text: str, done: int, total: int) -> None:
    """Report that ``done`` of ``total`` units of ``text`` are finished."""
    _reporter(text, done, total)
