"""A campaign on a Slurm cluster as its user runs it: init, launch, two queue launchers that feed the queue, status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

KINDS = ("gpu", "cpu")


class SlurmCampaign:
    """A campaign's folder with the shipped workers' files, filled in as the how-to says.

    Parameters
    ----------
    slurm
        The cluster.
    folder
        Where campaign.yaml and the workers' files go; jobs start in folders below.
    uri
        Its database.
    text
        Its campaign.yaml, without the database.
    jobs
        Jobs that a queue launcher keeps in its partition.
    environment
        Further variables, for commands and jobs.
    edits
        Lines of the queue adapters that the user changes, key -> value; ``None`` takes a line out.
    """

    def __init__(
        self,
        slurm: Any,
        folder: Path,
        uri: str,
        text: str,
        *,
        jobs: int = 1,
        environment: Mapping[str, str] | None = None,
        edits: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        from pymongo import MongoClient

        self.slurm, self.folder, self.uri, self.jobs = slurm, folder, uri, jobs
        self.environment = os.environ | slurm.environment | {"OMP_NUM_THREADS": "1", **(environment or {})}
        self.environment["INV_DESIGN_JOURNAL"] = str(folder / "journal")
        self.environment.pop("INV_DESIGN_DATABASE", None)
        self.client: Any = MongoClient(uri)
        self.db: Any = self.client.get_default_database()
        self.rounds: int = yaml.safe_load(text)["rounds"]
        folder.mkdir()
        (folder / "campaign.yaml").write_text(f"{text}\ndatabase: {uri}\n")
        self.call("init", ".", "--cluster", "slurm")
        for kind in KINDS:
            self.edit(f"my_qadapter_{kind}.yaml", {"queue": kind, **(edits or {}).get(kind, {})})

    def edit(self, name: str, values: Mapping[str, Any]) -> None:
        """Set keys of one of the files, as with an editor: what else it says stays."""
        path = self.folder / name
        lines = path.read_text().splitlines()
        for key, value in values.items():
            lines = [line for line in lines if not re.match(rf"(# )?{key}:", line)]
            if value is not None:
                lines.append(f"{key}: {json.dumps(value)}")
        path.write_text("\n".join(lines) + "\n")

    def on_other_machines(self, kind: str) -> None:
        """Start each worker of a kind in a namespace of process ids of its own.

        To all others it then is on another machine: they cannot see that it died, and go by its claims.
        """
        path = self.folder / f"my_qadapter_{kind}.yaml"
        apart = "exec unshare --fork --pid --mount-proc --kill-child "
        path.write_text(path.read_text().replace("rocket_launch: exec ", f"rocket_launch: {apart}"))

    def call(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run inv-design and check its exit code."""
        done = self._run("inv_design.cli", *words)
        assert code is None or done.returncode == code, f"{' '.join(words)}: {done.stderr}"
        return done

    def qlaunch(self, kind: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run qlaunch for one kind of workers to its end."""
        done = self._run("fireworks.scripts.qlaunch_run", *self.files(kind), *words)
        assert done.returncode == 0, done.stderr
        return done

    def status(self) -> dict[str, Any]:
        """Return what ``status --json`` says."""
        found: dict[str, Any] = json.loads(self.call("status", "--json").stdout)
        return found

    def files(self, kind: str) -> list[str]:
        """Return the options that name the files of one kind of workers."""
        return ["-l", "my_launchpad.yaml", "-w", f"my_fworker_{kind}.yaml", "-q", f"my_qadapter_{kind}.yaml"]

    @contextmanager
    def fed(self) -> Iterator[None]:
        """Keep the queue filled, as two qlaunch on a login node do."""
        launchers = []
        options = ["rapidfire", "-m", str(self.jobs), "--nlaunches", "infinite", "--sleep", "1"]
        for kind in KINDS:
            with (self.folder / f"qlaunch_{kind}.log").open("ab") as log:
                words = ["fireworks.scripts.qlaunch_run", *self.files(kind), *options]
                launchers.append(self.start(*words, log=log))
        try:
            yield
            for kind, launcher in zip(KINDS, launchers, strict=True):
                assert launcher.poll() is None, f"qlaunch for {kind} ended: {self.log(f'qlaunch_{kind}.log')}"
        finally:
            for launcher in launchers:
                launcher.terminate()
            for launcher in launchers:
                launcher.wait()

    def start(self, module: str, *words: str, log: Any) -> subprocess.Popen[bytes]:
        """Start a program in the campaign's folder; its output goes to a file."""
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, *words],
            cwd=self.folder,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def finished(self) -> bool:
        """Return whether all rounds are closed and nothing of them is on the launchpad any more."""
        active = {"state": {"$in": ["READY", "WAITING", "RESERVED", "RUNNING"]}}
        closed = {d["round"] for d in self.db["evaluations"].find({}, {"round": 1})}
        return closed == set(range(self.rounds + 1)) and self.db["fireworks"].find_one(active) is None

    def wait_for_jobs(self, seconds: float) -> None:
        """Wait until the queue is empty."""
        deadline = time.monotonic() + seconds
        while jobs := self.slurm.jobs():
            assert time.monotonic() < deadline, f"jobs {jobs} after {seconds:g} s:\n{self.diagnosis()}"
            time.sleep(0.5)

    def scripts(self) -> dict[str, str]:
        """Return the scripts that were submitted, job's folder -> text."""
        return {str(path.parent): path.read_text() for path in self.folder.glob("block_*/launcher_*/FW_submit.script")}

    def diagnosis(self) -> str:
        """Return what tells why it does not go on: states, failures, the last outputs of jobs, Slurm's logs."""
        states = [
            f"{d['fw_id']} {d['name']} {d['state']}" for d in self.db["fireworks"].find().sort("fw_id", -1).limit(12)
        ]
        traces = [
            (d.get("action") or {}).get("stored_data", {}).get("_exception", {}).get("_stacktrace", "")[-800:]
            for d in self.db["launches"].find({"state": "FIZZLED"}).sort("launch_id", -1).limit(2)
        ]
        outputs = sorted(self.folder.glob("block_*/launcher_*/*.error"), key=lambda p: p.stat().st_mtime)[-3:]
        tails = [f"-- {path.name}\n{path.read_text(errors='replace')[-800:]}" for path in outputs]
        return "\n".join([*states, *traces, *tails, self.slurm.logs()])

    def log(self, name: str) -> str:
        """Return the end of a log in the campaign's folder."""
        return (self.folder / name).read_text(errors="replace")[-1500:]

    def end(self) -> None:
        """Cancel its jobs and let go of the database."""
        for job in self.slurm.jobs():
            self.slurm.call("scancel", job)
        self.wait_for_jobs(90)
        self.client.close()

    def _run(self, module: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-m", module, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
