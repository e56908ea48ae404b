"""The workers' files: `init --cluster` fills them in, FireWorks renders them for Slurm and PBS, qlaunch submits."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from click.testing import CliRunner

from fireworks_specs.worker_files import CLUSTERS, KINDS, database_name, worker_files
from fireworks_specs.workflows import CATEGORIES
from inv_design.cli import main

if TYPE_CHECKING:
    from stores.connection import Connection

URI = "mongodb://db.example.org:27017/alloys"
FAKE_QSUB = """#!/bin/sh
cp "$1" "{folder}/submitted-$$"
echo "$$" >> "{folder}/queue"
echo "$$.server"
"""
# as PBS prints it: two rows of header, one job per line
FAKE_QSTAT = """#!/bin/sh
[ -f "{folder}/queue" ] || exit 0
echo "                                                            Req'd  Req'd   Elap"
echo "Job ID          Username Queue    Jobname    SessID NDS TSK Memory Time  S Time"
echo "--------------- -------- -------- ---------- ------ --- --- ------ ----- - -----"
for id in $(cat "{folder}/queue"); do
  echo "$id.server     $(id -un)     workq    inv-design    --    1   8    --  24:00 Q   --"
done
"""


def init(*words: str) -> str:
    result = CliRunner().invoke(main, ["init", *words])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def rendered(folder: Path, kind: str, launch_dir: Path) -> str:
    """Return the script that FireWorks would submit."""
    from fireworks.user_objects.queue_adapters.common_adapter import CommonAdapter

    adapter = CommonAdapter.from_dict(yaml.safe_load((folder / f"my_qadapter_{kind}.yaml").read_text()))
    script: str = adapter.get_script_str(str(launch_dir))
    return script


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_scripts_are_complete(cluster: str, kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    init(str(tmp_path / "c"), "--cluster", cluster, "--database", URI)
    script = rendered(tmp_path / "c", kind, tmp_path)
    assert not [w for w in recwarn if "not present in template" in str(w.message)]  # FireWorks knows every key
    assert not re.search(r"FOLDER|PROGRAMS|DATABASE_|\$\$", script)
    directives = {"slurm": "#SBATCH", "pbs": "#PBS"}[cluster]
    wanted = {
        ("slurm", "gpu"): ["--ntasks=1", "--cpus-per-task=8", "--gres=gpu:1"],
        ("slurm", "cpu"): ["--ntasks=16", "--cpus-per-task=1"],
        ("pbs", "gpu"): ["-l nodes=1:ppn=8:gpus=1", "-q workq"],
        ("pbs", "cpu"): ["-l nodes=1:ppn=16", "-q workq"],
    }[cluster, kind]
    common = {"slurm": ["--time=24:00:00", "--signal=B:TERM@300"], "pbs": ["-l walltime=24:00:00"]}[cluster]
    for line in wanted + common:
        assert f"{directives} {line}\n" in script
    (last,) = [line for line in script.splitlines() if "rlaunch" in line]
    assert last.startswith("exec ")  # else a signal would reach the shell only
    for path in re.findall(r" (/\S+)", last):
        assert Path(path).exists(), path
    # the worker stops to take fireworks, then is told to end, then the queue's time is over
    words = last.split()
    stop = int(words[words.index("--timeout") + 1])
    end = 86400 - 300 if cluster == "slurm" else int(words[words.index("--signal=TERM") + 1])
    assert stop < end < 24 * 3600
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_two_kinds_of_workers_take_every_category(tmp_path: Path) -> None:
    files = worker_files("slurm", database=URI, folder=tmp_path, programs=Path(sys.executable).parent)
    categories = {kind: yaml.safe_load(files[f"my_fworker_{kind}.yaml"])["category"] for kind in KINDS}
    assert categories == {"gpu": ["train", "mlip"], "cpu": ["dft"]}
    assert set(CATEGORIES.values()) == {c for found in categories.values() for c in found}


def test_launchpad_and_jobstore_name_the_campaigns_database(tmp_path: Path) -> None:
    from fireworks import LaunchPad

    said = init(str(tmp_path / "c"), "--cluster", "slurm", "--database", "mongodb://me@h1:1,h2:2/alloys?tls=true")
    launchpad = yaml.safe_load((tmp_path / "c" / "my_launchpad.yaml").read_text())
    assert launchpad["host"] == "mongodb://me@h1:1,h2:2/alloys?tls=true"
    assert launchpad["name"] == "alloys"
    assert "need the password" in said
    assert yaml.safe_load((tmp_path / "c" / "campaign.yaml").read_text())["database"] == launchpad["host"]
    for name in ("my_launchpad.yaml", "jobflow.yaml"):  # where a password will stand
        assert stat.S_IMODE((tmp_path / "c" / name).stat().st_mode) == 0o600
    store = yaml.safe_load((tmp_path / "c" / "jobflow.yaml").read_text())["JOB_STORE"]
    assert store["docs_store"]["database"] == store["additional_stores"]["data"]["database"] == "alloys"
    init(str(tmp_path / "d"), "--cluster", "pbs", "--database", "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=1")
    made = LaunchPad.from_file(str(tmp_path / "d" / "my_launchpad.yaml"))
    assert made.db.name == "inv_design"
    assert database_name("mongodb+srv://h/x?y=z") == "x"


def test_files_are_added_to_a_campaign_and_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    init(str(folder), "--database", URI)
    before = (folder / "campaign.yaml").read_text()
    init(str(folder), "--cluster", "slurm")
    assert (folder / "campaign.yaml").read_text() == before
    assert URI in (folder / "my_launchpad.yaml").read_text()
    again = CliRunner().invoke(main, ["init", str(folder), "--cluster", "pbs"])
    assert again.exit_code == 1
    assert "my_launchpad.yaml exists" in again.stderr
    assert "SLURM" in (folder / "my_qadapter_cpu.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["c"], "'embedded' is a file of one process"),
        (["a b", "--database", URI], "cannot stand in a queue script"),
        (["c", "--database", "mongodb://me:secret@h/x"], "contains a password"),
    ],
)
def test_what_cannot_work_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INV_DESIGN_DATABASE", raising=False)
    result = CliRunner().invoke(main, ["init", *words, "--cluster", "slurm"])
    assert result.exit_code != 0
    assert said in result.stderr
    assert "secret" not in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.wire
def test_qlaunch_fills_a_pbs_queue(wire_connection: Connection, tmp_path: Path) -> None:
    """PBS itself cannot be had here: a qsub that keeps what it gets, and a qstat that prints what PBS prints."""
    from fireworks import Firework, ScriptTask

    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in (("qsub", FAKE_QSUB), ("qstat", FAKE_QSTAT)):
        (bin_folder / name).write_text(text.format(folder=tmp_path))
        (bin_folder / name).chmod(0o755)
    uri = wire_connection._uri
    assert uri is not None
    folder = tmp_path / "c"
    init(str(folder), "--cluster", "pbs", "--database", uri)
    launchpad = wire_connection.launchpad()
    for _ in range(4):
        launchpad.add_wf(Firework([ScriptTask(script="true")], spec={"_category": "dft"}))
    environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}

    def qlaunch(kind: str) -> list[Path]:
        files = ["-l", "my_launchpad.yaml", "-w", f"my_fworker_{kind}.yaml", "-q", f"my_qadapter_{kind}.yaml"]
        options = ["-m", "2", "--nlaunches", "2", "--timeout", "1", "--sleep", "1"]  # one job at most: it waits after
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "fireworks.scripts.qlaunch_run", *files, "rapidfire", *options],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return sorted(tmp_path.glob("submitted-*"))

    assert qlaunch("gpu") == []  # nothing of its categories
    (script,) = qlaunch("cpu")
    assert "my_fworker_cpu.yaml" in script.read_text()
    assert len(qlaunch("cpu")) == 2
    assert len(qlaunch("cpu")) == 2  # two jobs wait in the queue: qstat is read
