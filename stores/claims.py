"""Claims: who computes what, so that of many workers one computes each result, and a dead one only delays it.

A claim holds for a lease and is renewed while its holder works; what is past its lease anybody may take over. Leases
are told by the server's clock, so that the clocks of workers need not agree. A holder that lost its claim (it was
stopped, or cut off, for longer than its lease) may finish all the same: results are unique, the second one is dropped.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

from stores.scan import batches
from stores.seconds import seconds_of
from stores.workers import is_dead, this_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from stores.connection import Connection

LOG = logging.getLogger(__name__)

LEASE_VARIABLE = "INV_DESIGN_LEASE"
LEASE = 300.0
"""Seconds that a claim holds without being renewed."""
RENEWALS = 3
"""Renewals per lease: one may fail, and another be late."""
RENEW_AGAIN = 5.0
"""Seconds after which a renewal is tried again, at most, that failed because the database is away."""
PAUSES = (0.2, 10.0)
"""Seconds between two looks at what others hold: first, and at most."""
BATCH = 500

Item = TypeVar("Item")

_closed: set[str] = set()
"""Holders of this process that have ended and could not give back what they held."""


def lease_seconds() -> float:
    """Return how long a claim holds, in seconds: ``$INV_DESIGN_LEASE``, else :data:`LEASE`.

    Raises
    ------
    ValueError
        If the variable is no positive number.
    """
    return seconds_of(LEASE_VARIABLE, LEASE, "seconds, such as 300", zero=False)


def result_key(structure_id: str, kind: str, protocol_id: str) -> str:
    """Return the key of a result: what campaigns share, they compute once."""
    return f"{structure_id}/{kind}/{protocol_id}"


class Claims:
    """The claims of one worker; as a context manager it renews them in the background and gives them back at the end.

    Parameters
    ----------
    campaign, stage
        For whom; noted in the claims.
    lease
        Seconds that a claim holds without being renewed; :func:`lease_seconds` by default.
    connection
        The process's own by default.

    Attributes
    ----------
    holder
        Unique name of this holder.
    attempts
        Key of a result -> which attempt at it is under way, from 1, as who computes it has noted.
    """

    def __init__(
        self,
        *,
        campaign: str | None = None,
        stage: str | None = None,
        lease: float | None = None,
        connection: Connection | None = None,
    ) -> None:
        from stores.connection import current

        self.connection = connection or current()
        self.lease = lease_seconds() if lease is None else lease
        self.campaign, self.stage = campaign, stage
        self.worker = this_worker()
        self.holder = f"{self.worker['host']}:{self.worker['pid']}:{uuid.uuid4().hex}"
        self._collection = self.connection.db["claims"]
        self.attempts: dict[str, int] = {}
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._renewing: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._stop.clear()
        _closed.discard(self.holder)
        self._renewing = threading.Thread(target=self._renew_until_stopped, name="claims", daemon=True)
        self._renewing.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._renewing is not None:
            self._renewing.join(timeout=1.0)
        self.release_all()
        if self.held:
            _closed.add(self.holder)

    @property
    def held(self) -> frozenset[str]:
        """The keys that this worker holds, as far as it knows."""
        with self._lock:
            return frozenset(self._held)

    # -- one claim ----------------------------------------------------------------------------------------------------

    def claim(self, keys: Sequence[str]) -> list[str]:
        """Claim keys and return the ones that are now, or were already, this worker's.

        The rest is in the hands of others. A claim that follows a finished result succeeds: look for the result after
        claiming, or use :meth:`take` and :meth:`shares`, which do.

        Raises
        ------
        pymongo.errors.PyMongoError
            If the database is away for longer than :func:`stores.outage.patience`.
        """
        wanted = list(dict.fromkeys(keys))
        won: set[str] = set()
        for start in range(0, len(wanted), BATCH):
            batch = wanted[start : start + BATCH]
            new = self._insert(batch)
            won |= new | self._take_over([key for key in batch if key not in new])
        with self._lock:
            self._held |= won
        return [key for key in wanted if key in won]

    def renew(self) -> list[str]:
        """Extend what this worker holds by a lease from now; return the keys that others have taken over.

        A key that is lost is not held any more; its computation may go on, the second result is dropped.
        """
        keys = sorted(self.held)
        if not keys:
            return []
        expires = self.connection.now() + timedelta(seconds=self.lease)
        self._collection.update_many({"holder": self.holder}, {"$set": {"expires_at": expires}})
        still = {found["key"] for found in self._collection.find({"holder": self.holder}, {"key": 1})}
        with self._lock:  # what was released in the meantime is not lost
            lost = [key for key in keys if key in self._held and key not in still]
            self._held -= set(lost)
        for key in lost:
            LOG.warning(
                "the claim of %s went to another worker after its lease; the result that comes first counts", key
            )
        return lost

    def release(self, keys: Iterable[str]) -> None:
        """Give claims back; what others have taken over stays theirs.

        What cannot be given back, because the database is away, stays held until the next call; or ends with its lease.
        """
        from stores.outage import LOST

        given = list(keys)
        if not given:
            return
        try:
            self._collection.delete_many({"holder": self.holder, "key": {"$in": given}})
        except LOST:
            LOG.warning("%d claims of %s could not be given back: the database is away", len(given), self.holder)
        else:
            with self._lock:
                self._held -= set(given)

    def release_all(self) -> None:
        """Give everything back."""
        self.release(self.held)

    # -- many items ---------------------------------------------------------------------------------------------------

    def take(
        self, stage: str, n: int, *, kind: str, protocol_id: str, round: int | None = None, retries: int = 0
    ) -> list[dict[str, Any]]:
        """Claim and return up to ``n`` items of the screening queue, best first, that lack a result and nobody holds.

        Each is ``{"structure_id", "candidate_id", "priority", "round", "key"}``. An empty list says that everything
        that is queued has a result or is in the hands of others.

        Parameters
        ----------
        stage
            Of the queue of this worker's campaign, or of all campaigns if it has none.
        kind, protocol_id
            Of the calculation that the stage makes.
        retries
            Further attempts that the stage makes after a failure that may pass.
        """
        criteria = {"campaign": self.campaign, "stage": stage, "round": round}
        fields = {"_id": 0, "structure_id": 1, "candidate_id": 1, "priority": 1, "round": 1}
        queue = self.connection.db["screening_queue"]
        cursor = queue.find({k: v for k, v in criteria.items() if v is not None}, fields)
        best_first = cursor.sort([("priority", -1), ("candidate_id", 1)])
        taken: list[dict[str, Any]] = []
        seen: set[str] = set()
        for window in batches(best_first, max(4 * n, 50)):
            items = {item["structure_id"]: item for item in window if item["structure_id"] not in seen}
            seen |= items.keys()
            keys = {i: result_key(i, kind, protocol_id) for i in self._lacking(items, kind, protocol_id, retries)}
            busy = self._busy(keys.values())
            free = [i for i, key in keys.items() if key not in busy]
            while free and len(taken) < n:
                tried, free = free[: n - len(taken)], free[n - len(taken) :]
                won = set(self.claim([keys[i] for i in tried]))
                mine = [i for i in tried if keys[i] in won]
                left = set(self._lacking(mine, kind, protocol_id, retries))  # who held it before may have finished it
                self.release(keys[i] for i in mine if i not in left)
                taken += [{**items[i], "key": keys[i]} for i in mine if i in left]
            if len(taken) >= n:
                break
        return taken

    def shares(
        self,
        items: Sequence[Item],
        *,
        key: Callable[[Item], str],
        lacking: Callable[[list[Item]], list[Item]],
        limit: int | None = None,
    ) -> Iterator[list[Item]]:
        """Yield items to work on, until every item has a result: the next share is what nobody else is at work on.

        Where the rest is in the hands of others, it waits for their results, and takes over what they leave behind. An
        item is yielded once, also if its result could not be written; its claim is released when the next share is
        asked for, or earlier by the caller.

        Parameters
        ----------
        key
            The key of an item's result.
        lacking
            Which of the items have no result.
        limit
            Items per share.
        """
        tried: set[str] = set()
        pause = PAUSES[0]
        while left := [item for item in lacking(list(items)) if key(item) not in tried]:
            for start in range(0, len(left), limit or len(left)):
                some = left[start : start + (limit or len(left))]
                won = set(self.claim([key(item) for item in some]))
                if not won:
                    continue
                mine = lacking([item for item in some if key(item) in won])  # its holder may have finished it
                kept = {key(item) for item in mine}
                self.release(won - kept)
                if not mine:
                    continue
                tried |= kept
                pause = PAUSES[0]
                yield mine
                self.release(kept & self.held)
            if all(key(item) not in tried for item in left):  # all in the hands of others
                time.sleep(pause)
                pause = min(2 * pause, PAUSES[1], self.lease)

    # -- how ----------------------------------------------------------------------------------------------------------

    def _insert(self, keys: Sequence[str]) -> set[str]:
        """Insert claims and return those whose key nobody had: the unique index decides."""
        from pymongo.errors import BulkWriteError

        fields = self._fields()
        try:
            self._collection.insert_many([{"key": key, **fields} for key in keys], ordered=False)
        except BulkWriteError as error:
            problems = error.details["writeErrors"]
            if any(problem["code"] != 11000 for problem in problems) or error.details.get("writeConcernErrors"):
                raise
            return set(keys) - {keys[problem["index"]] for problem in problems}
        return set(keys)

    def _take_over(self, keys: Sequence[str]) -> set[str]:
        """Take over the claims that are past their lease, or whose holder is dead; return the keys that are ours."""
        if not keys:
            return set()
        won: set[str] = set()
        taken: dict[str, list[str]] = defaultdict(list)
        now = self.connection.now()
        for found in self._collection.find({"key": {"$in": list(keys)}}):
            if found["holder"] == self.holder:
                won.add(found["key"])
            elif self._is_over(found, now):
                # of several that see this, one changes the claim as it was
                as_it_was = {name: found[name] for name in ("key", "holder", "expires_at")}
                if self._collection.find_one_and_update(as_it_was, {"$set": self._fields()}) is not None:
                    taken[found["holder"]].append(found["key"])
                    won.add(found["key"])
        for holder, theirs in taken.items():
            LOG.warning("took over %d claims of %s, such as %s", len(theirs), holder, theirs[0])
        return won

    def _busy(self, keys: Iterable[str]) -> set[str]:
        """Return which keys somebody holds, this worker or another."""
        now = self.connection.now()
        found = self._collection.find({"key": {"$in": list(keys)}})
        return {c["key"] for c in found if c["holder"] == self.holder or not self._is_over(c, now)}

    def _is_over(self, claim: Mapping[str, Any], now: datetime) -> bool:
        worker = claim.get("worker") or {}
        if claim["expires_at"] <= now or claim["holder"] in _closed:
            return True
        if self.connection.kind == "embedded":  # one process writes: whoever else wrote it is gone
            return worker != self.worker
        return is_dead(worker)

    def _lacking(self, structure_ids: Iterable[str], kind: str, protocol_id: str, retries: int) -> list[str]:
        """Return the structure ids that have no calculation of this kind and protocol, or are due for a retry."""
        from stores.attempts import lacking

        return lacking(list(structure_ids), kind, protocol_id, retries=retries, connection=self.connection)

    def _fields(self) -> dict[str, Any]:
        now = self.connection.now()
        return {
            "holder": self.holder,
            "worker": self.worker,
            "campaign": self.campaign,
            "stage": self.stage,
            "claimed_at": now,
            "expires_at": now + timedelta(seconds=self.lease),
        }

    def _renew_until_stopped(self) -> None:
        from stores.outage import LOST

        usual, away = self.lease / RENEWALS, False
        while not self._stop.wait(min(RENEW_AGAIN, usual) if away else usual):
            try:
                self.renew()
            except LOST as error:  # as soon as the server is back, others take what is past its lease for left behind
                if not away:
                    LOG.warning("the claims of %s could not be renewed: %s", self.holder, type(error).__name__)
                away = True
            except Exception:  # the work goes on; it is at worst done twice
                LOG.exception("the claims of %s could not be renewed", self.holder)
            else:
                away = False
