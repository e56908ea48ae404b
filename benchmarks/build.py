"""Builders at 10,000 candidates: from scratch, nothing new, 1 % new; beside maggma's plain copy of as many documents.

    python benchmarks/build.py                                  # a server of its own, and the embedded database
    python benchmarks/build.py --database mongodb://HOST/NAME   # an empty database on another server
    python benchmarks/build.py --n 1000 --stores wire --output quick.json

The candidates are packaged alloys with other elements and other lengths, a tenth of them copies of earlier ones; all
have a prediction, 15 % a stage-II and 2 % a stage-III calculation, and the campaign learned from packaged alloys. The
1 % are new candidates with predictions and new calculations, half and half. ``processed`` are the items that went
through ``process_item``. The peer is maggma's ``CopyBuilder``, a ``MapBuilder`` that copies the candidates' documents
by key to another collection of the same database: it joins and screens nothing, so it is a floor for what reading and
writing one document per candidate costs. Seconds are wall seconds; ``cpu`` are this process's, without the server's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from builders.campaign_metrics import CampaignMetricsBuilder
from builders.candidates import CandidateBuilder, _searches
from builders.run import build_training_set
from builders.screening_queue import ScreeningQueueBuilder
from inv_design.config import CampaignConfig
from inv_design.datasets.mp_binaries import load_alloys
from stores.connection import connect
from stores.ingest import ingest_reference
from stores.provenance import provenance
from stores.records import (
    insert_calculations,
    insert_campaign,
    insert_candidates,
    insert_model,
    insert_predictions,
    insert_structures,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymatgen.core import Structure

    from stores.connection import Connection

OUTPUT = Path(__file__).parent / "results" / "builders.json"
NAME = "bench"
METALS = ["Re", "W", "Os", "Ir", "Ru", "Mo", "Ta", "Rh", "Pt", "Nb", "Hf", "V"]
KNOWN = 500
COPIES, RELAXED, LABELLED, CHANGED = 0.10, 0.15, 0.02, 0.01
BUILDERS = (CandidateBuilder, ScreeningQueueBuilder, CampaignMetricsBuilder)


# -- a campaign -----------------------------------------------------------------------------------------------------


def start_campaign(connection: Connection) -> None:
    """Insert the campaign, what it learned from, and its predictor."""
    raw = {"name": NAME, "targets": {"bulk_modulus_vrh": "300 GPa"}, "stages": {"dft": {"budget_per_round": 100}}}
    config = CampaignConfig.model_validate(raw)
    insert_campaign(NAME, config.model_dump(mode="json"), targets=dict(config.targets), provenance=provenance())
    ingest_reference(load_alloys()[:KNOWN], "packaged")
    identity = build_training_set(NAME, 0, connection)
    insert_model(
        b"x", kind="predictor", name="x", provenance=provenance(), training_set_id=identity, campaign=NAME, round=0
    )


def crystals(n: int, rng: np.random.Generator) -> list[Structure]:
    """Return packaged alloys of up to 8 atoms with other elements and other lengths, and strained copies of these."""
    base = [e.structure for e in load_alloys() if len(e.structure) <= 8 and len(e.structure.composition) == 2]
    made: list[Structure] = []
    for _ in range(n):
        if made and rng.random() < COPIES:
            crystal = made[rng.integers(len(made))].copy()
            crystal.scale_lattice(crystal.volume * rng.uniform(0.97, 1.03))
        else:
            crystal = base[rng.integers(len(base))].copy()
            old = [e.symbol for e in crystal.composition]
            crystal.replace_species(dict(zip(old, rng.choice(METALS, 2, replace=False), strict=True)))
            crystal.scale_lattice(len(crystal) * rng.uniform(12.0, 18.0))
        made.append(crystal)
    return made


def add_candidates(structures: list[Structure], model: str, rng: np.random.Generator, *, seed: int) -> list[str]:
    """Insert candidates with a prediction each; return their structures' ids."""
    made = provenance()
    ids = insert_structures(structures, [{"kind": "generated", "id": "m-g"}] * len(structures), made)
    insert_candidates(
        {
            "campaign": NAME, "structure_id": s, "round": 0, "seed": seed, "index": i, "generator_model_id": "m-g",
            "condition": {"targets": {"bulk_modulus_vrh": 300.0}}, "score": 1.0, "provenance": made,
        }
        for i, s in enumerate(ids)
    )  # fmt: skip
    insert_predictions(
        {
            "structure_id": s, "property": "bulk_modulus_vrh", "value": rng.uniform(200, 400), "std": 15.0,
            "unit": "GPa", "model_id": model, "protocol_id": "p-predictor", "provenance": made,
        }
        for s in dict.fromkeys(ids)
    )  # fmt: skip
    return ids


def add_calculations(ids: list[str], rng: np.random.Generator, *, kind: str, method: str) -> None:
    """Insert a completed calculation of each crystal."""
    made = provenance()
    results: dict[str, Any] = {
        "shear_modulus_vrh": 150.0, "born_stable": True, "eigenvalues": [50.0] * 6, "relaxed": True,
        "structure_matched": True, "rms": 0.01, "volume_change": 0.01, "elastic_tensor": np.eye(6).tolist(),
    }  # fmt: skip
    insert_calculations(
        {
            "structure_id": s, "kind": kind, "method": method, "protocol_id": f"p-{method}", "state": "completed",
            "results": {**results, "bulk_modulus_vrh": rng.uniform(200, 400)}, "provenance": made,
        }
        for s in dict.fromkeys(ids)
    )  # fmt: skip


# -- measuring ------------------------------------------------------------------------------------------------------


def build(connection: Connection, **options: Any) -> dict[str, Any]:
    """Run the three builders as a new process would; return builder -> seconds and counts."""
    _searches.clear()
    found: dict[str, Any] = {}
    for kind in BUILDERS:
        builder = kind(NAME, **options)
        wall, cpu = time.perf_counter(), time.process_time()
        builder.build(connection)
        found[kind.__name__] = {
            "seconds": round(time.perf_counter() - wall, 2),
            "cpu": round(time.process_time() - cpu, 2),
            **vars(builder.counts),
        }
    return found


class Peer:
    """maggma's CopyBuilder from one collection of this database to another."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        for name in ("peer_source", "peer_target"):
            connection.db[name].create_index("key", unique=True)

    def add(self, documents: list[dict[str, Any]]) -> None:
        """Put documents into its source, with a time of change each, as it needs it."""
        fields = [{k: v for k, v in d.items() if k != "_id"} for d in documents]
        self.connection.db["peer_source"].insert_many(
            [{**d, "key": d["candidate_id"], "last_updated": d["provenance"]["created_at"]} for d in fields]
        )

    def build(self) -> dict[str, Any]:
        """Run it; return seconds and the number of items processed."""
        from maggma.builders import CopyBuilder

        source, target = (self.connection.maggma_store(n, key="key") for n in ("peer_source", "peer_target"))
        builder = CopyBuilder(source, target, chunk_size=100)  # more ids in a query are slower on these stores
        wall, cpu, processed = time.perf_counter(), time.process_time(), 0
        chunk: list[Any] = []
        for item in builder.get_items():
            chunk.append(builder.process_item(item))
            processed += 1
            if len(chunk) == builder.chunk_size:
                builder.update_targets(chunk)
                chunk = []
        builder.update_targets(chunk)
        seconds = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        return {**{k: round(v, 2) for k, v in seconds.items()}, "processed": processed}


def measure(connection: Connection, n: int, seed: int) -> dict[str, Any]:
    """Return the figures of one database."""
    rng = np.random.default_rng(seed)
    say(f"{connection.kind}: put {n} candidates in")
    start = time.perf_counter()
    start_campaign(connection)
    model = connection.db["models"].find_one()["model_id"]
    ids = add_candidates(crystals(n, rng), model, rng, seed=1)
    add_calculations(ids[: round(n * RELAXED)], rng, kind="elastic", method="mlip")
    add_calculations(ids[: round(n * LABELLED)], rng, kind="eos", method="surrogate")
    peer = Peer(connection)
    peer.add(list(connection.db["candidates"].find()))
    result: dict[str, Any] = {"insert_seconds": round(time.perf_counter() - start, 1)}

    result["from_scratch"] = step("from scratch", build(connection), peer.build())
    result["nothing_new"] = step("nothing new", build(connection), peer.build())

    half = max(round(n * CHANGED / 2), 1)
    before = {d["candidate_id"] for d in connection.db["candidates"].find({}, {"candidate_id": 1})}
    add_candidates(crystals(half, rng), model, rng, seed=2)
    add_calculations(ids[-half:], rng, kind="elastic", method="mlip")
    peer.add([d for d in connection.db["candidates"].find() if d["candidate_id"] not in before])
    result["one_percent_new"] = step("1 % new", build(connection), peer.build())
    processed = result["one_percent_new"]["builders"]["CandidateBuilder"]["processed"]
    result["processed_share"] = processed / (n + half)
    result["same_as_from_scratch"] = same_as_from_scratch(connection)
    say(f"  {100 * result['processed_share']:.1f} % processed; same as from scratch: {result['same_as_from_scratch']}")
    return result


def same_as_from_scratch(connection: Connection) -> bool:
    """Return whether the derived documents are those that a build from nothing makes."""
    collections = ("candidate_summaries", "screening_queue", "campaign_metrics")

    def derived() -> str:
        hidden = dict.fromkeys(("_id", "last_updated", "provenance"), 0)
        rows = [sorted(json.dumps(d, sort_keys=True) for d in connection.db[c].find({}, hidden)) for c in collections]
        return json.dumps(rows)

    incremental = derived()
    for name in (*collections, "build_states"):
        connection.db[name].delete_many({})
    build(connection)
    return derived() == incremental


def step(title: str, ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """Print one comparison and return it."""
    for name, row in ours.items():
        say(f"  {title:<13} {name:<24} {row['seconds']:8.2f} s (cpu {row['cpu']:.2f} s), {row['processed']} processed")
    say(f"  {title:<13} {'maggma CopyBuilder':<24} {peer['seconds']:8.2f} s (cpu {peer['cpu']:.2f} s), "
        f"{peer['processed']} processed")  # fmt: skip
    return {"builders": ours, "maggma_copy": peer}


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


# -- databases ------------------------------------------------------------------------------------------------------


@contextmanager
def server() -> Iterator[str]:
    """Give the URI of a new database on the wire server of the tests."""
    from inv_design.testing import _server_jars

    folder = _server_jars()
    with tempfile.TemporaryDirectory(prefix="inv-design-bench-") as data:
        command = ["java", "-Xmx1g", "-cp", f"{folder}/lib/*", f"{folder}/WireServer.java", f"{data}/data.mv"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"mongodb://127.0.0.1:{process.stdout.readline().strip()}/bench"
        finally:
            process.stdin.close()
            process.wait()


@contextmanager
def database(kind: str, given: str | None) -> Iterator[Connection]:
    """Give a connection to an empty database."""
    if kind == "embedded":
        with tempfile.TemporaryDirectory() as folder, connect("embedded", root=Path(folder)) as connection:
            yield connection
    elif given:
        with connect(given) as connection:
            if connection.db["candidates"].find_one() is not None:
                raise SystemExit(f"{connection.uri_redacted} is not empty; name a database that is")
            yield connection
    else:
        with server() as uri, connect(uri) as connection:
            yield connection


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stores", nargs="+", choices=("wire", "embedded"), default=["wire", "embedded"])
    parser.add_argument("--database", help="URI of an empty database to use instead of a server of its own")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/build.py", *sys.argv[1:]]),
        "machine": {"python": platform.python_version(), "processor": platform.machine()},
        "n": arguments.n,
    }
    for kind in arguments.stores:
        with database(kind, arguments.database) as connection:
            results[kind] = measure(connection, arguments.n, arguments.seed)
            results[kind]["load_average"] = round(os.getloadavg()[1], 1)  # of the last five minutes: is it believable?
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
