"""launch and status: what waits for workers, which rounds are wanted, whether the campaign is finished."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from fireworks import FWorker

from fireworks_specs.steps import firework_key
from inv_design.cli import main
from stores.connection import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]


@pytest.fixture
def inv_design(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give a function that runs `inv-design` in the folder of a small campaign of one round after round 0."""
    text = Path(__file__).with_name("small_campaign.yaml").read_text()
    (tmp_path / "campaign.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INV_DESIGN_WORKERS", "1")
    monkeypatch.delenv("INV_DESIGN_DATABASE", raising=False)
    return lambda *args: CliRunner().invoke(main, [str(a) for a in args])


def record(inv_design: Run) -> dict[str, Any]:
    result = inv_design("status", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def close_rounds(folder: Path, numbers: range, targets: tuple[float, ...] = (120.0, 150.0)) -> None:
    """Write the evaluations that close rounds, and take all fireworks for done."""
    with connect("embedded", root=folder) as connection:
        for number in numbers:
            for target in targets:
                evaluation = {"campaign": "small", "round": number, "target": target}
                connection.db["evaluations"].insert_one({"evaluation_id": f"e-{number}-{target}", **evaluation})
        connection.launchpad().fireworks.update_many({}, {"$set": {"state": "COMPLETED"}})
        for workflow in list(connection.db["workflows"].find()):
            states = dict.fromkeys(workflow["fw_states"], "COMPLETED")
            change = {"fw_states": states, "state": "COMPLETED"}
            connection.db["workflows"].update_one({"_id": workflow["_id"]}, {"$set": change})


def test_right_after_launch_status_says_that_work_waits_for_workers(inv_design: Run, tmp_path: Path) -> None:
    launched = inv_design("launch")
    assert "2 workflows added" in launched.stderr
    found = record(inv_design)
    assert found["launchpad"]["waits"] == {"round": 0, "step": "train"}
    assert found["launchpad"]["silent"] is None
    assert found["finished"] is False
    text = inv_design("status").stdout
    assert "round 0: train waits for workers (rlaunch or qlaunch)" in text
    assert "inv-design run" not in text
    again = inv_design("launch")
    assert again.exit_code == 0
    assert "nothing added: the campaign has work on the launchpad" in again.stderr
    assert "closed" not in again.stderr


def test_status_tells_of_a_worker_that_was_not_heard_of(inv_design: Run, tmp_path: Path) -> None:
    assert inv_design("launch").exit_code == 0
    with connect("embedded", root=tmp_path) as connection:
        firework, launch_id = connection.launchpad().checkout_fw(FWorker(name="n"), str(tmp_path), host="n")
        claim = {"key": firework_key(firework.fw_id, launch_id), "holder": "x", "worker": {}}
        connection.db["claims"].insert_one(claim | {"expires_at": connection.now() + timedelta(seconds=300)})
    assert record(inv_design)["launchpad"]["silent"] is None
    with connect("embedded", root=tmp_path) as connection:
        expires = {"expires_at": connection.now() - timedelta(seconds=40)}
        connection.db["claims"].update_one({"holder": "x"}, {"$set": expires})
    silent = record(inv_design)["launchpad"]["silent"]
    assert silent["fireworks"] == 1
    assert 40 <= silent["seconds"] < 100
    assert "1 firework's worker has not been heard of for more than 4" in inv_design("status").stdout
    assert record(inv_design)["launchpad"]["waits"] is None


@pytest.mark.parametrize(("option", "planned"), [((), 1), (("--rounds", "2"), 2)])
def test_finished_goes_by_the_rounds_that_were_asked_for(
    inv_design: Run, tmp_path: Path, option: tuple[str, ...], planned: int
) -> None:
    assert inv_design("launch", *option).exit_code == 0
    assert record(inv_design)["rounds_planned"] == planned
    close_rounds(tmp_path, range(planned))
    assert record(inv_design)["finished"] is False
    assert "finished: " not in inv_design("status").stdout
    close_rounds(tmp_path, range(planned, planned + 1), targets=(120.0,))
    assert record(inv_design)["finished"] is False  # a worker died while it wrote the evaluations
    close_rounds(tmp_path, range(planned, planned + 1), targets=(150.0,))
    found = record(inv_design)
    assert (found["finished"], found["rounds_planned"]) == (True, planned)
    words = f"all rounds, 0 to {planned}, are closed"
    assert f"finished: {words}; more with `--rounds {planned + 1}`" in inv_design("status").stdout
    launched = inv_design("launch", *option)
    assert launched.exit_code == 0
    assert f"nothing added: the campaign is finished: {words}" in launched.stderr


def test_fewer_rounds_than_the_campaigns_do_not_finish_it(inv_design: Run, tmp_path: Path) -> None:
    assert inv_design("launch", "--rounds", "0").exit_code == 0
    close_rounds(tmp_path, range(1))
    found = record(inv_design)
    assert (found["finished"], found["rounds_planned"]) == (False, 1)
    again = inv_design("launch", "--rounds", "0").stderr
    assert "nothing added: round 0 is closed; more with `--rounds 1` of run or launch" in again
    assert "2 workflows added" in inv_design("launch").stderr


def test_what_launch_ingests_is_said(inv_design: Run) -> None:
    assert "Ingest reference data: " in inv_design("launch").stderr


def test_a_mistyped_name_can_be_corrected(inv_design: Run, tmp_path: Path) -> None:
    path = tmp_path / "campaign.yaml"
    right = path.read_text()
    assert "name: substitution" in right
    path.write_text(right.replace("name: substitution", "name: substitutio"))
    for command in ("launch", "run"):
        refused = inv_design(command)
        assert refused.exit_code == 2
        assert "generator.name: no generator 'substitutio' is installed" in refused.stderr
    path.write_text(right)
    assert inv_design("launch").exit_code == 0
