"""Of many workers one computes each result, and a dead one holds it only for its lease."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from stores import claims as module
from stores.claims import LEASE_VARIABLE, Claims, lease_seconds, result_key
from stores.documents import Claim
from stores.provenance import provenance
from stores.records import insert_calculations
from stores.workers import is_dead, this_worker

if TYPE_CHECKING:
    from stores.connection import Connection

ELSEWHERE = {"host": "node7", "pid": 1, "machine": "another"}


def worker(connection: Connection, *, elsewhere: bool = True, **options: Any) -> Claims:
    made = Claims(connection=connection, **options)
    if elsewhere:
        made.worker = dict(ELSEWHERE)
    return made


@pytest.fixture
def two(wire_connection: Connection) -> tuple[Claims, Claims]:
    return worker(wire_connection, lease=60), worker(wire_connection, lease=60)


def calculations(ids: list[str]) -> None:
    made = provenance(command="test")
    fields = {"kind": "elastic", "method": "mlip", "protocol_id": "p", "state": "completed", "provenance": made}
    insert_calculations([{"structure_id": i, "results": {"bulk_modulus_vrh": 1.0}, **fields} for i in ids])


def queue(connection: Connection, count: int, campaign: str = "a") -> None:
    connection.db["screening_queue"].insert_many(
        [
            {
                "campaign": campaign, "round": 0, "stage": "mlip", "candidate_id": f"c-{i:03}",
                "structure_id": f"s-{i:03}", "priority": float(i % 7),
            }
            for i in range(count)
        ]
    )  # fmt: skip


def test_who_comes_first_has_it_until_it_is_released(connection: Connection) -> None:
    first, second = Claims(), Claims()  # of one process: neither is dead for the other
    assert first.claim(["x", "y", "x"]) == ["x", "y"]
    assert second.claim(["y", "z"]) == ["z"]
    assert first.claim(["x"]) == ["x"]  # mine already
    second.release(["x"])  # not its own
    assert second.claim(["x"]) == []
    first.release(["x"])
    assert second.claim(["x"]) == ["x"]
    assert first.held == {"y"}
    assert connection.db["claims"].index_information()["key_1"]["unique"]


def test_a_claim_says_who_when_and_what_for(connection: Connection) -> None:
    with Claims(campaign="a", stage="mlip", lease=60) as claims:
        claims.claim([result_key("s-1", "elastic", "p-1")])
        found = Claim.objects.get(key="s-1/elastic/p-1")
        assert (found.campaign, found.stage, found.worker["pid"]) == ("a", "mlip", os.getpid())
        assert found.expires_at - found.claimed_at == timedelta(seconds=60)
    assert Claim.objects.count() == 0


@pytest.mark.wire
def test_one_of_many_wins_each_key(wire_connection: Connection) -> None:
    keys = [f"k-{i}" for i in range(60)]
    workers = [worker(wire_connection) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda w: w.claim(keys), workers))
    assert sorted(key for share in won for key in share) == sorted(keys)


@pytest.mark.wire
def test_a_dead_worker_holds_its_claim_for_its_lease_only(wire_connection: Connection) -> None:
    dead = worker(wire_connection, lease=1.0)
    dead.claim(["x"])
    others = [worker(wire_connection) for _ in range(4)]
    assert [other.claim(["x"]) for other in others] == [[]] * 4
    time.sleep(1.2)
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda w: w.claim(["x"]), others))
    assert sorted(won) == [[], [], [], ["x"]]  # one takes it over
    assert dead.renew() == ["x"]  # what it held is lost, and it is told
    assert dead.held == frozenset()
    dead.release(["x"])
    assert wire_connection.db["claims"].count_documents({"key": "x"}) == 1


@pytest.mark.wire
def test_a_claim_is_renewed_while_its_holder_works(wire_connection: Connection) -> None:
    with worker(wire_connection, lease=0.9) as busy:
        busy.claim(["x"])
        other = worker(wire_connection)
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            assert other.claim(["x"]) == []
            time.sleep(0.1)
    assert other.claim(["x"]) == ["x"]


def test_a_claim_is_renewed_soon_after_an_outage(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others take what is past its lease for left behind as soon as the server is back."""
    from pymongo.errors import AutoReconnect

    tries: list[float] = []

    def renew() -> list[str]:
        tries.append(time.monotonic())
        if len(tries) < 5:
            raise AutoReconnect("away")
        return []

    monkeypatch.setattr(module, "RENEW_AGAIN", 0.01)
    usual = 0.4
    with worker(connection, lease=module.RENEWALS * usual) as claims:
        monkeypatch.setattr(claims, "renew", renew)
        while len(tries) < 6:
            time.sleep(0.01)
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert sum(gaps[:4]) < usual <= gaps[4]


@pytest.mark.wire
def test_the_servers_clock_counts(wire_connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead(datetime):
        """The clock of a worker that is a day ahead."""

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=1)

    first, second = worker(wire_connection), worker(wire_connection)
    assert first.claim(["x"]) == ["x"]
    monkeypatch.setattr("stores.connection.datetime", Ahead)
    assert second.claim(["x", "y"]) == ["y"]
    made = wire_connection.db["claims"].find_one({"key": "y"})["claimed_at"]
    assert abs(made - datetime.now(UTC).replace(tzinfo=None)) < timedelta(hours=1)


def test_a_dead_process_of_this_machine_holds_nothing(connection: Connection) -> None:
    dead, alive = Claims(), Claims()
    dead.worker = this_worker() | {"pid": 2**22 + 1}  # above every process id of Linux
    dead.claim(["x"])
    assert is_dead(dead.worker)
    assert not is_dead(alive.worker)
    assert not is_dead(ELSEWHERE)
    assert alive.claim(["x"]) == ["x"]


def test_the_embedded_database_has_one_writer(embedded_connection: Connection) -> None:
    before = worker(embedded_connection)  # an earlier process, killed
    before.claim(["x"])
    assert Claims().claim(["x"]) == ["x"]


def test_takes_the_best_that_nobody_holds_and_that_lacks_a_result(connection: Connection) -> None:
    queue(connection, 130)
    first, second = Claims(campaign="a"), Claims(campaign="a")
    calculations([f"s-{i:03}" for i in range(6, 130, 7)][:3])  # of the highest priority
    stage: dict[str, Any] = {"kind": "elastic", "protocol_id": "p", "round": 0}
    mine = first.take("mlip", 20, **stage)
    assert [i["priority"] for i in mine] == sorted((i["priority"] for i in mine), reverse=True)
    assert not {i["structure_id"] for i in mine} & {"s-006", "s-013", "s-020"}
    assert set(first.held) == {i["key"] for i in mine}
    rest = second.take("mlip", 1000, **stage)
    assert len(mine) + len(rest) == 127
    assert {i["key"] for i in mine}.isdisjoint(i["key"] for i in rest)
    assert first.take("mlip", 1, **stage) == []
    assert first.take("dft", 1, **stage) == []


def test_a_result_between_the_look_and_the_claim_is_not_computed_again(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(connection, 3)
    slow, fast = Claims(campaign="a"), Claims(campaign="a")
    real = slow.claim

    def claim(keys: list[str]) -> list[str]:
        if fast.claim(["s-002/elastic/p"]):
            calculations(["s-002"])
            fast.release(["s-002/elastic/p"])
        return real(keys)

    monkeypatch.setattr(slow, "claim", claim)
    taken = slow.take("mlip", 3, kind="elastic", protocol_id="p")
    assert [i["structure_id"] for i in taken] == ["s-001", "s-000"]
    assert slow.held == {"s-001/elastic/p", "s-000/elastic/p"}


@pytest.mark.wire
def test_shares_end_when_everything_has_a_result(two: tuple[Claims, Claims], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.02, 0.05))
    done: list[str] = []
    lock = threading.Lock()

    def work(claims: Claims) -> None:
        items = [f"i-{n}" for n in range(40)]
        for share in claims.shares(items, key=str, lacking=lambda some: [i for i in some if i not in done], limit=3):
            time.sleep(0.01)
            with lock:
                done.extend(share)
        assert set(done) == set(items)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work, claims) for claims in two]:
            future.result()
    assert len(done) == 40


@pytest.mark.wire
def test_shares_take_over_what_a_dead_worker_leaves(
    wire_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.05, 0.2))
    worker(wire_connection, lease=1.0).claim(["b"])
    seen = [(share, time.monotonic()) for share in worker(wire_connection).shares(["a", "b"], key=str, lacking=list)]
    assert [share for share, _ in seen] == [["a"], ["b"]]  # each once, though no result came of them
    assert seen[1][1] - seen[0][1] > 0.5
    assert wire_connection.db["claims"].count_documents({}) == 0


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_lease_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, text)
    with pytest.raises(ValueError, match=f"{LEASE_VARIABLE} is '{text}'"):
        lease_seconds()


def test_the_lease_is_configurable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lease_seconds() == module.LEASE
    monkeypatch.setenv(LEASE_VARIABLE, "12.5")
    assert lease_seconds() == 12.5


@pytest.mark.wire
def test_what_cannot_be_given_back_in_an_outage_is_given_back_later(
    wire_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pymongo.errors import AutoReconnect

    def away(*_: Any, **__: Any) -> None:
        raise AutoReconnect("gone")

    with Claims(lease=60) as claims:
        claims.claim(["x", "y"])
        with monkeypatch.context() as patch:
            patch.setattr(claims._collection, "delete_many", away)
            claims.release(["x"])
        assert claims.held == {"x", "y"}  # until it can be given back
    assert wire_connection.db["claims"].count_documents({}) == 0

    with Claims(lease=60) as open_still:
        open_still.claim(["z"])
        assert Claims().claim(["z"]) == []


@pytest.mark.wire
def test_who_ended_in_an_outage_does_not_keep_its_process_waiting(
    wire_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pymongo.errors import AutoReconnect

    def away(*_: Any, **__: Any) -> None:
        raise AutoReconnect("gone")

    with Claims(lease=60) as claims:
        claims.claim(["x"])
        monkeypatch.setattr(claims._collection, "delete_many", away)
    other = worker(wire_connection)
    assert wire_connection.db["claims"].count_documents({}) == 1
    assert other.claim(["x"]) == ["x"]
