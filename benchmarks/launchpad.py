"""The launchpad of a campaign with 10,000 candidates in stage III: adding, handing out, status; beside `lpad add`.

    python benchmarks/launchpad.py                             # wire server and embedded database, some minutes
    python benchmarks/launchpad.py --workflows 1000 --output quick.json

A stage's workflows (one per candidate: a piece of work and the advance that follows it) are put on the launchpad as a
worker does it, by ``fireworks_specs.execution.advance``, with 10,000 candidates and their summaries in the database.
Beside it a sample of the same workflows is added as ``lpad add`` does, one file each, read and added; the start of its
command line, seconds per call, is not counted. ``first_hand_out`` is what ``rlaunch`` asks first: whether there is
something to run, and the check-out of it. Wall times are of this machine as it was; ``cpu_s`` is this process's
processor time, and ``server_cpu_s`` the wire server's, for machines that are shared: their sum is about what the wall
time is on an idle one. The wire server stands in for MongoDB; it has no indexes but unique ones, and reads a collection
for every other question.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stores.connection import Connection

OUTPUT = Path(__file__).parent / "results" / "launchpad.json"
NAME = "stiff"
BATCH = 1000
TARGETS = {"add": 60.0, "first_hand_out": 1.0, "status": 1.0}
"""Seconds that each may take with 10,000 workflows."""


class Clock:
    """Times of this process and of a server's."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid
        self.seconds: dict[str, dict[str, float]] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record what a block takes: wall, this process's and the server's processor time, in seconds."""
        before = time.perf_counter(), time.process_time(), self._server()
        yield
        after = time.perf_counter(), time.process_time(), self._server()
        wall, cpu, server = (round(b - a, 3) for a, b in zip(before, after, strict=True))
        self.seconds[name] = {"wall_s": wall, "cpu_s": cpu, "server_cpu_s": server}
        print(f"  {name:22} {wall:8.2f} s wall {cpu:8.2f} s cpu {server:8.2f} s server", flush=True)

    def _server(self) -> float:
        if self.pid is None:
            return 0.0
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_records(connection: Connection, count: int) -> tuple[Any, list[str]]:
    """Write a campaign with candidates that wait for their labels, summaries and counts; return (config, ids)."""
    from inv_design.config import CampaignConfig
    from inv_design.metrics.campaign import funnel, hit_rate
    from stores.provenance import provenance
    from stores.records import insert_campaign

    config = CampaignConfig.model_validate({"name": NAME, "targets": {"bulk_modulus_vrh": "350 GPa"}})
    made = provenance(command="benchmark")
    insert_campaign(NAME, config.model_dump(mode="json"), targets=config.targets, provenance=made)
    source = random.Random(0)
    ids = [f"s-{source.getrandbits(128):032x}" for _ in range(count)]
    summaries = []
    for number, structure_id in enumerate(ids):
        passed = {"status": "passed", "value": 350.0}
        stages = {"predictor": passed, "mlip": passed, "dft": {"status": "waiting"}}
        about = {"campaign": NAME, "round": 0, "structure_id": structure_id, "candidate_id": f"c-{number:032x}"}
        summaries.append(about | {"stages": stages, "reasons": [], "hit": None, "duplicate_of": None})
    for start in range(0, count, BATCH):
        some = summaries[start : start + BATCH]
        connection.db["candidate_summaries"].insert_many([dict(summary) for summary in some])
        keys = ("campaign", "round", "structure_id", "candidate_id")
        connection.db["candidates"].insert_many([{k: s[k] for k in keys} | {"provenance": made} for s in some])
    connection.db["campaign_metrics"].insert_one(
        {
            "campaign": NAME,
            "round": 0,
            "generated": count,
            "duplicates": 0,
            "funnel": funnel(summaries),
            "hit_rate": hit_rate(summaries),
            "last_updated": datetime.now(UTC).replace(tzinfo=None),
        }
    )
    return config, ids


def measure(connection: Connection, clock: Clock, *, count: int, sample: int) -> dict[str, Any]:
    """Return the figures of one database."""
    from fireworks import FWorker

    from fireworks_specs import execution, steps
    from fireworks_specs.doctor import Doctor
    from fireworks_specs.steps import Step
    from inv_design.cli.status import collect

    config, ids = write_records(connection, count)
    launchpad = connection.launchpad()
    step = Step(NAME, 0, "dft", tuple((structure_id,) for structure_id in ids))
    steps.next_step = lambda *_, **__: (
        step
    )  # what a worker derives from the records, which are a benchmark of their own
    one = lpad_add(connection, clock, step, sample)
    with clock.timed("add"):
        added = execution.advance(launchpad, NAME, config, rounds=1)
    worker = FWorker(name="cpu", category=["dft"])
    with clock.timed("first_hand_out"):
        launchpad.run_exists(worker)
        firework, _ = launchpad.checkout_fw(worker, ".")
    assert firework is not None
    with clock.timed("next_hand_out"):
        launchpad.run_exists(worker)
        launchpad.checkout_fw(worker, ".")
    with clock.timed("status"):
        record = collect(connection, NAME)
    states = record["launchpad"]["fireworks"]
    assert states == {"READY": count + sample - 2, "WAITING": count + sample, "RUNNING": 2}, states
    with clock.timed("doctor"):
        assert len(Doctor(connection).examine()) == 2
    bulk = clock.seconds["add"]
    largest = max(_bson_size(d["spec"]) for d in launchpad.fireworks.find({"fw_id": {"$lte": 2000}}, {"spec": 1}))
    return {
        "workflows": added,
        "fireworks": 2 * added,
        "largest_spec_bytes": largest,
        "seconds": clock.seconds,
        "ms_per_workflow": {
            "bulk": {key: round(1000 * value / added, 3) for key, value in bulk.items()},
            "one_by_one": one,
        },
        "times_faster_than_one_by_one": {
            key: round(one[key] / (1000 * value / added), 1) for key, value in bulk.items() if value and one[key]
        },
    }


def lpad_add(connection: Connection, clock: Clock, step: Any, sample: int) -> dict[str, float]:
    """Add some workflows as `lpad add` does, and return the ms of one; they stay on the launchpad."""
    from fireworks import Workflow

    from fireworks_specs.steps import Step
    from fireworks_specs.workflows import step_workflows

    launchpad = connection.launchpad()
    part = Step(NAME, 0, "dft", step.items[:sample])
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, workflow in enumerate(step_workflows(part, rounds=1)):
            files.append(Path(folder) / f"{number}.yaml")
            workflow.to_file(str(files[-1]))
        with clock.timed(f"lpad_add_of_{sample}"):
            for file in files:
                launchpad.add_wf(Workflow.from_file(str(file)))
    seconds = clock.seconds[f"lpad_add_of_{sample}"]
    return {key: round(1000 * value / sample, 3) for key, value in seconds.items()}


def status_command(uri: str, root: Path) -> dict[str, float]:
    """Return what the command `inv-design status` takes as a process of its own, in seconds."""
    command = [sys.executable, "-m", "inv_design.cli", "status", "--json", "--database", uri, "--campaign", NAME]
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    after = os.times()
    assert json.loads(done.stdout)["campaign"] == NAME
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": round(time.perf_counter() - start, 3), "cpu_s": round(cpu, 3)}


def _bson_size(document: Any) -> int:
    import bson

    return len(bson.encode(document))


def benchmark(kind: str, *, count: int, sample: int) -> dict[str, Any]:
    """Return the figures on the wire server or on the embedded database."""
    from inv_design.testing import WireServer
    from stores.connection import connect

    print(f"{kind}, {count} workflows:", flush=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        root = Path(folder)
        if kind == "embedded":
            with connect("embedded", root=root) as connection:
                figures = measure(connection, Clock(None), count=count, sample=sample)
            figures["status_command"] = status_command(f"embedded:{root / 'inv_design.sqlite'}", root)
            return figures
        server = WireServer(root)
        server.start()
        assert server.process is not None
        try:
            uri = f"{server.uri}/benchmark"
            with connect(uri) as connection:
                figures = measure(connection, Clock(server.process.pid), count=count, sample=sample)
            figures["status_command"] = status_command(uri, root)
        finally:
            server.close()
    return figures


def verdicts(figures: dict[str, Any]) -> dict[str, Any]:
    """Return target -> seconds by the wall clock and on an idle core, and whether each is within the target."""
    said = {}
    for name, target in TARGETS.items():
        seconds = figures["seconds"][name]
        idle = round(seconds["cpu_s"] + seconds["server_cpu_s"], 3)
        said[name] = {
            "target_s": target,
            "wall_s": seconds["wall_s"],
            "processor_s": idle,
            "met_by_wall": seconds["wall_s"] <= target,
            "met_by_processor_time": idle <= target,
        }
        print(f"  {name:22} target {target:g} s: {seconds['wall_s']:.2f} s wall, {idle:.2f} s of processor time")
    return said


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workflows", type=int, default=10_000)
    parser.add_argument("--sample", type=int, default=200, help="workflows that are added one by one")
    parser.add_argument("--databases", nargs="+", default=["wire", "embedded"], choices=["wire", "embedded"])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/launchpad.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average_before": os.getloadavg()[0],
    }
    for kind in arguments.databases:
        result[kind] = benchmark(kind, count=arguments.workflows, sample=arguments.sample)
        result[kind]["targets"] = verdicts(result[kind])
        ratio = result[kind]["times_faster_than_one_by_one"]
        print(f"  against lpad add one by one: {ratio} times faster per workflow", flush=True)
        command = result[kind]["status_command"]
        print(f"  the command status: {command['wall_s']:.2f} s wall, {command['cpu_s']:.2f} s cpu, start included")
    result["load_average_after"] = os.getloadavg()[0]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
