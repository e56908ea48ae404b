"""Asking a campaign of 100,000 candidates: `status`, pages of `query`, Pareto fronts and cold starts, on both stores.

    python benchmarks/queries.py                               # both stores, some minutes
    python benchmarks/queries.py --n 5000 --stores embedded --output quick.json
    INV_DESIGN_TEST_MONGODB=mongodb://host:27017 python benchmarks/queries.py --stores server

The candidates are synthetic: summaries with the fields and the size that the builder writes, from a seed, with the
funnel of a campaign. ``server`` is the MongoDB that the variable names, else the wire server of the tests
(mongo-java-server), whose indexes serve neither ranges nor order: its figures are those of reading the collection.
Every question is asked in a warm process, then whole processes are timed. Seconds are the best of several on the
clock, with the processor seconds of this process beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
import numpy as np

from inv_design.config import CampaignConfig
from inv_design.metrics.campaign import element_shares, funnel, hit_rate, target_errors
from inv_design.structures.elements import METALLIC_RADII
from stores import candidate_pages as pages
from stores.connection import connect
from stores.queries import candidates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stores.connection import Connection

OUTPUT = Path(__file__).parent / "results" / "queries.json"
NAME = "hundred-thousand"
METALS = sorted(METALLIC_RADII)
ROUNDS = 10
TARGET = 350.0
BATCH = 2000
LIMITS = {
    "status": 1.0, "page: stiffest": 0.1, "page: round": 0.1, "process: --help": 0.5, "process: query": 2.0,
}  # fmt: skip
"""What is asked for, in seconds."""

Document = dict[str, Any]


# -- candidates -----------------------------------------------------------------------------------------------------


def synthesise(n: int, seed: int = 0) -> Iterator[Document]:
    """Yield n candidate summaries as the builder writes them."""
    rng = np.random.default_rng(seed)
    now = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    for i in range(n):
        number = i * ROUNDS // n
        elements = sorted(
            str(e) for e in rng.choice(METALS, size=rng.choice([1, 2, 3], p=[0.05, 0.75, 0.2]), replace=False)
        )
        formula = "".join(f"{e}{k if k > 1 else ''}" for e, k in zip(elements, rng.integers(1, 4, 3), strict=False))
        predicted = float(np.clip(rng.normal(300 + 4 * number, 70), 5, 480))
        chance, identity = rng.random(), f"{rng.integers(16**15):015x}{i:05x}"
        stages: Document = {
            "predictor": {
                "status": "passed", "value": predicted, "std": float(rng.gamma(4, 4)), "unit": "GPa",
                "model_id": f"m-predictor{number}", "protocol_id": f"p-predictor{number}", "error": None,
            }
        }  # fmt: skip
        reasons: list[Document] = []
        stage, status, value, method = "predictor", "passed", predicted, "predictor"
        if abs(predicted - TARGET) > 0.3 * TARGET or chance < 0.45:
            status = stages["predictor"]["status"] = "rejected"
            reasons = [reason("predictor", "target", predicted, 0.3)]
        elif chance < 0.5:
            stage, status = "mlip", "waiting"
            stages["mlip"] = {"status": "waiting"}
        else:
            stage, value, method = "mlip", float(predicted * rng.normal(0.95, 0.12)), "mlip"
            stages["mlip"] = calculation(value, "mlip", identity, rng)
            if chance < 0.55:
                status = stages["mlip"]["status"] = "failed"
                reasons = [reason("mlip", "calculation", None, None)]
            elif abs(value - TARGET) > 0.2 * TARGET:
                status = stages["mlip"]["status"] = "rejected"
                reasons = [reason("mlip", "target", value, 0.2)]
            else:
                stage, status = "dft", "waiting"
                stages["dft"] = {"status": "waiting"}
                if chance < 0.58:
                    value, method = float(value * rng.normal(0.97, 0.08)), "surrogate"
                    status = "passed" if abs(value - TARGET) < 0.2 * TARGET else "rejected"
                    stages["dft"] = {**calculation(value, "surrogate", identity, rng), "status": status}
                    reasons = [] if status == "passed" else [reason("dft", "target", value, 0.2)]
        yield {
            "candidate_id": f"c-{identity}", "campaign": NAME, "round": number, "structure_id": f"s-{identity}",
            "generator_model_id": f"m-generator{number}", "condition": {"targets": {"bulk_modulus_vrh": TARGET}},
            "seed": number, "index": i, "score": predicted, "formula": formula, "chemsys": "-".join(elements),
            "elements": elements, "nsites": int(rng.integers(1, 20)),
            "spacegroup": {"number": 221, "symbol": "Pm-3m", "symprec": 0.01},
            "density": float(rng.normal(14, 4)), "volume_per_atom": float(rng.normal(16, 2)), "cost": None,
            "shear_modulus_vrh": 0.6 * value if stage != "predictor" else None,
            "properties": {"bulk_modulus_vrh": value}, "property_methods": {"bulk_modulus_vrh": method},
            "stage": stage, "status": status, "state": "successful",
            "hit": status == "passed" if stage == "dft" and status != "waiting" else None,
            "reason": reasons[0]["message"] if reasons else None, "reasons": reasons, "stages": stages,
            "bulk_modulus_vrh": value if chance > 0.01 else None, "bulk_modulus_method": method,
            "born_stable": True if stage != "predictor" else None, "target": TARGET,
            "target_error": abs(value - TARGET) / TARGET if chance > 0.01 else None, "mlip_dft_difference": {},
            "flags": [], "model_id": f"m-predictor{number}", "duplicate_of": None, "duplicate_key": identity,
            "input_hash": f"h-{identity}", "builder_version": "3", "last_updated": now,
            "provenance": {"created_at": now, "builder": "CandidateBuilder", "inputs": [f"s-{identity}"]},
        }  # fmt: skip


def reason(stage: str, rule: str, value: float | None, threshold: float | None) -> Document:
    """Return a reason of rejection."""
    message = "calculation failed" if value is None else f"bulk_modulus_vrh {value:.1f} GPa is off the target 350 GPa"
    return {"stage": stage, "rule": rule, "value": value, "threshold": threshold, "message": message}


def calculation(value: float, method: str, identity: str, rng: np.random.Generator) -> Document:
    """Return a stage's record of a calculation."""
    return {
        "status": "passed", "value": value, "bulk_modulus_vrh": value, "shear_modulus_vrh": 0.6 * value,
        "born_stable": True, "volume_change": float(rng.normal(0, 0.02)), "structure_matched": True, "relaxed": True,
        "calculation_id": f"k-{identity}", "protocol_id": f"p-{method}", "method": method, "error": None,
        "output_structure_id": None, "flags": [],
    }  # fmt: skip


def fill(connection: Connection, n: int) -> Document:
    """Write the campaign with its metrics; return what is in it and the seconds that it took."""
    config = CampaignConfig.model_validate({"name": NAME, "targets": {"bulk_modulus_vrh": "350 GPa"}, "rounds": ROUNDS})
    connection.db["campaigns"].insert_one(
        {"name": NAME, "config": config.model_dump(mode="json"), "targets": config.targets, "provenance": {}}
    )
    rounds: dict[int, list[Document]] = defaultdict(list)
    batch: list[Document] = []
    written = seconds = size = 0.0
    for summary in synthesise(n):
        rounds[summary["round"]].append({k: summary[k] for k in ("stages", "reasons", "hit", "elements")})
        size += len(bson.encode(summary)) if len(batch) < 20 else 0
        written += len(batch) < 20
        batch.append(summary)
        if len(batch) == BATCH:
            seconds += write(connection, batch)
            batch = []
    seconds += write(connection, batch)
    now = datetime.now(UTC).replace(tzinfo=None)
    for number, summaries in rounds.items():
        connection.db["campaign_metrics"].insert_one(
            {
                "campaign": NAME, "round": number, "generated": len(summaries), "funnel": funnel(summaries),
                "hit_rate": hit_rate(summaries), "target_error": target_errors(summaries, TARGET),
                "element_shares": element_shares([s["elements"] for s in summaries]), "last_updated": now,
            }
        )  # fmt: skip
    return {"candidates": n, "bytes_per_summary": round(size / written), "seconds_to_insert": round(seconds, 1)}


def write(connection: Connection, batch: list[Document]) -> float:
    """Insert summaries with their candidates and predictions; return the seconds that the summaries took."""
    if not batch:
        return 0.0
    place = ("candidate_id", "campaign", "round", "structure_id", "generator_model_id", "seed", "index", "score")
    connection.db["candidates"].insert_many([{k: s[k] for k in place} for s in batch])
    connection.db["predictions"].insert_many(
        [
            {"structure_id": s["structure_id"], "property": "bulk_modulus_vrh", "value": s["score"], "protocol_id": "p"}
            for s in batch
        ]
    )
    start = time.perf_counter()
    connection.db["candidate_summaries"].insert_many(batch)
    return time.perf_counter() - start


# -- questions ------------------------------------------------------------------------------------------------------


def questions(n: int) -> dict[str, Callable[[], Any]]:
    """Return the questions: name -> what asks it."""
    from inv_design.cli.status import collect
    from stores.connection import current

    ask = lambda **question: lambda: candidates(NAME, **{"limit": 50, **question})  # noqa: E731
    deep = ask(sort="-K", skip=n // 2)()
    return {
        "status": lambda: collect(current(), NAME),
        "page: round": ask(round=5),
        "page: stiffest": ask(sort="-K"),
        "page: range of K": ask(where="K=340..360", sort="K"),
        "page: stage, status, stiffest": ask(stage="dft", status="passed", sort="-K"),
        "page: nearest to the target": ask(sort="target_error"),
        "page: elements": ask(elements="Re,W", sort="-K"),
        "page: any of, none of": ask(any_of="Re,Os", without="W,Tc", sort="-K"),
        "page: protocol": ask(protocol="dft=p-surrogate"),
        "deep page by skip": ask(sort="-K", skip=n // 2),
        "deep page by after": ask(sort="-K", after=deep[-1]["candidate_id"]),
        "no index: density": ask(where="density>20", sort="-density"),
        "count": lambda: pages.count_candidates({"campaign": NAME, "status": "waiting"}),
        "Pareto, first front of K,-density": ask(pareto="K,-density", fronts=1),
        "Pareto, stage dft, all fronts": ask(pareto="K,-density", stage="dft"),
    }


def processes(uri: str) -> dict[str, list[str]]:
    """Return the commands: name -> arguments."""
    there = ["--database", uri, "--campaign", NAME]
    return {
        "process: --help": ["--help"],
        "process: query --help": ["query", "--help"],
        "process: query": ["query", "--sort", "-K", "--limit", "50", *there],
        "process: query --elements": ["query", "--elements", "Re,W", "--sort", "-K", *there],
        "process: status": ["status", *there],
    }


def timed(call: Callable[[], Any], repeats: int) -> Document:
    """Return the best seconds of some calls, and the processor seconds of the best."""
    best = (float("inf"), float("inf"))
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        call()
        best = min(best, (time.perf_counter() - wall, time.process_time() - processor))
        if best[0] > 20:
            break
    return {"seconds": round(best[0], 4), "processor_seconds": round(best[1], 4)}


def timed_process(arguments: list[str], repeats: int) -> Document:
    """Return the best seconds of some runs of the command line, and the processor seconds of the best."""
    best = (float("inf"), float("inf"))
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "inv_design.cli", *arguments], check=True, capture_output=True)
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, (wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return {"seconds": round(best[0], 4), "processor_seconds": round(best[1], 4)}


def measure(uri: str, n: int, repeats: int) -> Document:
    """Fill a store, ask everything, and return the figures."""
    with connect(uri) as connection:
        result: Document = {"store": connection.kind, **fill(connection, n)}
        print(f"{uri.partition(':')[0]}: {result}", flush=True)
    with connect(uri, read_only=True):
        figures = {}
        for name, question in questions(n).items():
            figures[name] = told(name, timed(question, repeats))
    for name, arguments in processes(uri).items():
        figures[name] = told(name, timed_process(arguments, repeats))
    return {**result, "figures": figures}


def told(name: str, figure: Document) -> Document:
    """Print a figure beside what is asked for, and return it with that."""
    limit = LIMITS.get(name)
    if limit is not None:
        figure |= {"limit": limit, "met": figure["seconds"] <= limit}
    verdict = "" if limit is None else f"   {'within' if figure['met'] else 'OVER'} {limit:g} s"
    print(
        f"  {name:<36} {figure['seconds']:9.4f} s, processor {figure['processor_seconds']:8.4f} s{verdict}", flush=True
    )
    return figure


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Give the URI of the MongoDB that the variable names, or of the wire server."""
    from inv_design import testing

    if given := os.environ.get(testing.SERVER_VARIABLE):
        yield given.rstrip("/")
        return
    folder = testing._server_jars()
    with tempfile.TemporaryDirectory() as data:
        command = ["java", "-Xmx2g", "-cp", f"{folder}/lib/*", f"{folder}/WireServer.java", f"{data}/data.mv"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"mongodb://127.0.0.1:{process.stdout.readline().strip()}"
        process.stdin.close()
        process.wait(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000, help="candidates")
    parser.add_argument("--stores", nargs="+", choices=("embedded", "server"), default=("embedded", "server"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for store in options.stores:
            if store == "embedded":
                results.append(measure(f"embedded:{folder}/queries.sqlite", options.n, options.repeats))
                continue
            with server() as uri:
                address = f"{uri}/queries_benchmark"
                try:
                    results.append(measure(address, options.n, options.repeats))
                finally:
                    with connect(address) as connection:
                        connection.client.drop_database("queries_benchmark")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    made = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "results": results,
    }
    options.output.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
