"""``kill -9`` at random points of a writing process: every acknowledged operation is there, and no half one is."""

import os
import random
import signal
import struct
import time

import bson
import pytest

from stores.embedded import EmbeddedClient

KEYS = 400
SEED = 20260101


def operation(number):
    """Return the operation of a number: (kind, keys, value)."""
    random_number = random.Random(SEED + number)
    kind = random_number.choice(["insert", "insert", "insert_many", "update", "find_and_update", "upsert", "delete"])
    count = 5 if kind == "insert_many" else 1
    return kind, random_number.sample(range(KEYS), count), random_number.random()


def record(key, value, number):
    return {"_id": key, "key": f"k{key}", "value": value, "by": number, "tags": [key % 7, "x"], "text": "y" * 300}


def apply_to_store(things, number):
    kind, keys, value = operation(number)
    if kind in ("insert", "insert_many"):
        absent = [key for key in keys if things.find_one({"key": f"k{key}"}) is None]
        if len(absent) == 1:
            things.insert_one(record(absent[0], value, number))
        elif absent:
            things.insert_many([record(key, value, number) for key in absent])
    elif kind == "update":
        things.update_one({"key": f"k{keys[0]}"}, {"$set": {"value": value, "by": number}})
    elif kind == "find_and_update":
        things.find_one_and_update(
            {"key": f"k{keys[0]}"}, {"$set": {"value": value, "by": number, "tags": [number % 7]}}
        )
    elif kind == "upsert":
        things.replace_one({"_id": keys[0]}, record(keys[0], value, number), upsert=True)
    else:
        things.delete_one({"key": f"k{keys[0]}"})


def apply_to_model(model, number):
    kind, keys, value = operation(number)
    model = dict(model)
    for key in keys:
        if (kind in ("insert", "insert_many") and key not in model) or kind == "upsert":
            model[key] = record(key, value, number)
        elif kind in ("update", "find_and_update") and key in model:
            model[key] = {**model[key], "value": value, "by": number}
            if kind == "find_and_update":
                model[key]["tags"] = [number % 7]
        elif kind == "delete":
            model.pop(key, None)
    return model


def write_until_killed(path, start, acknowledge):
    """Be the writing process: do the operations from ``start`` on, and say so of each."""
    client = EmbeddedClient(path)
    things = client["d"]["things"]
    things.create_index("key", unique=True)
    things.create_index([("tags", 1), ("value", 1)])
    number = start
    while True:
        apply_to_store(things, number)
        os.write(acknowledge, struct.pack(">Q", number))
        number += 1


def kill_a_writer(path, start, acknowledgements, pause):
    """Return the last operation that a writer acknowledged before it was killed; ``start - 1`` if none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            write_until_killed(path, start, writing)
        finally:
            os._exit(1)
    os.close(writing)
    received = b""
    while len(received) < 8 * acknowledgements:
        part = os.read(reading, 8 * acknowledgements - len(received))
        assert part, "the writer ended by itself"
        received += part
    time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    while part := os.read(reading, 65536):
        received += part
    os.close(reading)
    numbers = [number for (number,) in struct.iter_unpack(">Q", received[: len(received) // 8 * 8])]
    assert numbers == list(range(start, start + len(numbers)))
    return start + len(numbers) - 1


def contents(path):
    """Return what is in the file, after seeing that SQLite and every index agree with it."""
    client = EmbeddedClient(path)
    sqlite = client.server.sqlite
    assert sqlite.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    things = client["d"]["things"]
    found = {document["_id"]: document for document in things.find()}
    store = things._store
    if store.is_created:
        rows = sqlite.execute(f"SELECT seq, doc FROM documents_{store._number}").fetchall()
        expected = {
            (key, seq)
            for seq, blob in rows
            for index in store._ordered.values()
            for key in index.entries(bson.decode(blob))[0]
        }
        assert set(sqlite.execute(f"SELECT key, seq FROM entries_{store._number}")) == expected
    client.close()
    return found


@pytest.mark.slow
def test_kill_9_at_100_random_points_loses_nothing_acknowledged(tmp_path):
    path = tmp_path / "killed.sqlite"
    moments = random.Random(SEED)
    model, following, unacknowledged = {}, 0, 0
    for _ in range(100):
        acknowledgements, pause = moments.randrange(40), moments.uniform(0, 0.02)
        last = kill_a_writer(path, following, acknowledgements, pause)
        while following <= last:
            model = apply_to_model(model, following)
            following += 1
        found = contents(path)
        if found != model:  # the operation that was under way may be there too, as a whole
            model = apply_to_model(model, following)
            following += 1
            unacknowledged += 1
            assert found == model
    print(f"100 kills, {following} operations, {unacknowledged} of them done and not acknowledged")
    assert following > 1000
