"""Workers killed and jobs cancelled at random moments: the campaign finishes, nothing is lost or done twice."""

from __future__ import annotations

import math
import os
import random
import re
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

pytestmark = [pytest.mark.hpc, pytest.mark.wire]

BLOWS = 50
SEED = 6
GAP = (0.05, 0.8)
"""Time between two blows, in units of what a worker takes to start: they fall into start-up, work and writing alike."""
LEAST_START = 8.0
"""Seconds from the end of a worker to the work of the next, however fast the machine is: the queue's own time."""
INTO_WORK = (0.0, 4.0)
"""Seconds into somebody's work."""
CANCEL_WAITING = 0.2
LEASE = 10
TIDY_SECONDS = 15.0
"""How often somebody looks after the campaign, as by cron."""
SECONDS = 1500

TEXT = """\
name: chaos
targets: {bulk_modulus_vrh: 150 GPa}
data: {elements: [Al, Cu, Ag, Au, Ni, Pd, Pt], exclude: [], max_entries: 30}
generator: {name: substitution, samples_per_round: 12, chunk: 4, max_sites: 8}
stages:
  predictor: {model: extra_trees, tolerance: 0.5}
  mlip:
    calculator: 'slow_emt:SlowEMT'
    tolerance: 0.5
    chunk: 2
    keep_structure: {ltol: 0.3, stol: 0.5, angle_tol: 10}
  dft: {backend: surrogate, calculator: 'slow_emt:SlowEMT', budget_per_round: 3}
evaluation: {targets: [120, 150], samples: 1}
rounds: 2
"""
ADAPTERS = {
    "gpu": {"cpus_per_task": 1, "gres": None, "walltime": "00:20:00", "signal": None},
    "cpu": {"ntasks": 1, "walltime": "00:20:00", "signal": None},
}
KEYS = {
    "structures": ("structure_id",),
    "candidates": ("candidate_id",),
    "predictions": ("structure_id", "property", "protocol_id"),
    "calculations": ("structure_id", "kind", "protocol_id", "attempt"),
    "models": ("campaign", "round", "kind"),
    "training_sets": ("training_set_id",),
    "evaluations": ("campaign", "round", "target"),
    "campaigns": ("name",),
}
"""What of a record nobody may compute twice; stricter than the unique indexes."""
COMPARED = KEYS | {"predictions": ("structure_id", "property"), "training_sets": ("campaign", "round")}
"""What a record is compared by with one of another campaign: ids that hash numbers differ if a last digit does."""
HASHED = re.compile(r"[mtep]-[0-9a-f]{20}")
"""Ids of models, training sets, evaluations and protocols, which name models."""
DROPPED = {"_id", "provenance", "artifact", "sources", "sha256", "size"}
"""What depends on when and where a record was made, or on the last digits of what went into it."""
MATCHER = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.01, scale=False)
MISSING = "(missing)"


@dataclass
class Watch:
    """What was seen of a campaign's records so far; anything seen must be there at the end, once."""

    seen: dict[str, set[str]] = field(default_factory=dict)

    def look(self, campaign: Any, when: str) -> None:
        """Look at the records now; fail if one is double or gone."""
        for name, found in keys_of(campaign).items():
            doubles = [key for key, count in Counter(found).items() if count > 1]
            assert not doubles, f"{when}: doubles in {name}: {doubles[:3]}"
            lost = self.seen.get(name, set()) - set(found)
            assert not lost, f"{when}: lost from {name}: {sorted(lost)[:3]}"
            self.seen[name] = set(found)


def keys_of(campaign: Any) -> dict[str, list[str]]:
    return {
        name: ["/".join(str(d.get(k)) for k in keys) for d in campaign.db[name].find({}, dict.fromkeys(keys, 1))]
        for name, keys in KEYS.items()
    }


def records_of(campaign: Any) -> dict[str, dict[str, Any]]:
    """Return the authoritative records by their keys, without what depends on when and where they were made."""
    found: dict[str, dict[str, Any]] = {}
    for name, keys in COMPARED.items():
        documents = campaign.db[name].find() if name != "campaigns" else []
        found[name] = {
            "/".join(str(d.get(key)) for key in keys): {k: v for k, v in d.items() if k not in DROPPED}
            for d in documents
        }
    return found


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return where two records differ by more than rounding.

    Of crystals that relax into the same one, the one that comes first is kept: they differ in the last digits, and an
    atom at 0.0 may be at 1.0 in the other.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        if one.get("@class") == other.get("@class") == "Structure":
            same = MATCHER.fit(Structure.from_dict(one), Structure.from_dict(other))
            return [] if same else [f"{where}: another crystal"]
        pairs = {key: (one.get(key, MISSING), other.get(key, MISSING)) for key in one.keys() | other.keys()}
        return [text for key, (a, b) in sorted(pairs.items()) for text in differences(a, b, f"{where}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        both = enumerate(zip(one, other, strict=True))
        return [text for i, (a, b) in both for text in differences(a, b, f"{where}[{i}]")]
    if isinstance(one, float) and isinstance(other, float):
        return [] if math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-5) else [f"{where}: {one} and {other}"]
    if all(isinstance(x, str) and HASHED.fullmatch(x) for x in (one, other)):
        return []
    return [] if one == other else [f"{where}: {str(one)[:80]} and {str(other)[:80]}"]


@dataclass(frozen=True)
class Worker:
    """A worker's process, its job, and whether it is at work on a firework."""

    pid: int
    job: str
    at_work: bool


class Blows:
    """Kills and cancellations at random moments, counted by what they hit."""

    def __init__(self, slurm: Any, seed: int) -> None:
        self.slurm, self.rng = slurm, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._completed = 0

    def strike(self, campaign: Any) -> bool:
        """Kill a worker or cancel a job, if there is one; return whether it hit something.

        Every second blow is for somebody at work, some time into it, after a firework was completed since the last
        such blow: they spread over the whole campaign, on a slow machine too. The others are for whoever is there.
        """
        workers = self.workers(campaign)
        if self.total % 2 == 0:
            completed = campaign.db["fireworks"].count_documents({"state": "COMPLETED"})
            if completed == self._completed or not any(worker.at_work for worker in workers):
                return False
            self._completed = completed
            time.sleep(self.rng.uniform(*INTO_WORK))
            workers = [worker for worker in self.workers(campaign) if worker.at_work]
        elif self.rng.random() < CANCEL_WAITING and (waiting := self.slurm.jobs("PENDING")):
            self.slurm.call("scancel", self.rng.choice(waiting))
            self.counts["scancel, waiting in the queue"] += 1
            return True
        if not workers:
            return False
        worker, kind = self.rng.choice(workers), self.rng.choice(["kill -9", "scancel"])
        if kind == "scancel":
            self.slurm.call("scancel", worker.job)
        else:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        self.counts[f"{kind}, {'at work' if worker.at_work else 'starting or idle'}"] += 1
        return True

    def workers(self, campaign: Any) -> list[Worker]:
        """Return the workers that there are now, the oldest first."""
        busy = [claim["worker"] for claim in campaign.db["claims"].find({}, {"worker": 1})]
        found = sorted(self.slurm.processes(program="bin/rlaunch").items())
        return [Worker(pid, job, any(is_worker(pid, claimed) for claimed in busy)) for pid, job in found]

    def __str__(self) -> str:
        return "; ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def is_worker(pid: int, worker: dict[str, Any]) -> bool:
    """Return whether a claim's worker is a process, which may have another id in its own namespace."""
    with suppress(OSError, StopIteration):
        status = (Path("/proc") / str(pid) / "status").read_text().splitlines()
        inner = next(line.split()[-1] for line in status if line.startswith("NSpid:"))
        namespace = str((Path("/proc") / str(pid) / "ns" / "pid").readlink())
        return worker["pid"] == int(inner) and worker["machine"].endswith(namespace)
    return False


def tidy(campaign: Any, rng: random.Random) -> subprocess.Popen[bytes]:
    """Start what somebody who looks after a campaign calls now and then."""
    from inv_design.cli import COMMANDS

    words = ["doctor", "--fix"] if "doctor" in COMMANDS and rng.random() < 0.5 else ["launch"]
    with (campaign.folder / "tidy.log").open("ab") as log:
        started: subprocess.Popen[bytes] = campaign.start("inv_design.cli", *words, log=log)
    return started


def beat(campaign: Any, blows: Blows, watch: Watch) -> None:
    """Run a campaign to its end under blows."""
    began = time.monotonic()
    campaign.call("launch")  # nothing to add: what it takes is what any program of ours takes to start
    unit = max(LEAST_START, time.monotonic() - began)
    print(f"a worker takes {unit:.0f} s to start", flush=True)
    deadline = time.monotonic() + SECONDS
    next_blow = time.monotonic() + unit * blows.rng.uniform(*GAP)
    next_tidy = time.monotonic() + TIDY_SECONDS
    tidying = None
    with campaign.fed():
        while not campaign.finished():
            now = time.monotonic()
            assert now < deadline, f"{blows}\n{campaign.diagnosis()}\n{campaign.log('tidy.log')}"
            if now >= next_blow and blows.total < BLOWS and blows.strike(campaign):
                watch.look(campaign, f"after blow {blows.total}")
                if blows.total % 10 == 0:
                    print(f"{blows.total} blows, {sum(map(len, watch.seen.values()))} records", flush=True)
                next_blow = now + unit * blows.rng.uniform(*GAP)
            if now >= next_tidy and (tidying is None or tidying.poll() is not None):
                tidying, next_tidy = tidy(campaign, blows.rng), now + TIDY_SECONDS
            time.sleep(0.1)
    if tidying is not None:
        tidying.wait(timeout=120)
    campaign.wait_for_jobs(120)
    watch.look(campaign, "at the end")


def test_blows_at_random_moments_lose_and_double_nothing(slurm: Any, new_campaign: Callable[..., Any]) -> None:
    folders = filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    quick = {"INV_DESIGN_LEASE": str(LEASE), "PYTHONPATH": os.pathsep.join(folders)}
    environment = quick | {"SLOW_EMT_SECONDS": "0.01"}
    quiet = new_campaign("quiet", TEXT, environment=quick)
    with (quiet.folder / "run.log").open("wb") as log:
        undisturbed = quiet.start("inv_design.cli", "run", log=log)  # in one process, meanwhile
    blows = Blows(slurm, SEED)
    campaigns = 0
    while blows.total < BLOWS:
        campaigns += 1
        campaign = new_campaign(f"beaten-{campaigns}", TEXT, jobs=2, environment=environment, edits=ADAPTERS)
        campaign.on_other_machines("cpu")
        before, began = blows.total, time.monotonic()
        assert "workflows added" in campaign.call("launch").stderr
        beat(campaign, blows, Watch())
        seconds = time.monotonic() - began
        print(f"campaign {campaigns}: {blows.total - before} blows, {seconds:.0f} s, {summary(campaign)}")
        print(f"{blows.total} blows, seed {SEED}: {blows}")
        assert undisturbed.wait(timeout=SECONDS) == 0, quiet.log("run.log")
        check_end(campaign, records_of(quiet))
    assert blows.total == BLOWS
    for kind in ("kill -9", "scancel"):  # else the moments were not what this test is about
        assert blows.counts[f"{kind}, at work"] >= BLOWS // 10


def summary(campaign: Any) -> str:
    fireworks = Counter(d["state"] for d in campaign.db["fireworks"].find({}, {"state": 1}))
    launches = campaign.db["launches"].count_documents({})
    jobs = len(campaign.scripts())
    return f"{jobs} jobs, {launches} launches, " + ", ".join(f"{n} {state}" for state, n in fireworks.items())


def check_end(campaign: Any, expected: dict[str, dict[str, Any]]) -> None:
    status = campaign.status()
    assert all(r["closed"] for r in status["rounds"])
    assert len(status["rounds"]) == status["rounds_planned"] + 1
    assert status["freshness"]["uncounted_candidates"] == 0
    assert set(campaign.db["fireworks"].distinct("state")) <= {"COMPLETED", "ARCHIVED"}
    assert status["launchpad"]["failed"] == []
    assert "nothing added" in campaign.call("launch").stderr
    found = records_of(campaign)
    for name, records in expected.items():
        assert sorted(found[name]) == sorted(records), name
        if name in ("predictions", "models"):
            continue  # trees break ties between splits by the last digits of labels
        changed = [text for key, record in records.items() for text in differences(found[name][key], record, key)]
        assert not changed, f"{name}: {len(changed)} of {len(records)} records: {changed[:3]}"
