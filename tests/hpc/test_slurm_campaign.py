"""A campaign on Slurm with the shipped templates: launch, qlaunch, jobs run by slurmd, records in the database."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.hpc, pytest.mark.wire]

TEXT = (Path(__file__).parents[1] / "e2e" / "small_campaign.yaml").read_text()
SECONDS = 900
SMALL = {
    "gpu": {"cpus_per_task": 1, "walltime": "00:20:00", "signal": "B:TERM@60"},
    "cpu": {"ntasks": 2, "walltime": "00:10:00", "signal": "B:TERM@60"},
}
"""What a user of this small cluster changes in the shipped queue adapters."""
CATEGORIES = {"gpu": {"train", "mlip"}, "cpu": {"dft"}}


def test_a_campaign_runs_on_slurm(new_campaign: Callable[..., Any]) -> None:
    began = time.monotonic()
    campaign = new_campaign("campaign", TEXT, edits=SMALL)
    # every rank of the allocation is reached from within a job of the CPU queue, as VASP's and GPAW's would be
    campaign.edit(
        "my_qadapter_cpu.yaml",
        {"pre_rocket": f"srun --overlap sh -c 'echo $SLURM_PROCID of $SLURM_NTASKS >> {campaign.folder}/ranks'"},
    )
    launched = campaign.call("launch")
    assert "2 workflows added" in launched.stderr
    print(f"launched after {time.monotonic() - began:.0f} s")
    reserve_one(campaign)
    print(f"a reserved firework completed after {time.monotonic() - began:.0f} s")
    run_to_end(campaign)
    print(f"two rounds closed after {time.monotonic() - began:.0f} s, {len(campaign.scripts())} jobs")
    check_result(campaign)
    check_routing(campaign)
    check_scripts(campaign)


def test_the_end_of_the_wall_time_costs_no_work(new_campaign: Callable[..., Any]) -> None:
    """Slurm tells workers to end within their first minute; they give their fireworks back, and others go on."""
    text = TEXT.replace("calculator: emt", "calculator: 'slow_emt:SlowEMT'").replace("rounds: 1", "rounds: 0")
    text = text.replace("samples_per_round: 24, chunk: 8", "samples_per_round: 8, chunk: 8")
    environment = {"PYTHONPATH": path_with(Path(__file__).parent), "SLOW_EMT_SECONDS": "0.2"}
    edits = {kind: {**SMALL[kind], "walltime": "00:02:00", "signal": "B:TERM@60"} for kind in SMALL}
    campaign = new_campaign("short", text, environment=environment, edits=edits)
    campaign.call("launch")
    run_to_end(campaign, doctor_every=30.0)
    given_back = list(campaign.db["launches"].find({"state": "ARCHIVED"}))
    errors = "\n".join(path.read_text() for path in campaign.folder.glob("block_*/launcher_*/*.error"))
    # a signal between two fireworks finds FireWorks alone, which dies of it: the doctor's business
    between = campaign.db["launches"].count_documents({"state": {"$nin": ["COMPLETED", "ARCHIVED"]}})
    print(f"{len(campaign.scripts())} jobs, {len(given_back)} fireworks given back, {between} signals between two")
    assert given_back, errors[-2000:]
    assert errors.count("it is READY again") == len(given_back)
    assert between <= len(given_back)
    assert "DUE TO TIME LIMIT" not in errors  # nobody was there any more when the time was over
    assert campaign.db["fireworks"].distinct("state") == ["COMPLETED"]
    assert campaign.db["calculations"].count_documents({"state": {"$ne": "completed"}}) == 0
    keys = [(d["structure_id"], d["kind"], d["protocol_id"]) for d in campaign.db["calculations"].find()]
    assert len(keys) == len(set(keys))


def run_to_end(campaign: Any, *, doctor_every: float | None = None) -> None:
    """Feed the queue until the campaign is finished and the last job is gone."""
    began = last = time.monotonic()
    with campaign.fed():
        while not campaign.finished():
            now = time.monotonic()
            assert now - began < SECONDS, campaign.diagnosis()
            if doctor_every is not None and now - last > doctor_every:
                campaign.call("doctor", "--fix", code=None)
                last = time.monotonic()
            time.sleep(1)
    campaign.wait_for_jobs(120)


def path_with(folder: Path) -> str:
    """Return the import path of this process's environment with a further folder."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def reserve_one(campaign: Any) -> None:
    """Submit a job that is bound to one firework, with that firework's name and what its spec says of the queue."""
    adapter = (campaign.folder / "my_qadapter_gpu.yaml").read_text()
    (campaign.folder / "my_qadapter_gpu.yaml").write_text(re.sub(r"rapidfire --timeout \d+", "singleshot", adapter))
    firework = campaign.db["fireworks"].find_one({"state": "READY"})
    campaign.db["fireworks"].update_one(
        {"fw_id": firework["fw_id"]}, {"$set": {"spec._priority": 9, "spec._queueadapter": {"walltime": "00:07:00"}}}
    )
    campaign.qlaunch("gpu", "-r", "rapidfire", "--nlaunches", "1")
    (job,) = campaign.slurm.jobs()
    campaign.wait_for_jobs(180)
    done = campaign.db["fireworks"].find_one({"fw_id": firework["fw_id"]})
    assert done["state"] == "COMPLETED", campaign.diagnosis()
    history = campaign.db["launches"].find_one({"fw_id": firework["fw_id"]})["state_history"]
    assert [entry["state"] for entry in history] == ["RESERVED", "RUNNING", "COMPLETED"]
    assert history[0]["reservation_id"] == job
    (script,) = campaign.scripts().values()
    assert "#SBATCH --time=00:07:00\n" in script
    assert f"--fw_id {firework['fw_id']}" in script
    assert re.search(r"#SBATCH --job-name=small[-_]round", script)
    (campaign.folder / "my_qadapter_gpu.yaml").write_text(adapter)


def check_result(campaign: Any) -> None:
    status = campaign.status()
    assert [r["round"] for r in status["rounds"] if r["closed"]] == list(range(status["rounds_planned"] + 1)) == [0, 1]
    assert status["finished"] is True
    assert status["freshness"]["uncounted_candidates"] == 0
    assert set(status["launchpad"]["fireworks"]) == {"COMPLETED"}
    assert status["launchpad"]["failed"] == []
    stages = [r["funnel"]["dft"] for r in status["rounds"]]
    assert all(stage["in"] > 0 and stage["waiting"] == 0 for stage in stages)
    labels = campaign.db["calculations"].count_documents({"method": "surrogate"})
    assert labels == sum(stage["in"] for stage in stages)


def check_routing(campaign: Any) -> None:
    ran: dict[str, set[str]] = {"gpu": set(), "cpu": set()}
    jobs = campaign.scripts()
    for launch in campaign.db["launches"].find():
        firework = campaign.db["fireworks"].find_one({"fw_id": launch["fw_id"]})
        worker = launch["fworker"]["name"]
        ran[worker].add(firework["spec"]["_category"])
        # the job in whose folder it ran was submitted to that worker's partition
        (script,) = [text for path, text in jobs.items() if launch["launch_dir"].startswith(path)]
        assert f"--partition={worker}\n" in script
    assert ran == CATEGORIES
    steps = {d["spec"]["step"] for d in campaign.db["fireworks"].find({"spec._category": {"$in": ["train", "mlip"]}})}
    assert steps == {"train", "generate", "predictor", "mlip", "close"}


def check_scripts(campaign: Any) -> None:
    scripts = campaign.scripts().values()
    for kind, lines in {
        "gpu": ["--time=00:20:00", "--gres=gpu:1", "--ntasks=1", "--cpus-per-task=1", "--signal=B:TERM@60"],
        "cpu": ["--time=00:10:00", "--ntasks=2", "--signal=B:TERM@60"],
    }.items():
        of_kind = [s for s in scripts if f"my_fworker_{kind}.yaml" in s and "singleshot" not in s]
        assert of_kind
        for script in of_kind:
            for line in lines:
                assert f"#SBATCH {line}\n" in script
            assert re.search(r"^exec \S+/rlaunch ", script, re.MULTILINE)
    ranks = (campaign.folder / "ranks").read_text().splitlines()
    assert set(ranks) == {"0 of 2", "1 of 2"}
