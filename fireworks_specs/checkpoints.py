"""Checkpoints of firetasks: in the campaign's database, guarded by a claim, at safe points where a worker may stop."""

from __future__ import annotations

import inspect
import logging
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from fireworks_specs.preemption import is_asked_to_stop, safe_points, stop_here
from inv_design.checkpoint import Checkpoint, State
from inv_design.mechanics.answers import history_of, history_state
from inv_design.mechanics.lockstep import Memory, remembering
from stores import checkpoints
from stores.seconds import seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from inv_design.mechanics.lockstep import History
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
    return seconds_of(VARIABLE, EVERY, "seconds, such as 30, or 0 to save at every safe point")


class _Keeper:
    """When to save under which claims, and what to do when that fails."""

    def __init__(self, identity: str, claims: Claims | None = None) -> None:
        self.identity, self.claims = identity, claims
        self.every = checkpoint_seconds()
        self.pause = self.every
        self.saved_at = time.monotonic()
        self.failed = False

    def is_due(self) -> bool:
        """Return whether the last checkpoint is old, or the worker must stop."""
        return is_asked_to_stop() or time.monotonic() - self.saved_at >= self.pause

    def save(self, states: Mapping[str, State]) -> None:
        """Save states by their keys, as far as they are claimed; what cannot be saved does not stop the computation."""
        began = time.monotonic()
        for key, state in states.items():
            if self.failed or (self.claims is not None and key not in self.claims.held):
                continue
            try:
                checkpoints.save(key, self.identity, state.tensors, state.values)
            except Exception as error:
                self.failed = isinstance(error, ValueError)  # it is too large, and will be
                LOG.warning("%s: no checkpoint was saved: %s", key, str(error).splitlines()[0])
                break
            LOG.info("%s: saved%s", key, _where(state.values))
        self.saved_at = time.monotonic()
        self.pause = max(self.every, (self.saved_at - began) / SHARE if self.every else 0.0)

    def load(self, key: str) -> State | None:
        """Return the last state of a key."""
        found = checkpoints.load(key, self.identity)
        if found is None:
            return None
        LOG.warning("%s goes on from its checkpoint%s", key, _where(found[1]))
        return State(*found)


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
        self.key = key
        self._keeper = _Keeper(identity, claims)

    def resume(self) -> State | None:
        """Return the last state that was saved."""
        return self._keeper.load(self.key)

    def offer(self, state: Callable[[], State]) -> None:
        """Save the state if the last one is old, or the worker must stop; raise ``Preempted`` then."""
        if self._keeper.is_due():
            self._keeper.save({self.key: state()})
        stop_here()


class StoredAnswers(Memory):
    """What the crystals under way were answered, in the database; made by :func:`answers_kept`.

    Parameters
    ----------
    keys
        Of the claims of the crystals' results, by index.
    """

    def __init__(self, keys: Sequence[str], identity: str, claims: Claims | None = None) -> None:
        self.keys = keys
        self._keeper = _Keeper(identity, claims)
        self._saved = checkpoints.saved_keys(keys)
        self._here = False
        self.safe_points = ExitStack()

    def recall(self, index: int) -> History:
        """Return what a crystal was answered before the checkpoint."""
        if not self._here:
            self._here = True  # what other processes compute never gets here, and reaches no safe point of this one
            self.safe_points.enter_context(safe_points())
        key = self.keys[index]
        state = self._keeper.load(key) if key in self._saved else None
        return [] if state is None else history_of(state)

    def offer(self, histories: Mapping[int, History]) -> None:
        """Save what all crystals under way were answered, as :meth:`StoredCheckpoint.offer`."""
        if self._keeper.is_due():
            states = {self.keys[index]: history_state(history) for index, history in histories.items() if history}
            self._saved |= states.keys()
            self._keeper.save(states)
        stop_here()

    def forget(self, index: int) -> None:
        """Delete the answers of a crystal whose result is there."""
        if self.keys[index] in self._saved:
            checkpoints.discard([self.keys[index]])


@contextmanager
def answers_kept(keys: Sequence[str], identity: str, claims: Claims | None = None) -> Iterator[StoredAnswers]:
    """Keep what the calculator answers to the crystals that the block computes in this process, by their claims' keys.

    Inside of the block a worker stops between two passes of the calculator, at once if other processes compute. Say
    which results are there by :meth:`StoredAnswers.forget`.
    """
    answers = StoredAnswers(keys, identity, claims)
    with answers.safe_points, remembering(answers):
        yield answers


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
    if "atoms" in flat:
        known.append(f"answers {len(flat['atoms'])}")
    return f" ({', '.join(known)})" if known else ""
