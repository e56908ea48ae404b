"""What schedulers say is understood: real output of Slurm 22.05, PBS's formats, and whatever else a command writes."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fireworks_specs import schedulers
from fireworks_specs.schedulers import (
    LOG_FATES,
    SLURM_FATES,
    Pbs,
    Slurm,
    fate_of_log,
    find_scheduler,
    job_id_of_log,
    job_logs,
    parse_qstat,
    parse_sacct,
    parse_scontrol,
    parse_squeue,
    tail,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parent / "data"
SQUEUE = (DATA / "squeue.txt").read_text()
SCONTROL = (DATA / "scontrol.txt").read_text()
QSTAT = (DATA / "qstat.txt").read_text()
HISTORY = (DATA / "qstat_history.txt").read_text()


def test_a_real_squeue() -> None:
    fates = {job.id: job.fate for job in parse_squeue(SQUEUE).values()}
    assert fates == {
        "9": "completed", "3": "cancelled", "4": "cancelled", "7": "cancelled", "10": "cancelled", "1": "completed",
        "8": "completed", "2": "failed", "11": "failed", "12": "node_failed", "13": "waiting", "14": "waiting",
        "6": "preempted", "5": "timeout",
    }  # fmt: skip
    assert parse_squeue(SQUEUE)["12"].said == "NODE_FAIL (NodeDown)"
    assert parse_squeue(SQUEUE)["12"].hosts == "node1"
    assert parse_squeue("") == {}


def test_a_real_scontrol() -> None:
    jobs = {job.id: job for line in SCONTROL.splitlines() if (job := parse_scontrol(line)) is not None}
    assert jobs["2"].said == "FAILED (NonZeroExitCode), exit code 3"
    assert jobs["5"].fate == "timeout"
    assert jobs["12"].fate == "node_failed"
    assert parse_scontrol("slurm_load_jobs error: Invalid job id specified") is None


PARTS = """\
JobId=125 ArrayJobId=125 ArrayTaskId=3 JobName=my job UserId=a(1) JobState=OUT_OF_MEMORY Reason=OutOfMemory ExitCode=0:125 NodeList=n3
JobId=127 ArrayJobId=125 ArrayTaskId=2 JobName=w UserId=a(1) JobState=COMPLETED Reason=None ExitCode=0:0 NodeList=n2
JobId=126 ArrayJobId=125 ArrayTaskId=1 JobName=w UserId=a(1) JobState=RUNNING Reason=None ExitCode=0:0 NodeList=n1
JobId=200 HetJobId=200 HetJobOffset=0 JobName=w UserId=a(1) JobState=TIMEOUT Reason=None ExitCode=0:0 NodeList=n4
JobId=201 HetJobId=200 HetJobOffset=1 JobName=w UserId=a(1) JobState=RUNNING Reason=None ExitCode=0:0 NodeList=n5
"""  # noqa: E501


@pytest.mark.parametrize(
    ("job_id", "fate", "host"),
    [("125", "out_of_memory", "n3"), ("125_3", "out_of_memory", "n3"), ("126", "running", "n1"),
     ("200", "timeout", "n4"), ("200+1", "running", "n5")],
)  # fmt: skip
def test_of_the_parts_of_a_job_each_has_its_own_line(job_id: str, fate: str, host: str) -> None:
    job = parse_scontrol(PARTS, job_id)
    assert job is not None
    assert (job.id, job.fate, job.hosts) == (job_id, fate, host)
    assert parse_scontrol(PARTS, "12") is None


def test_what_a_user_writes_is_no_state() -> None:
    line = "JobId=9 JobName=a JobState=RUNNING b UserId=a(1) JobState=FAILED Reason=None ExitCode=1:0 NodeList=n "
    job = parse_scontrol(f"{line}Command=/x Comment=JobState=RUNNING Reason=None ExitCode=0:9 NodeList=m")
    assert job is not None
    assert (job.said, job.hosts) == ("FAILED, exit code 1", "n")


def test_a_suspended_job_neither_runs_nor_waits_for_its_start() -> None:
    assert parse_squeue("12|12|SUSPENDED|None|node1\n")["12"].fate == "suspended"
    assert parse_qstat("Job Id: 12.pbs1\n    job_state = S\n")["12"].fate == "suspended"


def test_an_element_of_an_array_is_known_by_both_ids() -> None:
    jobs = parse_squeue("1205|1200_4|RUNNING|None|node3\n")
    assert jobs["1205"].fate == jobs["1200_4"].fate == "running"


@pytest.mark.parametrize(
    ("line", "fate", "said"),
    [
        ("17|17|TIMEOUT|0:0|node1", "timeout", "TIMEOUT"),
        ("18|18|CANCELLED by 1000|0:0|node1", "cancelled", "CANCELLED by 1000"),
        ("19|19|OUT_OF_MEMORY|0:125|node1", "out_of_memory", "OUT_OF_MEMORY"),
        ("20|20|FAILED|0:9|node1", "killed", "FAILED, signal 9"),
        ("21|21|FAILED|1:0|node1", "failed", "FAILED, exit code 1"),
        ("22|22|COMPLETED|0:0|node1", "completed", "COMPLETED"),
        ("23|23|NODE_FAIL|1:0|None assigned", "node_failed", "NODE_FAIL"),
    ],
)
def test_sacct(line: str, fate: str, said: str) -> None:
    [job] = parse_sacct(line).values()
    assert (job.fate, job.said) == (fate, said)


def test_qstat() -> None:
    jobs = parse_qstat(QSTAT)
    assert {i: j.fate for i, j in jobs.items() if "." in i} == {"1021.pbs1": "waiting", "1022.pbs1": "running"}
    assert jobs["1022"].hosts == "node7,node8"
    assert "Insufficient amount of resource" in jobs["1021"].said
    history = parse_qstat(HISTORY)
    assert [history[f"10{n}"].fate for n in range(15, 20)] == [
        "completed", "timeout", "cancelled", "killed", "cancelled",
    ]  # fmt: skip
    torque = "Job Id: 179.host\n    Job_Name = STDIN\n    job_state = C\n    exit_status = -11\n\n"
    assert parse_qstat(torque)["179"].fate == "timeout"


@pytest.mark.parametrize("parse", [parse_squeue, parse_sacct, parse_qstat])
@given(text=st.text())
def test_what_is_no_job_list_is_refused_or_empty(parse: Callable[[str], dict[str, object]], text: str) -> None:
    with suppress(ValueError):  # and nothing else
        assert all(isinstance(name, str) for name in parse(text))


@given(
    st.dictionaries(
        st.integers(1, 10**8),
        st.tuples(st.sampled_from(sorted(SLURM_FATES)), st.text("abc()[]-,: ", max_size=40)),
        max_size=20,
    )
)
def test_every_line_of_squeue_is_a_job(rows: dict[int, tuple[str, str]]) -> None:
    text = "".join(f"{i}|{i}|{state}|{reason}|node1\n" for i, (state, reason) in rows.items())
    found = parse_squeue(text)
    assert {int(i): job.fate for i, job in found.items()} == {i: SLURM_FATES[state] for i, (state, _) in rows.items()}


@pytest.mark.parametrize(
    ("text", "fate"),
    [
        ("slurmstepd: error: *** JOB 5 ON node1 CANCELLED AT 2026-11-21T23:38:52 DUE TO TIME LIMIT ***", "timeout"),
        ("slurmstepd: error: *** JOB 6 ON node1 CANCELLED AT 2026-11-21T23:40:16 DUE TO PREEMPTION ***", "preempted"),
        ("slurmstepd-node1: error: *** JOB 10 ON node1 CANCELLED AT 2026-11-21T23:40:43 ***", "cancelled"),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=9.batch. Some of your", "out_of_memory"),
        ("*** JOB 8 ON node1 CANCELLED AT 2026-11-21T23:40:43 DUE TO NODE FAILURE, SEE LOG ***", "node_failed"),
        ("=>> PBS: job killed: walltime 152 exceeded limit 120", "timeout"),
        ("=>> PBS: job killed: mem 2097kb exceeded limit 1048kb", "out_of_memory"),
    ],
)  # fmt: skip
def test_logs_tell_how_a_job_ended(text: str, fate: str) -> None:
    assert fate_of_log(f"before\n{text}\nafter") == (fate, text)
    assert fate_of_log("Traceback (most recent call last):\nValueError: the time is over") is None
    assert fate in {known for _, known in LOG_FATES}


def test_the_log_of_a_job_is_found_from_a_fireworks_folder(tmp_path: Path) -> None:
    job = tmp_path / "block_1" / "launcher_1"
    firework = job / "launcher_2"
    firework.mkdir(parents=True)
    assert job_logs(firework, "17") == []
    for name in ("inv-design-17.out", "inv-design-17.error", "inv-design-170.error", "FW.json"):
        (job / name).write_text(name)
    assert [path.name for path in job_logs(firework, "17")] == ["inv-design-17.error", "inv-design-17.out"]
    assert {job_id_of_log(path) for path in job_logs(firework)} == {"17", "170"}
    pbs = tmp_path / "pbs"
    pbs.mkdir()
    (pbs / "inv-design.e1021").write_text("x")
    assert [job_id_of_log(path) for path in job_logs(pbs, "1021.pbs1")] == ["1021"]
    (job / "inv-design-17.error").write_bytes(b"\xff" * 20_000 + b"the end")
    assert tail(job / "inv-design-17.error").endswith("the end")
    assert tail(tmp_path / "nothing") == ""


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Give a way to put programs of one's own onto a PATH that has nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, script: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return write


def test_the_scheduler_is_told_by_its_commands(program: Callable[[str, str], None]) -> None:
    assert find_scheduler() is None
    program("qstat", "exit 0")
    assert isinstance(find_scheduler(), Pbs)
    program("squeue", "exit 0")
    assert isinstance(find_scheduler(), Slurm)
    assert isinstance(find_scheduler("pbs"), Pbs)
    assert find_scheduler("none") is None


def test_slurm_is_asked(program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_FORMAT", "%j")
    program("squeue", f'[ -z "$SQUEUE_FORMAT" ] && while read line; do echo "$line"; done < {DATA / "squeue.txt"}')
    show = f'while read line; do case "$line" in "JobId=$4 "*) echo "$line";; esac; done < {DATA / "scontrol.txt"}'
    program("scontrol", f'[ "$2" = config ] && echo "ClusterName             = lane" && exit 0; {show}')
    program("sacct", 'echo "99|99|TIMEOUT|0:0|node1"')
    queue = Slurm().ask(["2", "12", "99", "98"])
    assert queue.cluster == "lane"
    assert queue["2"] is not None
    assert queue["2"].said == "FAILED (NonZeroExitCode), exit code 3"
    assert queue["99"] is not None
    assert queue["99"].fate == "timeout"
    assert queue["98"] is None
    assert queue.owns({"scheduler": "slurm", "id": "2", "cluster": "lane"})
    assert not queue.owns({"scheduler": "slurm", "id": "2", "cluster": "another"})
    assert not queue.owns({"scheduler": "pbs", "id": "2"})
    # the accounting may be off
    program("sacct", "echo Slurm accounting storage is disabled >&2; exit 1")
    assert Slurm().ask(["99"])["99"] is None
    # what it says when the only job that it is asked for is forgotten
    program("squeue", "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1")
    assert Slurm().ask(["99"])["99"] is None


def test_pbs_is_asked(program: Callable[[str, str], None]) -> None:
    known = f'while IFS= read -r line; do printf "%s\\n" "$line"; done < {DATA}/'
    now = f"{known}qstat.txt; echo qstat: 1016.pbs1 Job has finished, use -x or -H >&2"
    program("qstat", f'if [ "$1" = -x ]; then {known}qstat_history.txt; exit 0; fi; {now}; exit 35')
    queue = Pbs().ask(["1022.pbs1", "1016.pbs1"])
    assert [job.fate for job in (queue["1022.pbs1"], queue["1016.pbs1"]) if job] == ["running", "timeout"]
    # TORQUE writes XML then
    program("qstat", f'if [ "$1" = -x ]; then echo "<Data></Data>"; exit 0; fi; {known}qstat.txt')
    assert Pbs().ask(["1022.pbs1", "1016.pbs1"])["1016.pbs1"] is None


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1", "Unable to contact slurm"),
        ("echo Welcome to the cluster", "wrote 'Welcome to the cluster'"),
        ("while :; do :; done", "did not answer"),
        (None, "not on PATH"),
    ],
)
def test_a_scheduler_that_does_not_answer_raises(
    program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, script: str | None, text: str
) -> None:
    monkeypatch.setattr(schedulers, "SECONDS", 0.5)
    for name in ("squeue", "qstat") if script else ():
        program(name, str(script))
    for scheduler in (Slurm(), Pbs()):
        with pytest.raises((OSError, ValueError), match=text):
            scheduler.ask(["1"])
        assert scheduler.ask([]).jobs == {}
