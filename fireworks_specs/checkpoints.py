"""Checkpoints of firetasks: in the campaign's database, guarded by a claim, at safe points where a worker may stop."""

from __future__ import annotations

import inspect
import logging
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fireworks_specs.preemption import is_asked_to_stop, safe_points, stop_here
from inv_design.checkpoint import Checkpoint, State
from stores import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stores.claims import Claims

LOG = logging.getLogger(__name__)

VARIABLE = "INV_DESIGN_CHECKPOINT"
EVERY = 30.0
"""Seconds between two checkpoints of one computation."""
SHARE = 0.02
"""Of the time that saving may take: where it is slow, it is done less often."""


def checkpoint_seconds() -> float:
    """Return the seconds between two checkpoints: ``$INV_DESIGN_CHECKPOINT``, else :data:`EVERY`; 0 saves always.

    Raises
    ------
    ValueError
        If the variable is no number of seconds.
    """
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text) if text else EVERY
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise ValueError(f"{VARIABLE} is {text!r}; give seconds, such as 30, or 0 to save at every safe point")
    return seconds


class StoredCheckpoint(Checkpoint):
    """The checkpoint of one computation, in the database; made by :func:`checkpointed`.

    Parameters
    ----------
    key
        Of the claim of the result that is computed.
    identity
        Everything that determines the result: another computation does not go on from here.
    claims
        Whose worker saves, as long as it holds ``key``; ``None`` saves always.
    """

    def __init__(self, key: str, identity: str, claims: Claims | None = None) -> None:
        self.key, self.identity, self.claims = key, identity, claims
        self.every = checkpoint_seconds()
        self.pause = self.every
        self.saved_at = time.monotonic()
        self.failed = False

    def resume(self) -> State | None:
        """Return the last state that was saved."""
        found = checkpoints.load(self.key, self.identity)
        if found is None:
            return None
        LOG.warning("%s goes on from its checkpoint%s", self.key, _where(found[1]))
        return State(*found)

    def offer(self, state: Callable[[], State]) -> None:
        """Save the state if the last one is old, or the worker must stop; raise ``Preempted`` then."""
        stop = is_asked_to_stop()
        if stop or time.monotonic() - self.saved_at >= self.pause:
            self._save(state())
            if stop:
                stop_here()

    def _save(self, state: State) -> None:
        """Save; what cannot be saved does not stop the computation."""
        if self.failed or (self.claims is not None and self.key not in self.claims.held):
            return
        began = time.monotonic()
        try:
            checkpoints.save(self.key, self.identity, state.tensors, state.values)
        except Exception as error:
            self.failed = isinstance(error, ValueError)  # it is too large, and will be
            LOG.warning("%s: no checkpoint was saved: %s", self.key, str(error).splitlines()[0])
        else:
            LOG.info("%s: saved%s", self.key, _where(state.values))
        self.saved_at = time.monotonic()
        self.pause = max(self.every, (self.saved_at - began) / SHARE if self.every else 0.0)


@contextmanager
def checkpointed(key: str, identity: str, claims: Claims | None = None) -> Iterator[StoredCheckpoint]:
    """Give the checkpoint of a computation; it is deleted at the end of a block that comes to its end.

    Inside of the block a worker stops at safe points. Insert the result at the end of the block.
    """
    with safe_points():
        yield StoredCheckpoint(key, identity, claims)
        checkpoints.discard([key])


def accepting(method: Callable[..., Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the keyword arguments that pass a checkpoint to a method, none if it does not take one.

    Predictors and generators of other packages need not know of checkpoints.
    """
    return {"checkpoint": checkpoint} if "checkpoint" in inspect.signature(method).parameters else {}


def _where(values: dict[str, Any]) -> str:
    """Return how far a state is, in words."""
    flat = values | values.get("part", {})
    known = [f"{name} {flat[name]}" for name in ("members", "phase", "epoch", "step", "done") if name in flat]
    return f" ({', '.join(known)})" if known else ""
