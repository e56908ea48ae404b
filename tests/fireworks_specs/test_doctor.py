"""What is lost is found, with its reason, rerun once, and recorded; what is alive, waiting or done is left alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_args

import pytest
from fireworks import Firework, FWAction, FWorker, Workflow
from fireworks.core.launchpad import LockedWorkflowError
from hypothesis import given
from hypothesis import strategies as st

from fireworks_specs import recovery
from fireworks_specs.diagnosis import FINE, Facts, judge
from fireworks_specs.doctor import RECORD, Doctor
from fireworks_specs.firetasks.close import CloseTask
from fireworks_specs.schedulers import Fate, Job, Queue
from fireworks_specs.steps import firework_key
from stores.workers import _machine, is_alive, this_job, this_worker

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from stores.connection import Connection

LEASE = 300.0
ENDED = [
    ("timeout", "TIMEOUT (TimeLimit)"), ("out_of_memory", "OUT_OF_MEMORY"), ("preempted", "PREEMPTED"),
    ("cancelled", "CANCELLED"), ("node_failed", "NODE_FAIL (NodeDown)"), ("killed", "FAILED, signal 9"),
]  # fmt: skip


def job(fate: str, said: str = "") -> Job:
    return Job("12", fate, said or fate.upper(), "node7")  # type: ignore[arg-type]


# -- the verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fate", "said"), ENDED)
def test_a_job_that_ended_says_why_its_firework_is_lost(fate: str, said: str) -> None:
    facts = Facts("RUNNING", age=500, past=10, job_id="12", asked=True, job=job(fate, said))
    verdict, why, doubtful = judge(facts, lease=LEASE)
    assert (verdict, doubtful) == (fate, False)
    assert said in why
    assert judge(replace(facts, past=None), lease=LEASE)[2]  # it may have ended well since the launchpad was read
    assert judge(replace(facts, past=-200), lease=LEASE)[0] == "running"  # somebody has renewed its claim
    assert judge(replace(facts, past=-200, dead=True), lease=LEASE)[0] == fate
    assert judge(replace(facts, state="RESERVED"), lease=LEASE)[0] == "never_started"


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        # a worker that renews its claim is alive, whatever the queue says or does not say
        (Facts("RUNNING", age=9999, past=-10), "running"),
        (Facts("RUNNING", age=9999, past=-10, job_id="12", asked=True, job=None), "running"),
        (Facts("RUNNING", age=9999, past=-10, job_id="12", asked=True, job=job("running")), "running"),
        (Facts("RUNNING", age=5, past=None), "running"),
        (Facts("RUNNING", age=9999, past=100), "unknown"),
        (Facts("RUNNING", age=9999, past=10, alive=True, job_id="12", asked=True, job=job("completed")), "running"),
        (Facts("RUNNING", age=9999, past=620, alive=True, job_id="12", asked=True, job=job("running")), "running"),
        # nobody has heard of it for two leases
        (Facts("RUNNING", age=9999, past=301), "silent"),
        (Facts("RUNNING", age=9999, past=301, job_id="12", asked=True, job=None), "killed"),
        (Facts("RUNNING", age=9999, past=301, job_id="12", asked=True, job=job("running")), "worker_dead"),
        (Facts("RUNNING", age=9999, past=301, log=("timeout", "DUE TO TIME LIMIT")), "timeout"),
        (Facts("RUNNING", age=301, past=None), "silent"),
        # its process is gone
        (Facts("RUNNING", age=5, past=-200, dead=True), "killed"),
        (Facts("RUNNING", age=5, past=-200, dead=True, job_id="12", asked=True, job=job("running")), "worker_dead"),
        (Facts("RUNNING", age=5, dead=True, log=("out_of_memory", "oom-kill")), "out_of_memory"),
        # its job was requeued, ended by itself, or tells more in its log
        (Facts("RUNNING", age=500, past=10, job_id="12", asked=True, job=job("waiting")), "preempted"),
        (Facts("RUNNING", age=500, past=10, job_id="12", asked=True, job=job("completed")), "job_ended"),
        (Facts("RUNNING", age=5, job_id="12", asked=True, job=job("failed"), log=("timeout", "x")), "timeout"),
        # its job sleeps, and so does the worker in it
        (Facts("RUNNING", age=9999, past=9000, job_id="12", asked=True, job=job("suspended")), "waiting"),
        (Facts("RUNNING", age=9999, job_id="12", asked=True, job=job("suspended")), "waiting"),
        (Facts("RUNNING", age=9999, past=9, dead=True, job_id="12", asked=True, job=job("suspended")), "worker_dead"),
        (Facts("RESERVED", age=9999, job_id="12", asked=True, job=job("suspended")), "waiting"),
        # reserved
        (Facts("RESERVED", age=9999, job_id="12", asked=True, job=job("waiting")), "waiting"),
        (Facts("RESERVED", age=9999, job_id="12", asked=True, job=job("running")), "waiting"),
        (Facts("RESERVED", age=9999, job_id="12", asked=True, job=None), "never_started"),
        (Facts("RESERVED", age=9999, job_id="12", asked=False), "unknown"),
        (Facts("RESERVED", age=10, job_id="12", asked=True, job=None), "unknown"),
        (Facts("RESERVED", age=10, launch_state=None), "waiting"),
        (Facts("RESERVED", age=601, launch_state=None), "never_started"),
        (Facts("RESERVED", age=601, launch_state="RESERVED"), "never_started"),
        # done, and the launchpad has not heard
        (Facts("RUNNING", age=5, launch_state="COMPLETED"), "untold"),
    ],
)
def test_verdicts(facts: Facts, verdict: str) -> None:
    assert judge(facts, lease=LEASE)[0] == verdict


def test_a_claim_alone_is_looked_at_again_when_a_live_worker_has_renewed_it() -> None:
    running = Facts("RUNNING", age=9999, past=301, job_id="12", asked=True, job=job("running"))
    assert judge(running, lease=LEASE)[2] > LEASE / 3
    assert judge(Facts("RUNNING", age=9999, past=301), lease=LEASE)[2] > LEASE / 3
    assert judge(replace(running, dead=True), lease=LEASE)[2] == 0  # the process is gone
    assert judge(replace(running, job=None), lease=LEASE)[2] == 0  # so is the job


@given(
    st.builds(
        Facts,
        state=st.just("RUNNING"),
        age=st.none() | st.floats(0, 1e6),
        past=st.floats(-LEASE, 0),
        job_id=st.none() | st.just("12"),
        alive=st.booleans(),
        asked=st.booleans(),
        job=st.none() | st.sampled_from([job(fate) for fate in get_args(Fate)]),
        log=st.none() | st.just(("timeout", "DUE TO TIME LIMIT")),
    )
)
def test_who_renews_a_claim_is_never_lost_whatever_is_said_of_its_job(facts: Facts) -> None:
    assert judge(facts, lease=LEASE)[0] == "running"


@given(
    st.builds(
        Facts,
        state=st.sampled_from(["RUNNING", "RESERVED"]),
        age=st.none() | st.floats(0, 1e6),
        launch_state=st.sampled_from([None, "RUNNING", "RESERVED", "COMPLETED"]),
        past=st.none() | st.floats(-LEASE, 1e6),
        alive=st.booleans(),
        dead=st.booleans(),
        job_id=st.none() | st.just("12"),
    )
)
def test_without_a_scheduler_only_time_and_processes_tell(facts: Facts) -> None:
    verdict, why, _ = judge(facts, lease=LEASE)
    assert why
    assert verdict in (*FINE, "killed", "silent", "never_started", "untold")


# -- with a launchpad -------------------------------------------------------------------------------------------------


class Answers:
    """A scheduler that knows some jobs, or fails."""

    name = "slurm"

    def __init__(self, *jobs: Job, error: Exception | None = None) -> None:
        self.jobs, self.error = {job.id: job for job in jobs}, error

    def ask(self, ids: Iterable[str]) -> Queue:  # noqa: ARG002
        if self.error is not None:
            raise self.error
        return Queue("slurm", "lane", self.jobs)


def chain() -> Workflow:
    spec = {"campaign": "a", "role": "work"}
    work = Firework([CloseTask(campaign="a", round=0)], spec=spec, name="work")
    after = spec | {"role": "advance", "_allow_fizzled_parents": True}
    return Workflow([work, Firework([CloseTask(campaign="a", round=0)], spec=after, name="advance", parents=[work])])


ELSEWHERE = {"host": "node7", "pid": 1, "machine": "another"}
IN_JOB = ELSEWHERE | {"job": {"scheduler": "slurm", "id": "12", "cluster": "lane"}}
GONE = this_worker() | {"pid": 2**22 + 1}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "SETTLE_SECONDS", 0.2)


def take(
    connection: Connection, *, worker: dict[str, Any] | None = None, past: float | None = None, hours: float = 0
) -> tuple[int, int]:
    """Let a worker take the first firework; return firework and launch. ``past``: seconds since its claim ended."""
    launchpad = connection.launchpad()
    launchpad.bulk_add_wfs([chain()])
    firework, launch_id = launchpad.checkout_fw(FWorker(name="node7"), ".", host="node7")
    if past is not None:
        expires = connection.now() - timedelta(seconds=past)
        key = firework_key(firework.fw_id, launch_id)
        connection.db["claims"].insert_one(
            {"key": key, "holder": "x", "worker": worker or ELSEWHERE, "expires_at": expires}
        )
    if hours:
        age(connection, hours)
    return firework.fw_id, launch_id


def age(connection: Connection, hours: float) -> None:
    """Make all launches older."""
    long_ago = (connection.now() - timedelta(hours=hours)).isoformat()
    for launch in connection.db["launches"].find({}):
        history = [entry | {"created_on": long_ago, "updated_on": long_ago} for entry in launch["state_history"]]
        connection.db["launches"].update_one({"_id": launch["_id"]}, {"$set": {"state_history": history}})


def test_a_lost_firework_is_rerun_once_and_its_loss_is_recorded(connection: Connection) -> None:
    fw_id, launch_id = take(connection, worker=IN_JOB, past=10)
    other = {"key": "s-1/elastic/p", "holder": "y", "worker": IN_JOB, "expires_at": connection.now()}
    connection.db["claims"].insert_many([other, other | {"key": "s-2", "worker": ELSEWHERE | {"pid": 2}, "_id": 7}])
    doctor = Doctor(connection, scheduler=Answers(job("timeout", "TIMEOUT (TimeLimit)")))
    [case] = doctor.examine()
    assert (case.verdict, case.job, case.host, case.reruns) == ("timeout", "12", "node7", 0)
    assert doctor.cure(case).action == "rerun"
    firework = connection.db["fireworks"].find_one({"fw_id": fw_id})
    assert (firework["state"], firework["launches"], firework["archived_launches"]) == ("READY", [], [launch_id])
    assert connection.db["workflows"].find_one()["fw_states"][str(fw_id)] == "READY"
    [entry] = firework["spec"][RECORD]
    assert (entry["verdict"], entry["launch_id"], entry["job"]) == ("timeout", launch_id, "12")
    launch = connection.db["launches"].find_one({"launch_id": launch_id})
    assert launch["state"] == "FIZZLED"
    assert "lost (timeout): job 12 ended: TIMEOUT" in launch["action"]["stored_data"]["_exception"]["_stacktrace"]
    assert connection.launchpad().get_launch_by_id(launch_id).state == "FIZZLED"  # FireWorks reads it
    assert connection.db["claims"].distinct("key") == ["s-2"]  # what the dead worker held is free
    assert doctor.examine() == []

    # lost again: reported and left, unless asked
    connection.launchpad().checkout_fw(FWorker(), ".", fw_id=fw_id, host="node7")
    age(connection, 1)
    [case] = doctor.examine()
    assert (case.verdict, case.reruns) == ("silent", 1)
    left = doctor.cure(case)
    assert left.action == "left"
    assert "has rerun it once before" in left.why
    assert connection.db["fireworks"].find_one({"fw_id": fw_id})["state"] == "RUNNING"
    assert doctor.cure(case, again=True).action == "rerun"
    assert len(connection.db["fireworks"].find_one({"fw_id": fw_id})["spec"][RECORD]) == 2


@pytest.mark.parametrize("lives", [True, False])
@pytest.mark.parametrize("by", ["doctor", "launch"])
def test_who_renews_after_an_outage_of_two_leases_is_not_lost(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, by: str, lives: bool
) -> None:
    fw_id, _ = take(connection, worker=IN_JOB, past=620, hours=1)
    held = {"key": "s-1/elastic/p", "holder": "y", "worker": IN_JOB, "expires_at": connection.now()}
    connection.db["claims"].insert_one(held)
    waited: list[float] = []

    def wait(_count: int, seconds: float) -> None:
        waited.append(seconds)
        if lives:
            expires = connection.now() + timedelta(seconds=LEASE)
            connection.db["claims"].update_many({}, {"$set": {"expires_at": expires}})

    monkeypatch.setattr(recovery, "wait_for_signs", wait)
    if by == "doctor":
        doctor = Doctor(connection, scheduler=Answers(job("running")))
        [case] = doctor.examine()
        assert case.verdict == ("running" if lives else "worker_dead")
        assert doctor.cure(case).action == ("" if lives else "rerun")
    else:
        assert recovery.recover(connection.launchpad(), "a", everything=False) == (0 if lives else 2)
        assert recovery.recover(connection.launchpad(), "a", everything=False) == 0
    assert waited == [recovery.renewal_seconds(LEASE)]
    assert (connection.db["fireworks"].find_one({"fw_id": fw_id})["state"] == "RUNNING") == lives
    # its claim says that it is dead, and nothing else does: what it may be at work on stays its own
    assert connection.db["claims"].count_documents({"key": "s-1/elastic/p"}) == 1


def test_who_is_waited_for_in_vain_is_not_waited_for_again(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(connection, past=620, hours=1)
    waits: list[int] = []
    monkeypatch.setattr(recovery, "wait_for_signs", lambda count, _: waits.append(count))
    fw_ids = connection.db["fireworks"].distinct("fw_id", {"state": "RUNNING"})
    for _ in range(2):  # a workflow that others work on keeps its dead
        assert recovery._without_live_worker(connection, connection.launchpad(), fw_ids) == set(fw_ids)
    assert waits == [1]


def test_only_the_process_of_the_launch_itself_is_alive(connection: Connection) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    worker = {"host": "here", "pid": other.pid, "machine": _machine()}
    take(connection, worker=worker)
    assert recovery.works_here(worker, connection.db["launches"].find_one())
    age(connection, 1)  # so that the process is younger: it got the id of a dead worker
    assert not recovery.works_here(worker, connection.db["launches"].find_one())
    assert recovery.works_here(worker, {})
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert is_alive(worker)  # its id is still taken
    assert not recovery.works_here(worker, {})
    other.communicate()


def test_a_rerun_firework_runs_to_its_end(connection: Connection) -> None:
    fw_id, _ = take(connection, worker=GONE, past=-100)
    doctor = Doctor(connection)
    [case] = doctor.examine()
    assert case.verdict == "killed"
    doctor.cure(case)
    launchpad = connection.launchpad()
    for name in ("work", "advance"):
        firework, launch_id = launchpad.checkout_fw(FWorker(), ".")
        assert firework.name == name
        launchpad.complete_launch(launch_id, FWAction(), "COMPLETED")
    assert launchpad.workflows.find_one()["state"] == "COMPLETED"
    assert launchpad.fireworks.find_one({"fw_id": fw_id})["state"] == "COMPLETED"
    assert doctor.examine() == []


def test_what_lives_waits_or_is_done_is_left_alone(connection: Connection) -> None:
    take(connection, worker=ELSEWHERE, past=-10, hours=1)
    _, done = take(connection)
    connection.launchpad().complete_launch(done, FWAction(), "COMPLETED")
    doctor = Doctor(connection, scheduler=Answers())
    cases = doctor.examine()
    assert [case.verdict for case in cases] == ["running"]
    assert [doctor.cure(case).action for case in cases] == [""]
    assert sorted(connection.db["fireworks"].distinct("state")) == ["COMPLETED", "READY", "RUNNING", "WAITING"]


def test_a_reserved_firework_is_judged_by_its_job(connection: Connection, tmp_path: Path) -> None:
    launchpad = connection.launchpad()
    launchpad.bulk_add_wfs([chain()])
    firework, launch_id = launchpad.reserve_fw(FWorker(), str(tmp_path), host=socket.gethostname())
    launchpad.set_reservation_id(launch_id, "12")
    age(connection, 1)
    waiting = Doctor(connection, scheduler=Answers(job("waiting", "PENDING (Priority)"))).examine()
    assert [(case.verdict, case.job) for case in waiting] == [("waiting", "12")]
    assert [case.verdict for case in Doctor(connection).examine()] == ["unknown"]
    doctor = Doctor(connection, scheduler=Answers())
    [case] = doctor.examine()
    assert case.verdict == "never_started"
    assert "job 12 is not in the queue" in case.why
    # of another cluster, which may share its folders with this one, nothing is known
    connection.db["launches"].update_many({}, {"$set": {"host": "login-of-another"}})
    for other in (doctor, Doctor(connection, scheduler=Answers(job("completed")))):
        assert [case.verdict for case in other.examine()] == ["unknown"]
    assert doctor.cure(case).action == "rerun"
    assert connection.db["fireworks"].find_one({"fw_id": firework.fw_id})["state"] == "READY"


def test_a_job_of_another_cluster_is_not_asked_for(connection: Connection) -> None:
    worker = IN_JOB | {"job": {"scheduler": "slurm", "id": "12", "cluster": "elsewhere"}}
    take(connection, worker=worker, past=-10)
    assert [c.verdict for c in Doctor(connection, scheduler=Answers(job("timeout"))).examine()] == ["running"]


@pytest.mark.parametrize("error", [OSError("squeue is not on PATH"), ValueError("squeue wrote 'hello'")])
def test_a_scheduler_that_fails_makes_nothing_lost(connection: Connection, error: Exception) -> None:
    take(connection, worker=IN_JOB, past=-10, hours=1)
    doctor = Doctor(connection, scheduler=Answers(error=error))
    assert [case.verdict for case in doctor.examine()] == ["running"]
    assert doctor.warnings == [f"{error}; judged without the scheduler, by claims and processes"]


def test_the_log_of_a_job_tells_what_the_queue_has_forgotten(connection: Connection, tmp_path: Path) -> None:
    launchpad = connection.launchpad()
    launchpad.bulk_add_wfs([chain()])
    inner = tmp_path / "launcher_1"
    inner.mkdir()
    launchpad.checkout_fw(FWorker(), str(inner), host="node7")
    age(connection, 1)
    (tmp_path / "inv-design-12.error").write_text(
        "*** JOB 12 ON n CANCELLED AT 2026-11-21T23:38:52 DUE TO TIME LIMIT ***"
    )
    [case] = Doctor(connection, scheduler=Answers()).examine()
    assert (case.verdict, case.job) == ("timeout", "12")


def test_the_log_of_another_job_makes_nothing_lost(connection: Connection, tmp_path: Path) -> None:
    """A log is no proof: last week's job may have left it in the folder that a worker of today started in."""
    launchpad = connection.launchpad()
    (tmp_path / "inv-design-12.error").write_text("*** JOB 12 ON n CANCELLED AT 2026-11-14T10:00:00 DUE TO TIME LIMIT")
    queue = Answers(job("timeout", "TIMEOUT (TimeLimit)"))
    launchpad.bulk_add_wfs([chain()])
    firework, launch_id = launchpad.checkout_fw(FWorker(), str(tmp_path), host="node7")  # it has no claim yet
    [case] = Doctor(connection, scheduler=queue).examine()
    assert (case.verdict, case.job) == ("running", None)
    age(connection, 1)
    claim = {"key": firework_key(firework.fw_id, launch_id), "holder": "x", "worker": ELSEWHERE}
    connection.db["claims"].insert_one(claim | {"expires_at": connection.now() + timedelta(seconds=299)})
    doctor = Doctor(connection, scheduler=queue)
    [case] = doctor.examine()
    assert (case.verdict, case.job) == ("running", None)
    assert doctor.cure(case).action == ""
    assert connection.db["claims"].count_documents({}) == 1
    connection.db["claims"].update_one({}, {"$set": {"expires_at": connection.now() - timedelta(seconds=10)}})
    assert [case.verdict for case in doctor.examine()] == ["unknown"]


def test_a_rerun_that_failed_is_tried_again(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    take(connection, worker=GONE, past=-100)
    doctor = Doctor(connection)
    with monkeypatch.context() as patch:

        def locked(*_: Any, **__: Any) -> None:
            raise LockedWorkflowError("Could not get workflow - LOCKED: 1")

        patch.setattr(doctor.launchpad, "rerun_fw", locked)
        left = doctor.cure(doctor.examine()[0])
    assert left.action == "left"
    assert "LOCKED" in left.why
    [case] = doctor.examine()
    assert case.reruns == 0
    assert doctor.cure(case).action == "rerun"
    assert len(connection.db["fireworks"].find_one({"name": "work"})["spec"][RECORD]) == 1


def end_and_die(connection: Connection, launch_id: int) -> None:
    """End a launch, and die before the workflow hears of it."""
    launchpad = connection.launchpad()
    launchpad._refresh_wf = lambda _: None
    launchpad.complete_launch(launch_id, FWAction(), "COMPLETED")


def test_a_finished_firework_is_not_rerun_but_told(connection: Connection) -> None:
    fw_id, launch_id = take(connection)
    end_and_die(connection, launch_id)  # with the lock in its hands
    connection.db["workflows"].update_one({}, {"$set": {"locked": True}})
    doctor = Doctor(connection)
    [case] = doctor.examine()
    assert case.verdict == "untold"
    assert doctor.cure(case).action == "refresh"
    assert connection.db["fireworks"].find_one({"fw_id": fw_id})["state"] == "COMPLETED"
    assert connection.db["fireworks"].find_one({"name": "advance"})["state"] == "READY"
    assert connection.db["launches"].count_documents({}) == 1
    assert doctor.examine() == []


def test_a_workflow_that_was_left_half_written_goes_on(connection: Connection) -> None:
    fw_id, launch_id = take(connection)
    end_and_die(connection, launch_id)
    connection.db["fireworks"].update_one({"fw_id": fw_id}, {"$set": {"state": "COMPLETED"}})
    doctor = Doctor(connection)
    [case] = doctor.examine()
    assert (case.verdict, case.state, case.name) == ("stuck", "WAITING", "advance")
    doctor.cure(case)
    assert connection.db["fireworks"].find_one({"name": "advance"})["state"] == "READY"
    assert doctor.examine() == []


def test_what_replaced_itself_is_not_doubled(connection: Connection) -> None:
    fw_id, launch_id = take(connection, worker=GONE, past=-100)
    action = FWAction(detours=chain()).to_dict()
    connection.db["launches"].update_one({"launch_id": launch_id}, {"$set": {"action": action}})
    doctor = Doctor(connection)
    [case] = doctor.examine()
    cured = doctor.cure(case)
    assert cured.action == "left"
    assert "a rerun would double" in cured.why
    assert connection.db["fireworks"].find_one({"fw_id": fw_id})["state"] == "RUNNING"


def test_a_firework_that_ends_while_it_is_cured_is_done(connection: Connection) -> None:
    fw_id, launch_id = take(connection, worker=GONE, past=-100)
    doctor = Doctor(connection)
    [case] = doctor.examine()
    connection.launchpad().complete_launch(launch_id, FWAction(), "COMPLETED")
    assert doctor.cure(case).action == "left"
    assert connection.db["fireworks"].find_one({"fw_id": fw_id})["state"] == "COMPLETED"


def test_of_two_doctors_one_reruns(connection: Connection) -> None:
    take(connection, worker=GONE, past=-100)
    doctors = [Doctor(connection), Doctor(connection)]
    cases = [doctor.examine()[0] for doctor in doctors]
    actions: list[str] = []
    threads = [
        threading.Thread(target=lambda d=doctor, c=case: actions.append(d.cure(c).action))  # type: ignore[misc]
        for doctor, case in zip(doctors, cases, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(actions) == ["left", "rerun"]
    assert len(connection.db["fireworks"].find_one({"name": "work"})["spec"][RECORD]) == 1


def test_a_lock_that_a_dead_worker_left_holds_nobody_up(connection: Connection) -> None:
    take(connection, worker=GONE, past=-100)
    connection.db["workflows"].update_one({}, {"$set": {"locked": True}})
    doctor = Doctor(connection)
    began = time.monotonic()
    assert doctor.cure(doctor.examine()[0]).action == "rerun"
    assert time.monotonic() - began < 10
    assert connection.db["workflows"].count_documents({"locked": {"$exists": True}}) == 0


def test_campaigns_are_told_apart(connection: Connection) -> None:
    take(connection, worker=GONE, past=-100)
    assert Doctor(connection, campaign="b").examine() == []
    assert len(Doctor(connection, campaign="a").examine()) == 1
    connection.db["fireworks"].update_many({}, {"$unset": {"spec.campaign": ""}})
    assert Doctor(connection).examine() == []  # somebody else's fireworks


def test_workers_know_their_job() -> None:
    code = "from stores.workers import this_worker; print(this_worker().get('job'))"
    for variables, expected in [
        ({"SLURM_JOB_ID": "12", "SLURM_CLUSTER_NAME": "lane"}, "{'scheduler': 'slurm', 'id': '12', 'cluster': 'lane'}"),
        ({"PBS_JOBID": "12.pbs1"}, "{'scheduler': 'pbs', 'id': '12.pbs1', 'cluster': ''}"),
        ({}, "None"),
    ]:
        done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
    assert this_job({"SLURM_JOB_ID": ""}) == {}
