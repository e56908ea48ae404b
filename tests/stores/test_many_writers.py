"""Eight processes generate, claim, compute and build at once; two of them are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stores.connection import Connection

WORKER = Path(__file__).with_name("one_of_many.py")
WORKERS = 8
KILLED = (2, 5)
LEASE = 15.0
CANDIDATES = int(os.environ.get("INV_DESIGN_TEST_CANDIDATES", "2000"))
DERIVED = ("candidate_summaries", "screening_queue", "campaign_metrics")
UNIQUE = {
    "structures": ("structure_id",),
    "candidates": ("candidate_id",),
    "predictions": ("structure_id", "property", "protocol_id"),
    "calculations": ("structure_id", "kind", "protocol_id"),
    "steps": ("key",),
    "candidate_summaries": ("candidate_id",),
    "screening_queue": ("campaign", "stage", "candidate_id"),
    "campaign_metrics": ("campaign", "round"),
    "claims": ("key",),
}


def load_worker() -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("one_of_many", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


one = load_worker()


def register(connection: Connection, count: int) -> None:
    from stores.provenance import provenance
    from stores.records import insert_campaign

    config = one.config(count)
    insert_campaign(one.NAME, config.model_dump(mode="json"), targets=config.targets, provenance=provenance())
    connection.ensure_indexes()


def start(uri: str, number: int, count: int, folder: Path, lease: float = LEASE) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "INV_DESIGN_JOURNAL": str(folder / f"journal-{number}")}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(WORKER), uri, str(number), str(count), str(folder), str(lease)],
        env=environment,
        stderr=(folder / f"log-{number}").open("wb"),
        stdout=subprocess.DEVNULL,
    )


def ledgers(folder: Path) -> dict[int, list[tuple[str, float]]]:
    """Return worker -> (key, time) of what it began to compute."""
    found: dict[int, list[tuple[str, float]]] = {}
    for path in sorted(folder.glob("ledger-*")):
        lines = path.read_text().splitlines()
        found[int(path.name.split("-")[1])] = [tuple(json.loads(line)) for line in lines]
    return found


def wait_until(folder: Path, done: Any, timeout: float = 1800) -> None:
    deadline = time.monotonic() + timeout
    while not done(sum(len(lines) for lines in ledgers(folder).values())):
        assert time.monotonic() < deadline, "the workers do not get on"
        time.sleep(0.2)


def kill_at_work(worker: subprocess.Popen[bytes], ledger: Path, connection: Connection) -> None:
    """Kill a worker in the middle of a computation: of its last one there is no result."""
    for _ in range(3000):
        worker.send_signal(signal.SIGSTOP)
        lines = ledger.read_text().splitlines()
        structure_id, *_, protocol = json.loads(lines[-1])[0].split("/") if lines else ("", "")
        where = {"structure_id": structure_id, "protocol_id": protocol}
        if structure_id.startswith("s-") and not any(
            connection.db[name].count_documents(where) for name in ("predictions", "calculations")
        ):
            worker.kill()
            return
        worker.send_signal(signal.SIGCONT)
        time.sleep(0.005)
    raise AssertionError("the worker was never at work")


def plain(document: dict[str, Any]) -> str:
    """Return a derived document as text, without what says when and by whom it was built."""
    kept = {k: v for k, v in document.items() if k not in {"_id", "last_updated", "provenance"}}
    return json.dumps(kept, sort_keys=True, default=str)


def derived(connection: Connection) -> dict[str, list[str]]:
    return {name: sorted(plain(d) for d in connection.db[name].find()) for name in DERIVED}


def check_doubles(connection: Connection) -> None:
    for name, keys in UNIQUE.items():
        seen = Counter(tuple(d.get(k) for k in keys) for d in connection.db[name].find({}, dict.fromkeys(keys, 1)))
        assert not [key for key, n in seen.items() if n > 1], name


def check_results(connection: Connection, count: int) -> dict[str, int]:
    """Check that every stage of every candidate has its result, one; return how many there are."""
    db = connection.db
    structures = {c["structure_id"] for c in db["candidates"].find()}
    assert len(structures) == db["candidates"].count_documents({}) == count
    assert {p["structure_id"] for p in db["predictions"].find()} == structures
    passed = {
        stage: {s["structure_id"] for s in db["candidate_summaries"].find({f"stages.{stage}": {"$exists": True}})}
        for stage in one.STAGES
    }
    for stage, fields in one.STAGES.items():
        found = list(db["calculations"].find({"kind": fields["kind"]}))
        assert {c["structure_id"] for c in found} == passed[stage], stage
        for calculation in found:
            record = one.compute(calculation["structure_id"], stage)
            assert calculation["state"] == record["state"]
            assert calculation["results"] == record["results"]
    assert db["screening_queue"].count_documents({}) == 0
    return {"predictor": count, **{stage: len(ids) for stage, ids in passed.items()}}


FROM_SCRATCH = """
import sys
from builders.run import build_campaign
from stores.connection import connect
uri, source, name = sys.argv[1:]
fresh = connect(uri)
for collection in ("campaigns", "structures", "candidates", "predictions", "calculations"):
    fresh.db[collection].insert_many(list(fresh.client[source][collection].find()))
build_campaign(name)
"""


def from_scratch(connection: Connection) -> dict[str, list[str]]:
    """Return what a process of its own builds from the same records in a database that was never built."""
    assert connection.given is not None
    head, _, name = connection.given[0].rpartition("/")
    scratch = connection.client[f"{name}_scratch"]
    command = [sys.executable, "-W", "ignore", "-c", FROM_SCRATCH, f"{head}/{scratch.name}", name, one.NAME]
    try:
        subprocess.run(command, check=True)
        return {collection: sorted(plain(d) for d in scratch[collection].find()) for collection in DERIVED}
    finally:
        connection.client.drop_database(scratch.name)


@pytest.mark.slow
@pytest.mark.wire
def test_eight_processes_do_everything_once(wire_connection: Connection, tmp_path: Path) -> None:
    from builders.run import build_campaign

    assert wire_connection.given is not None
    uri = wire_connection.given[0]
    register(wire_connection, CANDIDATES)
    began = time.monotonic()
    workers = {n: start(uri, n, CANDIDATES, tmp_path) for n in range(WORKERS)}
    killed_at = 0.0
    try:
        chunks = -(-CANDIDATES // one.CHUNK)
        for victim, share in zip(KILLED, (0.5, 1.2), strict=True):  # one in the middle of predicting, one of computing
            wait_until(tmp_path, lambda n, share=share: n > chunks + share * CANDIDATES)
            kill_at_work(workers[victim], tmp_path / f"ledger-{victim}", wire_connection)
            killed_at = time.time()
        for number, worker in workers.items():
            code = worker.wait(timeout=3600)
            log = (tmp_path / f"log-{number}").read_text()
            assert code == (-signal.SIGKILL if number in KILLED else 0), f"worker {number}: {log[-3000:]}"
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    wall = time.monotonic() - began

    noted = ledgers(tmp_path)
    times = Counter(key for lines in noted.values() for key, _ in lines)
    of_the_killed = {key for victim in KILLED for key, _ in noted[victim]}
    again = {key for key, n in times.items() if n > 1}
    assert again <= of_the_killed, f"computed twice: {sorted(again - of_the_killed)[:5]}"
    assert all(times[key] == 2 for key in again)
    assert again, "nobody took over what the killed workers left"
    check_doubles(wire_connection)

    before = derived(wire_connection)
    build_campaign(one.NAME)
    counts = check_results(wire_connection, CANDIDATES)
    assert derived(wire_connection) == from_scratch(wire_connection)
    left = {c["worker"]["host"] for c in wire_connection.db["claims"].find()}
    assert left <= {f"node{n}" for n in KILLED}, left
    waited = max((at for n, lines in noted.items() for key, at in lines if key in again), default=killed_at) - killed_at
    print(
        f"\n{CANDIDATES} candidates, {WORKERS} processes, 2 killed: {wall:.1f} s, {CANDIDATES / wall:.1f} candidates/s,"
        f" {len(times)} computations {counts}, {len(again)} done again (the last {waited:.1f} s after the kill, lease"
        f" {LEASE:g} s), the workers' last builds were{'' if before == derived(wire_connection) else ' not'} final"
    )


@pytest.mark.wire
def test_two_processes_that_put_the_same_bytes(wire_connection: Connection) -> None:
    from stores import artifacts

    blob = bytes(range(256)) * 4000
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: artifacts.put(blob), range(16)))
    import hashlib

    digest = hashlib.sha256(blob).hexdigest()
    assert artifacts.get(digest) == blob  # there may be a file of each: any of them is the blob
    files = wire_connection.db["artifacts.files"].count_documents({})
    assert 1 <= files <= 8
    artifacts.put(blob)
    assert wire_connection.db["artifacts.files"].count_documents({}) == files


@pytest.mark.wire
def test_an_unordered_insert_says_which_were_there(wire_connection: Connection) -> None:
    """Several duplicates in one batch, of several writers: each record is inserted by exactly one of them."""
    from stores.provenance import provenance
    from stores.records import insert_predictions

    made = provenance(command="test")

    def insert(writer: int) -> list[bool]:
        order = sorted(range(300), key=lambda i: hash((writer, i)) if writer else i)
        found = insert_predictions(
            {"structure_id": f"s-{i:03}", "property": "k", "value": 1.0, "protocol_id": "p", "provenance": made}
            for i in order
        )
        by_record = dict(zip(order, (new for _, new in found), strict=True))
        return [by_record[i] for i in range(300)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(insert, range(8)))
    assert [sum(column) for column in zip(*answers, strict=True)] == [1] * 300


@pytest.mark.wire
def test_builders_that_write_the_same_documents(wire_connection: Connection) -> None:
    from builders.candidates import CandidateBuilder

    wire_connection.ensure_indexes()

    def write(writer: int) -> None:
        builder = CandidateBuilder("a")
        builder.bind(wire_connection)
        documents = [{"candidate_id": f"c-{i}", "campaign": "a", "writer": writer} for i in range(100)]
        builder.upsert(documents, "candidate_id")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert wire_connection.db["candidate_summaries"].count_documents({}) == 100


@pytest.mark.wire
def test_launchpad_ids_are_unique(wire_connection: Connection) -> None:
    from fireworks import Firework, ScriptTask, Workflow

    def add(_: int) -> None:
        launchpad = wire_connection.launchpad()
        for _ in range(5):
            launchpad.bulk_add_wfs([Workflow([Firework(ScriptTask.from_str("true"))]) for _ in range(3)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    ids = [f["fw_id"] for f in wire_connection.db["fireworks"].find()]
    assert len(ids) == len(set(ids)) == 120
