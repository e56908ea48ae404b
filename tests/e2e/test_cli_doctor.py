"""doctor on the command line: a table, JSON, exit codes, and a scheduler made of recorded output."""

from __future__ import annotations

import json
import os
import stat
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import yaml
from click.testing import CliRunner
from fireworks import Firework, FWorker, Workflow

from fireworks_specs.firetasks.close import CloseTask
from fireworks_specs.steps import firework_key
from inv_design.cli import main
from inv_design.config import CampaignConfig
from stores.connection import connect
from stores.provenance import provenance
from stores.records import insert_campaign

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]


@pytest.fixture
def inv_design(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give a function that runs `inv-design` in the folder of a campaign without candidates."""
    raw = {"name": "stiff", "targets": {"bulk_modulus_vrh": "350 GPa"}}
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(raw))
    config = CampaignConfig.model_validate(raw)
    with connect("embedded", root=tmp_path):
        insert_campaign("stiff", config.model_dump(mode="json"), targets=config.targets, provenance=provenance())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INV_DESIGN_DATABASE", raising=False)
    return lambda *args: CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture
def lost(inv_design: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let a job of Slurm take a firework and time out; return the firework's id."""
    with connect("embedded", root=tmp_path) as connection:
        launchpad = connection.launchpad()
        spec = {"campaign": "stiff", "role": "work"}
        work = Firework([CloseTask(campaign="stiff", round=0)], spec=spec, name="work")
        launchpad.bulk_add_wfs([Workflow([work], metadata={"campaign": "stiff"})])
        firework, launch_id = launchpad.checkout_fw(FWorker(name="node1"), str(tmp_path), host="node1")
        job = {"scheduler": "slurm", "id": "5", "cluster": "lane"}
        worker = {"host": "node1", "pid": 1, "machine": "another", "job": job}
        expires = connection.now() - timedelta(seconds=1)
        key = firework_key(firework.fw_id, launch_id)
        connection.db["claims"].insert_one({"key": key, "holder": "x", "worker": worker, "expires_at": expires})
    for name, text in {"squeue": "echo '5|5|TIMEOUT|TimeLimit|node1'", "scontrol": "echo ClusterName = lane"}.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return int(firework.fw_id)


def test_doctor_finds_and_reruns(inv_design: Run, lost: int) -> None:
    found = inv_design("doctor")
    assert found.exit_code == 1
    assert "job 5 ended: TIMEOUT (TimeLimit)" in found.stdout
    assert "1 of 1 fireworks are lost; `inv-design doctor --fix` reruns them" in found.stderr
    told = inv_design("doctor", "--json", "--campaign", "stiff")
    assert told.exit_code == 1
    record = json.loads(told.stdout)
    assert (record["scheduler"], record["cluster"], record["lost"]) == ("slurm", "lane", 1)
    [firework] = record["fireworks"]
    assert (firework["fw_id"], firework["verdict"], firework["job"], firework["action"]) == (lost, "timeout", "5", None)
    fixed = inv_design("doctor", "--fix", "--json")
    assert fixed.exit_code == 0, fixed.stderr
    assert json.loads(fixed.stdout)["fireworks"][0]["action"] == "rerun"
    nothing = inv_design("doctor")
    assert nothing.exit_code == 0
    assert "0 lost (slurm)" in nothing.stderr
    shown = inv_design("status", "--json")
    assert json.loads(shown.stdout)["launchpad"]["fireworks"] == {"READY": 1}


def test_doctor_without_a_scheduler_goes_by_claims(inv_design: Run, lost: int, tmp_path: Path) -> None:
    assert lost
    with connect("embedded", root=tmp_path) as connection:
        renewed = connection.now() + timedelta(minutes=4)
        connection.db["claims"].update_one({}, {"$set": {"expires_at": renewed}})
    result = inv_design("doctor", "--queue", "none", "-v")
    assert result.exit_code == 0
    assert "its worker renews its claim" in result.stdout
    assert "0 lost (no scheduler here)" in result.stderr


def test_doctor_says_what_is_wrong_with_its_options(inv_design: Run) -> None:
    assert inv_design("doctor", "--again").exit_code == 2
    assert inv_design("doctor", "--campaign", "stif").exit_code == 1


@pytest.mark.parametrize("failed", [False, True])
def test_what_was_given_up_is_not_shown_as_waiting(inv_design: Run, tmp_path: Path, failed: bool) -> None:
    from fireworks import FWAction

    from fireworks_specs.recovery import recover

    with connect("embedded", root=tmp_path) as connection:
        launchpad = connection.launchpad()
        spec = {"campaign": "stiff", "role": "work"}
        chain = [Firework([CloseTask(campaign="stiff", round=0)], spec=spec, name="first")]
        for name in ("second", "third"):
            chain.append(Firework([CloseTask(campaign="stiff", round=0)], spec=spec, name=name, parents=[chain[-1]]))
        launchpad.bulk_add_wfs([Workflow(chain, metadata={"campaign": "stiff"})])
        _, first = launchpad.checkout_fw(FWorker(), str(tmp_path), host="node1")
        launchpad.complete_launch(first, FWAction(), "COMPLETED")
        _, second = launchpad.checkout_fw(FWorker(), str(tmp_path), host="node1")
        if failed:
            launchpad.complete_launch(second, FWAction(), "FIZZLED")
        assert recover(launchpad, "stiff", everything=True) == 3
    shown = inv_design("status", "--json")
    assert json.loads(shown.stdout)["launchpad"]["fireworks"] == {"COMPLETED": 1, "ARCHIVED": 2}
