"""check --queue: the script that qlaunch would submit, its files and times, and what Slurm says of it."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from fireworks_specs.worker_files import worker_files
from inv_design.cli import main
from inv_design.cli.check_queue import seconds_of_walltime

if TYPE_CHECKING:
    from collections.abc import Callable

    Findings = dict[str, dict[str, Any]]
    Check = Callable[..., Findings]

SBATCH = """#!/bin/sh
[ "$1" = --test-only ] || exit 99
cp "$2" "{folder}/submitted"
grep -q partition=nope "$2" && echo "allocation failure: Invalid partition name specified" >&2 && exit 1
echo "sbatch: Job 7 to start at 2026-01-01T00:00:00 using 16 processors on nodes n1 in partition cpu" >&2
"""


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Give a function that writes a cluster's files, changes the adapter for CPUs, and returns part -> finding."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH.format(folder=tmp_path), "rlaunch": "#!/bin/sh\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)

    def run(cluster: str = "slurm", *changes: tuple[str, str]) -> Findings:
        files = worker_files(cluster, database="mongodb://h/n", folder=tmp_path, programs=programs)
        for old, new in changes:
            assert old in files["my_qadapter_cpu.yaml"]
            files["my_qadapter_cpu.yaml"] = files["my_qadapter_cpu.yaml"].replace(old, new)
        for name, text in files.items():
            Path(name).write_text(text)
        return findings()

    return run


def findings(file: str = "my_qadapter_cpu.yaml") -> Findings:
    result = CliRunner().invoke(main, ["check", "--queue", file, "--json"])
    found = {finding["part"]: finding for finding in json.loads(result.stdout)}
    assert result.exit_code == (1 if any(f["state"] == "failed" for f in found.values()) else 0), result.stderr
    assert all(f["cure"] for f in found.values() if f["state"] == "failed")
    return found


def failed(found: Findings) -> set[str]:
    return {part for part, finding in found.items() if finding["state"] == "failed"}


def test_what_init_writes_is_what_slurm_is_asked_about(check: Check, tmp_path: Path) -> None:
    found = check()
    assert failed(found) == set()
    assert "worker 'cpu' takes dft" in found["files"]["text"]
    assert found["walltime"]["text"] == "the job ends after 24 h 00 min, its worker takes fireworks for 23 h 30 min"
    assert "sbatch would take it: Job 7 to start" in found["script"]["text"]
    script = (tmp_path / "submitted").read_text()
    assert "#SBATCH --ntasks=16\n" in script
    assert f"{tmp_path}/bin/rlaunch -l {tmp_path}/my_launchpad.yaml" in script
    assert not list(tmp_path.glob("FW_submit*"))


def test_a_partition_that_is_not_there_is_refused_in_slurms_words(check: Check) -> None:
    found = check("slurm", ("# queue: PARTITION", "queue: nope"))
    assert failed(found) == {"script"}
    assert "Invalid partition name specified" in found["script"]["text"]


def test_keys_that_the_template_has_not_are_told(check: Check) -> None:
    found = check("slurm", ("nodes: 1", "nnodes: 1"))
    assert failed(found) == {"adapter"}
    assert "has no nnodes, which no job gets" in found["adapter"]["text"]


def test_a_copied_folder_still_names_the_old_one(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob("*.yaml"):
        shutil.copy(file, copy)
    monkeypatch.chdir(copy)
    found = findings()
    assert failed(found) == {"files"}
    assert f"{tmp_path}/my_launchpad.yaml is of another folder" in found["files"]["text"]
    for file in tmp_path.glob("*.yaml"):
        file.unlink()
    assert f"{tmp_path}/my_launchpad.yaml does not exist; the one beside" in findings()["files"]["text"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("-l {folder}/", "-l ", "is searched for where a job starts"),
        ("{folder}/bin/rlaunch", "{folder}/gone/rlaunch", "is no program on this machine"),
        ("my_fworker_cpu", "my_qadapter_cpu", "is no worker"),
        ("JOBFLOW_CONFIG_FILE={folder}/jobflow", "JOBFLOW_CONFIG_FILE={folder}/flow", "does not exist"),
        ("exec {folder}/bin/rlaunch", "exec python", "calls no rlaunch"),
    ],
)
def test_files_that_a_job_would_not_find(check: Check, tmp_path: Path, old: str, new: str, says: str) -> None:
    found = check("slurm", (old.format(folder=tmp_path), new.format(folder=tmp_path)))
    assert failed(found) == {"files"}
    assert says in found["files"]["text"]


@pytest.mark.parametrize(
    ("old", "new", "state", "says"),
    [
        ('"24:00:00"', '"12:00:00"', "failed", "its worker takes fireworks for 23 h 30 min"),
        (" --timeout 84600", "", "info", "without --timeout"),
        ('walltime: "24:00:00"', "# none", "info", "no walltime"),
        ('signal: "B:TERM@300"', "# none", "info", "without `signal`"),
        ('"24:00:00"', "soon", "failed", "walltime 'soon' is no time"),
    ],
)
def test_the_wall_time_and_the_workers_timeout(check: Check, old: str, new: str, state: str, says: str) -> None:
    found = check("slurm", (old, new))["walltime"]
    assert found["state"] == state
    assert says in found["text"]


def test_pbs_cannot_be_asked_but_its_queue_and_times_are_looked_at(check: Check) -> None:
    found = check("pbs")
    assert failed(found) == set()
    assert found["script"]["state"] == "info"
    assert "PBS has no test of a script" in found["script"]["text"]
    assert failed(check("pbs", ("queue: workq", "# none"))) == {"adapter"}
    late = check("pbs", ("TERM 86100", "TERM 86500"))
    assert "its worker is ended after" in late["walltime"]["text"]


def test_what_is_no_adapter_is_said_in_one_line(check: Check, tmp_path: Path) -> None:
    check()
    assert "is no queue adapter: it has no '_fw_name'" in findings("my_fworker_cpu.yaml")["adapter"]["text"]
    assert "does not exist" in findings("none.yaml")["adapter"]["text"]
    (tmp_path / "broken.yaml").write_text("a: [")
    assert failed(findings("broken.yaml")) == {"adapter"}
    both = CliRunner().invoke(main, ["check", "--queue", "x", "--worker", "y"])
    assert both.exit_code == 2


@pytest.mark.parametrize(
    ("text", "slurm", "pbs"),
    [
        ("24:00:00", 86400, 86400),
        ("90", 5400, 90),
        ("10:30", 630, 630),
        ("1-12", 129600, None),
        ("1-0:30", 88200, None),
        ("2-01:02:03", 176523, None),
    ],
)
def test_wall_times_are_read_as_the_scheduler_does(text: str, slurm: float, pbs: float | None) -> None:
    assert seconds_of_walltime(text, "SLURM") == slurm
    if pbs is None:
        with pytest.raises(ValueError, match="is no time"):
            seconds_of_walltime(text, "PBS")
    else:
        assert seconds_of_walltime(text, "PBS") == pbs


def test_slurm_without_a_limit() -> None:
    assert seconds_of_walltime("UNLIMITED", "SLURM") is None
