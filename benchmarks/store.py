"""The embedded store beside plain mongomock-ng, from 1,000 to 50,000 documents, and pages of 100,000.

    python benchmarks/store.py                      # about five minutes on one core
    python benchmarks/store.py --sizes 1000 5000 --pages 5000 --output quick.json

A document is a candidate summary of about 1 kB. ``unique`` has one unique index, ``summaries`` those that
``candidate_summaries`` has in a campaign, one of them unique. Inserts are timed one by one
(``insert_one``) and 500 at a time (``insert_many``) at each size; mongomock-ng checks a unique index by reading
all documents, so that few are timed there and it is filled without the index. Rates and milliseconds are by the wall
clock; ``cpu_`` figures are the process's own processor time, for machines that are shared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
import mongomock_ng

from stores.embedded import EmbeddedClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OUTPUT = Path(__file__).parent / "results" / "store.json"
BATCH = 500
Indexes = list[tuple[tuple[str, ...], bool]]
UNIQUE: dict[str, Indexes] = {"unique": [(("candidate_id",), True)]}
TARGETS = {"inserts_per_s": 3000, "lookup_ms": 1.0, "opening_s": 3.0, "page_ms": 100.0}

UNINDEXED = "sort without an index"


def summary(number: int) -> dict[str, Any]:
    """Return a candidate summary, the same for the same number."""
    source = random.Random(number)
    name = f"{source.getrandbits(64):016x}"
    bulk = source.uniform(100.0, 450.0)
    stages = {
        stage: {"status": "passed", "value": bulk + source.gauss(0, 10), "model_id": f"m-{name}", "seconds": 1.5}
        for stage in ("predictor", "mlip", "dft")
    }
    return {
        "candidate_id": f"c-{name}",
        "campaign": ("hard", "soft")[number % 10 == 0],
        "round": number // 2000,
        "seed": number,
        "structure_id": f"s-{name}",
        "formula": "Mo2N3W",
        "chemsys": "Mo-N-W",
        "elements": source.sample(["Mo", "N", "W", "Re", "Os", "B", "C"], 3),
        "nsites": source.randint(2, 20),
        "spacegroup": {"symbol": "P6_3/mmc", "number": source.randint(1, 230)},
        "stage": source.choice(["generated", "predictor", "mlip", "dft"]),
        "status": source.choice(["passed", "rejected", "waiting"]),
        "stages": stages,
        "bulk_modulus_vrh": bulk,
        "bulk_modulus_method": "mlip",
        "target_error": abs(bulk - 350) / 350,
        "density": source.uniform(2, 20),
        "properties": {"bulk_modulus_vrh": bulk, "shear_modulus_vrh": bulk / 2, "energy_above_hull": source.random()},
        "property_methods": {"bulk_modulus_vrh": "mlip", "shear_modulus_vrh": "mlip"},
        "condition": {"bulk_modulus_vrh": 350.0},
        "flags": [],
        "provenance": {"inputs": [f"s-{name}", f"m-{name}"], "code_version": "0.1.0", "host": "node"},
    }


def index_sets() -> dict[str, Indexes]:
    """Return name -> [(fields, unique)]."""
    from stores.queries import indexes

    found = indexes()["candidate_summaries"]
    known = [(tuple(field for field, _ in index["fields"]), bool(index["unique"])) for index in found]
    return {**UNIQUE, "summaries": known}


def create_indexes(collection: Any, indexes: Indexes) -> None:
    for fields, unique in indexes:
        collection.create_index([(field, 1) for field in fields], unique=unique)


@contextmanager
def timed(into: dict[str, float], name: str, count: int) -> Iterator[None]:
    """Record the rate of ``count`` operations by the wall clock and by processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    into[f"{name}_per_s"] = round(count / (time.perf_counter() - wall), 1)
    into[f"cpu_{name}_per_s"] = round(count / (time.process_time() - cpu), 1)


def milliseconds(call: Callable[[], Any], repeat: int) -> tuple[dict[str, float], Any]:
    """Return the median of the call's time and of its processor time, and what the last call gave."""
    wall, cpu = [], []
    for _ in range(repeat):
        start, start_cpu = time.perf_counter(), time.process_time()
        given = call()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    middle = repeat // 2
    return {"ms": round(1e3 * sorted(wall)[middle], 3), "cpu_ms": round(1e3 * sorted(cpu)[middle], 3)}, given


def at_size(collection: Any, size: int, *, inserts: int, lookups: int) -> dict[str, Any]:
    """Return the rates of a collection that holds ``size`` documents."""
    result: dict[str, Any] = {"documents": size}
    fresh = [summary(number) for number in range(10_000_000 + size, 10_000_000 + size + 2 * inserts)]
    with timed(result, "insert_one", inserts):
        for document in fresh[:inserts]:
            collection.insert_one(document)
    with timed(result, "insert_many", inserts):
        for start in range(inserts, 2 * inserts, BATCH):
            collection.insert_many(fresh[start : start + BATCH])
    ids = iter([summary(number)["candidate_id"] for number in random.Random(size).sample(range(size), lookups)])
    result["lookup"] = milliseconds(lambda: collection.find_one({"candidate_id": next(ids)})["round"], lookups)[0]
    collection.delete_many({"seed": {"$gte": 10_000_000}})
    return result


def grow(collection: Any, start: int, stop: int) -> None:
    for first in range(start, stop, BATCH):
        collection.insert_many([summary(number) for number in range(first, min(first + BATCH, stop))])


def embedded(sizes: list[int], indexes: Indexes, path: Path) -> dict[str, Any]:
    client = EmbeddedClient(path)
    collection = client["benchmark"]["summaries"]
    create_indexes(collection, indexes)
    rows, have = [], 0
    for size in sizes:
        grow(collection, have, size)
        have = size
        rows.append(at_size(collection, size, inserts=1000, lookups=200))
        print("embedded", json.dumps(rows[-1]), flush=True)
    client.close()
    start, start_cpu = time.perf_counter(), time.process_time()
    client = EmbeddedClient(path)
    found = client["benchmark"]["summaries"].find_one({"candidate_id": summary(have // 2)["candidate_id"]})
    opening = {"s": round(time.perf_counter() - start, 3), "cpu_s": round(time.process_time() - start_cpu, 3)}
    assert found["seed"] == have // 2
    megabytes = round(path.stat().st_size / 1e6, 1)
    client.close()
    return {"at": rows, "opening_and_first_lookup": {"documents": have, **opening, "file_megabytes": megabytes}}


def plain(sizes: list[int]) -> dict[str, Any]:
    collection: Any = mongomock_ng.MongoClient()["benchmark"]["summaries"]
    rows, have = [], 0
    for size in sizes:
        grow(collection, have, size)
        have = size
        create_indexes(collection, UNIQUE["unique"])
        rows.append(at_size(collection, size, inserts=max(2, min(100, 100_000 // size)), lookups=5))
        print("mongomock-ng", json.dumps(rows[-1]), flush=True)
        collection.drop_indexes()
    return {"at": rows}


def queries() -> dict[str, Callable[[Any], Any]]:
    """Return name -> what is read of a collection of summaries."""
    by_bulk = [("bulk_modulus_vrh", -1), ("candidate_id", -1)]
    between = {"campaign": "hard", "bulk_modulus_vrh": {"$gte": 340.0, "$lte": 360.0}}
    return {
        "sorted page": lambda c: list(c.find({"campaign": "hard"}).sort(by_bulk).limit(50)),
        "sorted page 400": lambda c: list(c.find({"campaign": "hard"}).sort(by_bulk).skip(399 * 50).limit(50)),
        "range, sorted page": lambda c: list(c.find(between).sort(by_bulk).limit(50)),
        "range, one more condition, sorted page": lambda c: list(
            c.find({**between, "status": "passed"}).sort(by_bulk).limit(50)
        ),
        "page in the order of rounds": lambda c: list(
            c.find({"campaign": "hard"}).sort([("round", 1), ("candidate_id", 1)]).limit(50)
        ),
        "first 50": lambda c: list(c.find({"campaign": "hard"}).limit(50)),
        "count of an equality": lambda c: c.count_documents({"campaign": "hard"}),
        "count of a range": lambda c: c.count_documents(between),
        UNINDEXED: lambda c: list(c.find({"campaign": "hard"}).sort("density", 1).limit(50)),
    }


def pages(size: int, path: Path) -> dict[str, Any]:
    """Return the time of each query on ``size`` summaries in the embedded store, and in mongomock-ng."""
    client = EmbeddedClient(path)
    stored = client["benchmark"]["summaries"]
    create_indexes(stored, index_sets()["summaries"])
    simple: Any = mongomock_ng.MongoClient()["benchmark"]["summaries"]
    grow(stored, 0, size)
    grow(simple, 0, size)
    times: dict[str, Any] = {"documents": size}
    for name, query in queries().items():
        simple_time, expected = milliseconds(partial(query, simple), 1)
        embedded_time, got = milliseconds(partial(query, stored), 1 if name == UNINDEXED else 9)
        if isinstance(got, list):
            got, expected = ([document["candidate_id"] for document in found] for found in (got, expected))
        assert got == expected, name
        times[name] = {"embedded": embedded_time, "mongomock-ng": simple_time}
        print(name, json.dumps(times[name]), flush=True)
    client.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--pages", type=int, default=100_000, help="summaries to page through")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/store.py", "--sizes", *map(str, arguments.sizes)])
        + f" --pages {arguments.pages}",
        "machine": {"python": platform.python_version(), "cpus": os.cpu_count(), "load": os.getloadavg()[0]},
        "targets": TARGETS,
        "document_bytes": len(bson.encode(summary(1))),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, indexes in index_sets().items():
            print(f"-- {name}: {len(indexes)} indexes", flush=True)
            result[f"embedded_{name}"] = embedded(arguments.sizes, indexes, Path(folder) / f"{name}.sqlite")
        print("-- mongomock-ng, the unique index", flush=True)
        result["mongomock_ng_unique"] = plain(arguments.sizes)
        print(f"-- pages of {arguments.pages} summaries", flush=True)
        result["pages"] = pages(arguments.pages, Path(folder) / "pages.sqlite")
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(arguments.output)


if __name__ == "__main__":
    main()
