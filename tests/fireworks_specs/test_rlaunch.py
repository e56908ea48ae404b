"""A cluster's way: `launch`, then FireWorks' own rlaunch in another process carries the campaign to its end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from stores.connection import Connection

CONFIG = Path(__file__).parents[1] / "e2e" / "small_campaign.yaml"


@pytest.mark.slow
@pytest.mark.wire
def test_rlaunch_workers_carry_a_campaign_to_its_end(wire_connection: Connection, tmp_path: Path) -> None:
    from builders.run import build_campaign

    uri = wire_connection._uri
    assert uri is not None
    shutil.copy(CONFIG, tmp_path / "campaign.yaml")
    (tmp_path / "my_launchpad.yaml").write_text(f"host: {uri}\nuri_mode: true\nname: {wire_connection.db.name}\n")
    (tmp_path / "my_fworker.yaml").write_text("name: node1\ncategory: ''\nquery: '{}'\n")
    environment = os.environ | {"INV_DESIGN_WORKERS": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("INV_DESIGN_DATABASE", None)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-m", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    launched = call("inv_design.cli", "launch", "--database", uri, "--rounds", "0")
    assert launched.returncode == 0, launched.stderr
    assert "2 workflows added" in launched.stderr
    # rlaunch gets no word of the campaign: what to do is on the launchpad, where the records are too
    code = "fireworks.scripts.rlaunch_run"
    worked = call(code, "-l", "my_launchpad.yaml", "-w", "my_fworker.yaml", "rapidfire")
    assert worked.returncode == 0, worked.stderr[-2000:]
    states = wire_connection.db["fireworks"].distinct("state")
    assert states == ["COMPLETED"], worked.stdout[-2000:] + worked.stderr[-2000:]
    assert wire_connection.db["evaluations"].count_documents({"round": 0}) == 2
    build_campaign("small")
    labelled = wire_connection.db["candidate_summaries"].count_documents({"stage": "dft", "status": {"$ne": "waiting"}})
    assert labelled == wire_connection.db["calculations"].count_documents({"method": "surrogate"}) > 0
    provenance = wire_connection.db["calculations"].find_one({"method": "surrogate"})["provenance"]
    assert provenance["fw_id"] > 0
