"""Finished workflows of closed rounds leave the launchpad, and who ran what stays; whatever is killed goes on."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from fireworks import FWAction, FWorker

from fireworks_specs import archive
from fireworks_specs.archive import archive_workflows, archived_firework
from fireworks_specs.calculations import calculation_workflows
from fireworks_specs.steps import Step
from fireworks_specs.workflows import step_workflows
from stores.provenance import provenance

if TYPE_CHECKING:
    from pathlib import Path

    from stores.connection import Connection

COLLECTIONS = ("workflows", "fireworks", "launches")


def run_all(connection: Connection, *, fail: int = 0) -> None:
    """Let one worker run everything that is ready; the first ``fail`` fireworks fail."""
    launchpad = connection.launchpad()
    job = {"scheduler": "slurm", "id": "12", "cluster": "lane"}
    worker = FWorker(name="node7", env={"worker": {"host": "node7", "pid": 1, "machine": "m", "job": job}})
    while True:
        firework, launch_id = launchpad.checkout_fw(worker, ".", host="node7")
        if firework is None:
            return
        trace = {"_exception": {"_stacktrace": "Traceback\n  here\nValueError: no", "_details": None}}
        state, fail = ("FIZZLED", fail - 1) if fail else ("COMPLETED", 0)
        launchpad.complete_launch(launch_id, FWAction(stored_data=trace if state == "FIZZLED" else {}), state)


def add(connection: Connection, number: int, count: int) -> None:
    items = tuple((f"s-{i:020x}",) for i in range(count))
    connection.launchpad().bulk_add_wfs(step_workflows(Step("a", number, "dft", items), rounds=1))


def close(connection: Connection, number: int) -> None:
    connection.db["evaluations"].insert_one({"campaign": "a", "round": number, "provenance": provenance()})


def counts(connection: Connection) -> dict[str, int]:
    return {name: connection.db[name].count_documents({}) for name in (*COLLECTIONS, "archived_fireworks")}


def test_what_is_finished_leaves_and_its_story_stays(connection: Connection) -> None:
    add(connection, 0, 3)
    run_all(connection, fail=1)
    add(connection, 1, 2)  # an open round
    close(connection, 0)
    tried = archive_workflows(connection, "a", dry_run=True)
    assert (tried.workflows, tried.fireworks, tried.launches, tried.rounds) == (3, 6, 6, [0])
    assert counts(connection) == {"workflows": 5, "fireworks": 10, "launches": 6, "archived_fireworks": 0}
    assert connection.db["workflows"].count_documents({"locked": {"$exists": True}}) == 0
    report = archive_workflows(connection, "a")
    assert (report.workflows, report.kept) == (3, 0)
    assert counts(connection) == {"workflows": 2, "fireworks": 4, "launches": 0, "archived_fireworks": 6}
    failed = connection.db["archived_fireworks"].find_one({"state": "FIZZLED"})
    kept = archived_firework(connection, failed["fw_id"])
    assert kept is not None
    assert {k: kept[k] for k in ("campaign", "round", "step", "role", "task", "host", "worker", "job", "launches")} == {
        "campaign": "a", "round": 0, "step": "dft", "role": "work", "task": "DftTask", "host": "node7",
        "worker": "node7", "job": "12", "launches": 1,
    }  # fmt: skip
    assert kept["error"] == "ValueError: no"
    assert kept["started"] <= kept["ended"]
    assert kept["seconds"] >= 0
    assert archived_firework(connection, 10**6) is None
    run_all(connection)  # and the open round goes on
    assert connection.db["fireworks"].distinct("state") == ["COMPLETED"]
    assert archive_workflows(connection, "a").workflows == 0


def test_what_is_active_is_never_touched(connection: Connection) -> None:
    add(connection, 0, 4)
    launchpad = connection.launchpad()
    close(connection, 0)
    launchpad.checkout_fw(FWorker(), ".")
    report = archive_workflows(connection, "a")
    assert (report.workflows, report.kept) == (0, 4)
    assert counts(connection) == {"workflows": 4, "fireworks": 8, "launches": 1, "archived_fireworks": 0}
    assert connection.db["workflows"].count_documents({"locked": {"$exists": True}}) == 0
    # one that somebody writes at this moment
    run_all(connection)
    busy = connection.db["fireworks"].find_one({"state": "RUNNING"})["fw_id"]
    one = connection.db["workflows"].find_one({"nodes": {"$ne": busy}})["_id"]
    connection.db["workflows"].update_one({"_id": one}, {"$set": {"locked": True}})
    report = archive_workflows(connection, "a")
    assert (report.workflows, report.kept) == (2, 2)  # and the one that nobody has ended
    assert connection.db["workflows"].find_one({"_id": one})["locked"] is True


def test_only_what_is_old_leaves(connection: Connection) -> None:
    add(connection, 0, 1)
    run_all(connection)
    close(connection, 0)
    assert archive_workflows(connection, "a", older_than=timedelta(days=1)).workflows == 0
    assert archive_workflows(connection, "a", older_than=timedelta(0)).workflows == 1


@pytest.mark.parametrize("name", [*COLLECTIONS, "archived_fireworks"])
def test_killed_at_any_moment_it_goes_on(connection: Connection, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    add(connection, 0, 3)
    run_all(connection)
    close(connection, 0)

    class Killed(BaseException):
        pass

    original = type(connection.db[name])
    method = "insert_many" if name == "archived_fireworks" else "delete_many"
    real = getattr(original, method)

    def killed(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.name == name:
            raise Killed
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(original, method, killed)
        with pytest.raises(Killed):
            archive_workflows(connection, "a")
    archive_workflows(connection, "a")
    assert counts(connection) == {"workflows": 0, "fireworks": 0, "launches": 0, "archived_fireworks": 6}
    records = list(connection.db["archived_fireworks"].find({}))
    assert {record["launches"] for record in records} == {1}
    assert len({record["fw_id"] for record in records}) == 6


def test_after_a_reset_nothing_is_removed_that_is_not_kept(connection: Connection) -> None:
    add(connection, 0, 1)
    run_all(connection)
    close(connection, 0)
    assert archive_workflows(connection, "a").fireworks == 2
    connection.db["fw_id_assigner"].update_one({}, {"$set": {"next_fw_id": 1, "next_launch_id": 1}})
    add(connection, 0, 2)  # the first of them under the ids, and the names, of those that are kept
    run_all(connection)
    for dry_run in (True, False):
        with pytest.raises(RuntimeError, match="under the ids of 2 fireworks, such as 1, from before"):
            archive_workflows(connection, "a", dry_run=dry_run)
    assert counts(connection) == {"workflows": 1, "fireworks": 2, "launches": 2, "archived_fireworks": 4}
    assert connection.db["workflows"].count_documents({"locked": {"$exists": True}}) == 0
    connection.db["archived_fireworks"].delete_many({"fw_id": {"$in": [1, 2]}})
    assert archive_workflows(connection, "a").workflows == 1


def test_calculations_of_no_campaign_leave_by_themselves(connection: Connection) -> None:
    add(connection, 0, 1)
    ids = [f"s-{i:020x}" for i in range(3)]
    workflows = calculation_workflows("relax", ids, calculator="emt", settings={}, batch=1)
    connection.launchpad().bulk_add_wfs(workflows[:2])
    run_all(connection, fail=1)
    connection.launchpad().bulk_add_wfs(workflows[2:])
    assert archive_workflows(connection, None, older_than=timedelta(days=1)).workflows == 0
    report = archive_workflows(connection, None)
    assert (report.campaign, report.rounds, report.workflows, report.kept) == (None, [], 2, 1)
    assert counts(connection)["workflows"] == 2  # the campaign's, and the one that waits
    kept = connection.db["archived_fireworks"].find_one({"role": "calculation"})
    assert kept["task"] == "CalculateTask"
    assert "campaign" not in kept


def test_what_cannot_be_kept_stays(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    add(connection, 0, 1)
    run_all(connection)
    close(connection, 0)
    monkeypatch.setattr(archive, "COLLECTION", "elsewhere")
    collection = type(connection.db["elsewhere"])
    real = collection.insert_many
    monkeypatch.setattr(
        collection, "insert_many", lambda self, d, **o: None if self.name == "elsewhere" else real(self, d, **o)
    )
    with pytest.raises(RuntimeError, match="2 fireworks, such as 1, were not kept"):
        archive_workflows(connection, "a")
    assert counts(connection)["fireworks"] == 2


def test_the_command(embedded_connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inv_design.cli import main

    embedded_connection.db["campaigns"].insert_one({"name": "a", "targets": {}, "config": {}, "provenance": {}})
    add(embedded_connection, 0, 2)
    run_all(embedded_connection, fail=1)
    close(embedded_connection, 0)
    fw_id = embedded_connection.db["fireworks"].find_one({"state": "FIZZLED"})["fw_id"]
    embedded_connection.close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INV_DESIGN_DATABASE", "embedded")

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(main, list(arguments))

    young = json.loads(call("db", "archive-workflows", "--json").stdout)
    assert (young["workflows"], young["kept"], young["recent"]) == (0, 0, 2)  # nothing is 30 days old
    said = call("db", "archive-workflows").stderr
    assert "kept there: 0, and 2 that changed within 30 days (--older-than 0 takes them, too)" in said
    done = call("db", "archive-workflows", "--older-than", "0")
    assert done.exit_code == 0, done.stderr
    assert "2 workflows (4 fireworks, 4 launches) left the launchpad; closed rounds: 0" in done.stderr
    assert "--older-than" not in done.stderr
    none = call("db", "archive-workflows", "--calculations")
    assert none.exit_code == 0
    assert "0 workflows (0 fireworks, 0 launches) left the launchpad; kept there: 0" in none.stderr
    assert call("db", "archive-workflows", "--calculations", "--campaign", "a").exit_code == 2
    status = json.loads(call("status", "--json").stdout)["launchpad"]
    assert (status["fireworks"], status["failed"], status["archived"]) == ({}, [], 4)
    shown = call("lpad", "get_fws", "-i", str(fw_id), "-d", "all")
    assert json.loads(shown.stdout)["error"] == "ValueError: no"
