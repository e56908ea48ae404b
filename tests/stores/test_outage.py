"""The server goes away in the middle of work, or its answers get lost: everyone waits, nothing is lost or doubled."""

from __future__ import annotations

import random
import signal
import socket
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pymongo import MongoClient, ReadPreference
from pymongo.collection import Collection
from pymongo.errors import AutoReconnect, BulkWriteError, NotPrimaryError, OperationFailure, ServerSelectionTimeoutError

from inv_design.testing import WireServer
from stores import journal, outage
from stores.claims import Claims
from stores.connection import Connection, connect
from stores.outage import PATIENCE_VARIABLE, patience, patiently, until_done
from stores.provenance import provenance
from stores.records import insert_documents, insert_predictions

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

WORKER = Path(__file__).with_name("one_of_many.py")


class CuttingProxy:
    """Passes on what clients and server say, and cuts a connection after a request of which the client gets no answer.

    Parameters
    ----------
    server
        Port of the server.
    chance
        Of a request to be cut off; the clients' look-outs for the server (isMaster) are let through.
    """

    def __init__(self, server: int, chance: float) -> None:
        self.server, self.chance = server, chance
        self.cuts = 0
        self.random = random.Random(5)
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Pass one request after the other, whole, each with its answer."""
        with client, socket.create_connection(("127.0.0.1", self.server)) as server:
            try:
                while request := self._message(client):
                    server.sendall(request)
                    answer = self._message(server)  # the server has done it
                    if b"ismaster" not in request.lower() and self._cut():
                        return
                    client.sendall(answer)
            except OSError:
                return

    def _cut(self) -> bool:
        with self.lock:
            chosen = self.random.random() < self.chance
            self.cuts += chosen
            return chosen

    @staticmethod
    def _message(source: socket.socket) -> bytes:
        message = b""
        size = 4
        while len(message) < size:
            part = source.recv(65536 if size > 4 else 4 - len(message))
            if not part:
                return b""
            message += part
            if len(message) >= 4:
                size = int.from_bytes(message[:4], "little")
        return message


@pytest.fixture
def proxy(wire_server: str) -> Iterator[CuttingProxy]:
    port = wire_server.rpartition(":")[2]
    if not port.isdigit():
        pytest.skip("the server of INV_DESIGN_TEST_MONGODB has no port to put a proxy before")
    made = CuttingProxy(int(port), 0.0)
    yield made
    made.close()


def through(proxy: CuttingProxy, connection: Connection) -> Connection:
    """Return a connection of a worker of its own on the same database, through the proxy."""
    client: MongoClient[dict[str, Any]] = MongoClient(f"mongodb://127.0.0.1:{proxy.port}", retryWrites=False)
    uri = f"mongodb://127.0.0.1:{proxy.port}"
    return Connection(client, connection.db.name, uri_redacted=uri, kind="mongodb", uri=uri)


@pytest.mark.wire
def test_answers_that_get_lost_double_nothing(  # noqa: PLR0915 (one story)
    wire_connection: Connection, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four workers of which every request may be done without an answer; 200 cuts and more."""
    from fireworks import Firework, FWorker, Workflow

    from fireworks_specs.firetasks.close import CloseTask

    monkeypatch.setattr("pymongo.common.MIN_HEARTBEAT_INTERVAL", 0.01)  # else half a second per cut
    monkeypatch.setattr(outage, "PAUSES", (0.01, 0.1))
    launchpad = wire_connection.launchpad()
    one_workflow = lambda: Workflow([Firework(CloseTask(campaign="a", round=0))])  # noqa: E731
    launchpad.bulk_add_wfs([one_workflow() for _ in range(12)])
    made = provenance(command="test")
    proxy.chance = 0.1
    stop_at = 200

    def work(number: int) -> dict[str, list[Any]]:
        own = through(proxy, wire_connection)
        pad = own.launchpad()
        claims = Claims(campaign="a", lease=60, connection=own)
        found: dict[str, list[Any]] = {"steps": [], "claimed": [], "inserted": [], "launched": [], "added": []}
        turn = 0
        while proxy.cuts < stop_at or turn < 12:
            records = [
                {"structure_id": f"s-{turn}-{i}", "property": "k", "value": 1.0, "protocol_id": "p", "provenance": made}
                for i in range(4)
            ]  # the same of every worker
            inserted = insert_documents("predictions", records, connection=own)
            found["inserted"] += [identity for identity, new in inserted if new]
            step = {"key": f"step-{turn}", "campaign": "a", "payload": {}, "provenance": made}
            found["steps"] += [i for i, new in insert_documents("steps", [step], connection=own, journal=False) if new]
            found["claimed"] += claims.claim([f"k-{turn}-{i}" for i in range(3)])
            if turn < 12:
                firework, _ = pad.checkout_fw(FWorker(name=f"w{number}"), ".")
                found["launched"] += [] if firework is None else [firework.fw_id]
                pad.bulk_add_wfs([one_workflow()])
                found["added"].append(1)
            turn += 1
        found["turns"] = [turn]
        own.client.close()
        return found

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    everything = {name: [x for found in results for x in found[name]] for name in results[0]}
    turns = max(everything["turns"])
    db = wire_connection.db
    print(f"\n{proxy.cuts} answers lost, {turns} turns")
    assert proxy.cuts >= stop_at
    # each was inserted, claimed, launched by exactly one, and whoever did it knows
    expected = {f"s-{turn}-{i}/k/p" for turn in range(turns) for i in range(4)}
    assert Counter(everything["inserted"]) == Counter(expected)
    assert {f"{p['structure_id']}/k/p" for p in db["predictions"].find()} == expected
    assert db["predictions"].count_documents({}) == len(expected)
    assert Counter(everything["steps"]) == Counter(f"step-{turn}" for turn in range(turns))
    assert Counter(everything["claimed"]) == Counter(f"k-{turn}-{i}" for turn in range(turns) for i in range(3))
    assert max(Counter(everything["launched"]).values()) == 1
    assert db["fireworks"].count_documents({}) == db["workflows"].count_documents({}) == 12 + len(everything["added"])
    ids = [f["fw_id"] for f in db["fireworks"].find()]
    assert len(ids) == len(set(ids))
    assert db["fireworks"].count_documents({"state": "RESERVED"}) == 0
    assert db["fireworks"].count_documents({"state": "RUNNING"}) == len(everything["launched"])
    assert db["workflows"].count_documents({"locked": True}) == 0
    assert journal.pending(wire_connection) == 0


# -- patience ---------------------------------------------------------------------------------------------------------


class Silent:
    """A client whose server answers after some calls."""

    class topology_description:  # noqa: N801 (pymongo's name)
        has_known_servers = False


def failing(times: int) -> Callable[[int], int]:
    def call(attempt: int) -> int:
        if attempt < times:
            raise AutoReconnect("connection closed")
        return attempt

    return call


def test_a_call_is_repeated_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "PAUSES", (0.001, 0.002))
    assert patiently(failing(5), Silent()) == 5


def test_an_outage_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "PAUSES", (0.01, 0.01))
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.2")
    client = Silent()
    began = time.monotonic()
    with pytest.raises(AutoReconnect):
        patiently(failing(10**6), client)
    assert time.monotonic() - began > 0.2
    asked: list[int] = []
    began = time.monotonic()
    with pytest.raises(ServerSelectionTimeoutError, match="has not come back"):
        patiently(asked.append, client)
    assert time.monotonic() - began < 0.1
    assert not asked
    client.topology_description.has_known_servers = True
    try:
        assert patiently(failing(0), client) == 0
    finally:
        client.topology_description.has_known_servers = False


def test_another_error_is_none_of_an_outage() -> None:
    def wrong(_: int) -> None:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        patiently(wrong, Silent())


def test_an_error_of_the_server_ends_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "PAUSES", (0.001, 0.002))
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.1")
    client = Silent()

    def refused(attempt: int) -> None:
        raise AutoReconnect("closed") if attempt == 0 else OperationFailure("no")

    with pytest.raises(OperationFailure):
        patiently(refused, client)
    time.sleep(0.15)
    assert patiently(failing(2), client) == 2  # an outage of its own


@pytest.mark.parametrize("text", ["long", "-1", "nan"])
def test_patience_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, text)
    with pytest.raises(ValueError, match=f"{PATIENCE_VARIABLE} is '{text}'"):
        patience()


@pytest.mark.wire
def test_work_that_was_cut_off_goes_on(wire_connection: Connection) -> None:
    done: list[int] = []

    def work() -> int:
        done.append(1)
        if len(done) < 3:
            raise AutoReconnect("cut off")
        return len(done)

    assert until_done(work, wire_connection.client) == 3

    def never() -> None:
        raise AutoReconnect("cut off")

    with pytest.raises(AutoReconnect):
        until_done(never, wire_connection.client, attempts=2)


@pytest.mark.wire
def test_a_write_that_may_not_last_is_said_again(wire_connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Collection.insert_many
    attempts: list[int] = []

    def insert_many(*arguments: Any, **options: Any) -> Any:
        attempts.append(1)
        if len(attempts) == 1:
            concern = {"code": 189, "errmsg": "PrimarySteppedDown"}
            raise BulkWriteError({"writeErrors": [], "writeConcernErrors": [concern], "nInserted": 1})
        return real(*arguments, **options)

    monkeypatch.setattr(Collection, "insert_many", insert_many)
    assert insert_predictions(predictions(0, 2)) == [("s-0/k/p", True), ("s-1/k/p", True)]
    assert len(attempts) == 2
    assert wire_connection.db["predictions"].count_documents({}) == 2


@pytest.mark.wire
@pytest.mark.parametrize("reading", [False, True], ids=["alone", "while others read"])
def test_a_write_gives_up_where_only_reads_work(
    wire_connection: Connection, monkeypatch: pytest.MonkeyPatch, *, reading: bool
) -> None:
    def find_one_and_update(*_: Any, **__: Any) -> None:
        if reading:
            wire_connection.db["other"].find_one({})
        raise NotPrimaryError("no primary")

    monkeypatch.setattr(Collection, "find_one_and_update", find_one_and_update)
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(wire_connection.db["claims"].find_one_and_update, {"a": 1}, {"$set": {"b": 1}})
        try:
            with pytest.raises(NotPrimaryError):
                call.result(timeout=10)
        finally:
            monkeypatch.undo()


@pytest.mark.wire
def test_who_writes_reads_from_the_primary(wire_connection: Connection) -> None:
    uri = f"{wire_connection.given[0]}?readPreference=secondaryPreferred"  # type: ignore[index]
    with connect(uri, alias="writing") as writing, connect(uri, alias="reading", read_only=True) as reading:
        assert writing.db["claims"].read_preference == ReadPreference.PRIMARY
        assert reading.db["claims"].read_preference == ReadPreference.SECONDARY_PREFERRED


# -- a server that is stopped -----------------------------------------------------------------------------------------


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WireServer]:
    monkeypatch.setenv(journal.FOLDER_VARIABLE, str(tmp_path / "journal"))
    server = WireServer(tmp_path)
    server.start()
    yield server
    server.close()


@pytest.fixture
def own_connection(own_server: WireServer) -> Iterator[Connection]:
    connection = connect(f"{own_server.uri}/lab_{uuid.uuid4().hex[:8]}")
    yield connection
    connection.close()


def predictions(first: int, count: int) -> list[dict[str, Any]]:
    made = provenance(command="test")
    return [
        {"structure_id": f"s-{i}", "property": "k", "value": 1.0, "protocol_id": "p", "provenance": made}
        for i in range(first, first + count)
    ]


@pytest.mark.wire
def test_results_of_a_long_outage_go_to_the_journal_and_are_delivered(
    own_server: WireServer, own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "1.5")
    monkeypatch.setattr(own_connection.client._topology._settings, "_server_selection_timeout", 0.5)
    insert_predictions(predictions(0, 5))
    own_server.stop()
    began = time.monotonic()
    insert_predictions(predictions(5, 5))
    waited = time.monotonic() - began
    assert waited > 1.5
    insert_predictions(predictions(10, 5))  # it was waited for once
    assert time.monotonic() - began - waited < 1.0
    assert journal.pending() == 10
    own_server.start()
    assert outage.wait_for_server(own_connection.client)
    insert_predictions(predictions(15, 1))  # the same process delivers with its next result
    assert own_connection.db["predictions"].count_documents({}) == 16
    assert journal.pending() == 0


@pytest.mark.wire
def test_the_next_process_delivers_the_journal(
    own_server: WireServer, own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{own_server.uri}/{own_connection.db.name}"
    journal.keep("predictions", predictions(0, 3))
    own_connection.close()
    with connect(uri) as again:
        assert again.db["predictions"].count_documents({}) == 3
        assert journal.pending() == 0


@pytest.mark.wire
def test_what_a_long_outage_left_in_the_journal_is_not_computed_again(
    own_server: WireServer, own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "1.5")
    monkeypatch.setattr(own_connection.client._topology._settings, "_server_selection_timeout", 0.5)
    computed: list[str] = []

    def lacking(ids: list[str]) -> list[str]:
        known = own_connection.db["predictions"].distinct("structure_id", {"structure_id": {"$in": ids}})
        return [i for i in ids if i not in known]

    def work() -> None:
        with Claims(lease=600) as claims:
            for share in claims.shares(["s-0", "s-1"], key=str, lacking=lacking):
                for identity in share:
                    if not computed:
                        own_server.stop()
                        threading.Timer(3, own_server.start).start()
                    computed.append(identity)
                    insert_predictions(predictions(int(identity[2:]), 1))
                    monkeypatch.setenv(PATIENCE_VARIABLE, "60")  # to begin anew
                    claims.release([identity])

    until_done(work, own_connection.client)
    assert computed == ["s-0", "s-1"]
    assert lacking(["s-0", "s-1"]) == []
    assert journal.pending() == 0


def suspend(server: WireServer, seconds: float) -> None:
    """Stop the server's process as it is, with requests half done, and let it go on."""
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    server.process.send_signal(signal.SIGCONT)


def restart(server: WireServer, seconds: float) -> None:
    """Stop the server, which closes all connections, and start it on the same port with the same data."""
    server.stop()
    time.sleep(seconds)
    server.start()


@pytest.mark.slow
@pytest.mark.wire
@pytest.mark.parametrize("interrupt", [suspend, restart])
def test_twenty_seconds_without_a_server_in_the_middle_of_work(
    own_server: WireServer,
    own_connection: Connection,
    tmp_path: Path,
    interrupt: Callable[[WireServer, float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from builders.run import build_campaign

    sys.path.insert(0, str(WORKER.parent))
    try:
        import test_many_writers as many
    finally:
        sys.path.pop(0)
    count = 120
    monkeypatch.setenv(PATIENCE_VARIABLE, "240")  # on a busy machine the server needs a minute to start
    many.register(own_connection, count)
    uri = f"{own_server.uri}/{own_connection.db.name}"
    workers: list[subprocess.Popen[bytes]] = [many.start(uri, n, count, tmp_path, 120.0) for n in range(4)]
    began = time.monotonic()
    try:
        many.wait_until(tmp_path, lambda n: n > 0.5 * count, timeout=300)
        before = time.monotonic()
        interrupt(own_server, 20.0)
        away = time.monotonic() - before
        noted = sum(len(lines) for lines in many.ledgers(tmp_path).values())
        for number, worker in enumerate(workers):
            assert worker.wait(timeout=600) == 0, (tmp_path / f"log-{number}").read_text()[-3000:]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    times = Counter(key for lines in many.ledgers(tmp_path).values() for key, _ in lines)
    assert len(times) > noted  # they went on
    assert not [key for key, n in times.items() if n > 1]
    build_campaign(many.one.NAME)
    many.check_doubles(own_connection)
    counts = many.check_results(own_connection, count)
    assert many.derived(own_connection) == many.from_scratch(own_connection)
    assert not list(tmp_path.glob("journal-*/**/rejected.jsonl"))
    assert not [path for path in tmp_path.glob("journal-*/**/records.jsonl") if path.stat().st_size]
    assert own_connection.db["claims"].count_documents({}) == 0
    waiting = sum("waiting for it" in (tmp_path / f"log-{n}").read_text() for n in range(4))
    print(
        f"\n{interrupt.__name__}: away for {away:.1f} s at computation {noted} of {len(times)}; {waiting} of 4 workers "
        f"saw it; {time.monotonic() - began:.1f} s in all; {counts}"
    )
