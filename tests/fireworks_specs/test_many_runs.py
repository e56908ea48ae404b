"""Many runs and workers of one campaign: what a lost one leaves behind holds nobody up, and nothing is done twice."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from fireworks import Firework, FWAction, FWorker, Workflow

from fireworks_specs import execution, recovery, steps
from fireworks_specs.firetasks.close import CloseTask
from fireworks_specs.firetasks.train import TrainTask
from fireworks_specs.steps import Step, firework_key
from inv_design.config import CampaignConfig
from stores.claims import LEASE_VARIABLE
from stores.provenance import provenance
from stores.records import insert_campaign, insert_model, model_id
from stores.steps import claim_step
from stores.workers import this_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from stores.connection import Connection


def chain() -> Workflow:
    """Return a piece of work and the advance that follows it."""
    spec = {"campaign": "a", "role": "work"}
    work = Firework([CloseTask(campaign="a", round=0)], spec=spec, name="work")
    after = spec | {"role": "advance", "_allow_fizzled_parents": True}
    return Workflow([work, Firework([CloseTask(campaign="a", round=0)], spec=after, name="advance", parents=[work])])


def test_a_failed_workflow_is_given_up_only_when_nobody_works_on_it(connection: Connection) -> None:
    launchpad = connection.launchpad()
    launchpad.bulk_add_wfs([chain()])
    node = FWorker(name="node7")
    _, launch_id = launchpad.checkout_fw(node, ".")
    launchpad.complete_launch(launch_id, FWAction(), "FIZZLED")
    advance, launch_id = launchpad.checkout_fw(node, ".")
    assert advance.name == "advance"
    assert execution.recover(launchpad, "a", everything=False) == 0
    launchpad.complete_launch(launch_id, FWAction(), "COMPLETED")
    assert sorted(launchpad.fireworks.distinct("state")) == ["COMPLETED", "FIZZLED"]
    assert execution.recover(launchpad, "a", everything=False) == 2
    # FireWorks asks whether the field exists: one that says False is a lock for ever
    assert connection.db["workflows"].count_documents({"locked": {"$exists": True}}) == 0
    assert connection.db["workflows"].distinct("state") == ["ARCHIVED"]


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Step:
    """Make the next step always the same one."""
    step = Step("a", 0, "close", ("all",))
    monkeypatch.setattr(steps, "next_step", lambda *_, **__: step)
    return step


def test_a_step_whose_workflows_were_not_added_is_not_taken(
    connection: Connection, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    launchpad = connection.launchpad()
    with monkeypatch.context() as patch:
        patch.setattr(type(launchpad), "bulk_add_wfs", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            execution.advance(launchpad, "a", None, rounds=1)  # type: ignore[arg-type]
    assert connection.db["steps"].count_documents({}) == 0
    assert execution.advance(launchpad, "a", None, rounds=1) == 1  # type: ignore[arg-type]
    assert connection.db["workflows"].distinct("metadata.key") == [step.key]


@pytest.mark.parametrize("lost", ["long ago", "on this machine"])
def test_a_step_whose_claimer_was_killed_before_it_added_it_is_taken_over(
    connection: Connection, step: Step, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, "30")
    now = connection.now()
    if lost == "long ago":
        claim_step(step.key, {"worker": {"host": "node7"}, "claimed_at": now - timedelta(seconds=31)})
    else:
        claim_step(step.key, {"worker": this_worker() | {"pid": 2**22 + 1}, "claimed_at": now})
    launchpad = connection.launchpad()
    assert execution.advance(launchpad, "a", None, rounds=1) == 1  # type: ignore[arg-type]
    assert execution.advance(launchpad, "a", None, rounds=1) == 0  # type: ignore[arg-type]
    assert connection.db["steps"].count_documents({}) == 1


def test_who_meets_a_new_claim_waits_for_its_workflows(
    connection: Connection, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, "30")
    claim_step(step.key, {"worker": this_worker() | {"machine": "another"}, "claimed_at": connection.now()})
    launchpad = connection.launchpad()
    workflow = Workflow([Firework([CloseTask(campaign="a", round=0)])], metadata={"key": step.key})
    late = threading.Timer(1.0, launchpad.bulk_add_wfs, ([workflow],))
    late.start()
    assert execution.advance(launchpad, "a", None, rounds=1, force=True) == 0  # type: ignore[arg-type]
    late.join()
    assert launchpad.workflows.count_documents({}) == 1


def test_forcing_a_step_adds_it_only_when_nothing_of_it_is_active(connection: Connection, step: Step) -> None:
    launchpad = connection.launchpad()

    def force() -> int:
        return execution.advance(launchpad, "a", None, rounds=1, force=True)  # type: ignore[arg-type]

    assert [force(), force()] == [1, 0]
    launchpad.fireworks.update_many({}, {"$set": {"state": "FIZZLED"}})
    assert [force(), force()] == [1, 0]
    assert sorted(connection.db["workflows"].distinct("metadata.key")) == [step.key, f"{step.key}#2"]


def insert_predictor(blob: bytes) -> str:
    made = provenance(command="test")
    return str(insert_model(blob, kind="predictor", name="x", provenance=made, campaign="a", round=0).model_id)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_model_that_arrives_later_does_not_replace_the_first(connection: Connection, reverse: bool) -> None:
    blobs = sorted([b"one", b"another"], key=lambda b: model_id(sha256(b).hexdigest(), None, "a", 0), reverse=reverse)
    first = insert_predictor(blobs[0])
    insert_predictor(blobs[1])
    assert steps.model_of_round("a", 0, "predictor").model_id == first


def test_two_workers_train_a_model_once(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def train(*_: object) -> None:
        trained.append(insert_predictor(f"model {len(trained)}".encode()))
        time.sleep(0.5)

    monkeypatch.setattr(TrainTask, "_train", train)
    in_two_threads(TrainTask(campaign="a", round=0, kind="predictor").work)
    assert len(trained) == 1
    assert connection.db["claims"].count_documents({}) == 0


def test_two_workers_close_a_round_once(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CampaignConfig.model_validate(
        {"name": "a", "targets": {"bulk_modulus_vrh": "150 GPa"}, "evaluation": {"targets": [100, 200]}}
    )
    insert_campaign("a", config.model_dump(mode="json"), targets=config.targets, provenance=provenance(command="test"))
    insert_model(b"g", kind="generator", name="x", provenance=provenance(command="test"), campaign="a", round=0)
    sampled: list[float] = []

    def sample(_: CloseTask, __: str, target: float) -> list[object]:
        sampled.append(target)
        time.sleep(0.3)
        return []

    monkeypatch.setattr(CloseTask, "_sample", sample)
    in_two_threads(CloseTask(campaign="a", round=0).work)
    assert sampled == [100, 200]
    assert connection.db["evaluations"].count_documents({}) == 2
    assert steps.round_closed("a", 0)


def in_two_threads(work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


ELSEWHERE = {"host": "node7", "pid": 1, "machine": "another"}
DEAD_HERE = this_worker() | {"pid": 2**22 + 1}


def checked_out(connection: Connection, *, worker: dict[str, object] | None = None) -> str:
    """Give a worker the first firework of a workflow; return the key of its claim."""
    launchpad = connection.launchpad()
    launchpad.bulk_add_wfs([chain()])
    node = FWorker(name="node7", env={"worker": worker or ELSEWHERE})
    firework, launch_id = launchpad.checkout_fw(node, ".")
    return firework_key(firework.fw_id, launch_id)


def launched_long_ago(connection: Connection) -> None:
    long_ago = (connection.now() - timedelta(hours=1)).isoformat()
    history = [{"state": "RUNNING", "created_on": long_ago, "updated_on": long_ago}]
    connection.db["launches"].update_many({}, {"$set": {"state_history": history}})


def given_up(connection: Connection) -> bool:
    count = execution.recover(connection.launchpad(), "a", everything=False)
    assert connection.db["fireworks"].distinct("state", {"state": "ARCHIVED"}) == (["ARCHIVED"] if count else [])
    return count == 2


@pytest.mark.parametrize(
    ("worker", "seconds", "gone"),
    [(ELSEWHERE, 10, False), (ELSEWHERE, -20, False), (ELSEWHERE, -31, True), (DEAD_HERE, 10, True),
     (this_worker(), 10, False), (DEAD_HERE | {"machine": "another namespace"}, 10, False)],
)  # fmt: skip
def test_a_firework_is_given_up_when_its_workers_claim_is_over(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, worker: dict[str, object], seconds: float, gone: bool
) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, "30")
    monkeypatch.setattr(recovery, "wait_for_signs", lambda *_: None)
    key = checked_out(connection, worker=worker)
    expires = connection.now() + timedelta(seconds=seconds)
    connection.db["claims"].insert_one({"key": key, "holder": "x", "worker": worker, "expires_at": expires})
    launched_long_ago(connection)
    assert given_up(connection) == gone
    assert connection.db["claims"].count_documents({}) == (0 if gone else 1)


@pytest.mark.parametrize("worker", [ELSEWHERE, this_worker(), DEAD_HERE])
def test_a_firework_without_a_claim_is_given_up_after_a_lease(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, worker: dict[str, object]
) -> None:
    monkeypatch.setattr(recovery, "SETTLE_SECONDS", 0.1)
    checked_out(connection, worker=worker)
    if worker is ELSEWHERE:  # what starts has no claim yet
        assert not given_up(connection)
        launched_long_ago(connection)
    assert given_up(connection)


def test_a_firework_that_ends_while_it_is_judged_is_done(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked_out(connection)
    launched_long_ago(connection)
    ends = {"$set": {"state": "COMPLETED"}}
    first = connection.db["fireworks"].find_one({"name": "work"})["fw_id"]
    monkeypatch.setattr(
        execution.time, "sleep", lambda _: connection.db["fireworks"].update_one({"fw_id": first}, ends)
    )
    assert not given_up(connection)


def test_a_task_claims_its_launch_while_it_works(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str] = []
    monkeypatch.setattr(CloseTask, "fetch_models", lambda _: None)
    monkeypatch.setattr(CloseTask, "work", lambda _: held.extend(connection.db["claims"].distinct("key")))
    key = checked_out(connection)
    task = CloseTask(campaign="a", round=0)
    task.launchpad, task.fw_id = connection.launchpad(), int(key.split("/")[1])
    task.run_task({})
    assert held == [key]
    assert connection.db["claims"].count_documents({}) == 0


def test_a_run_says_for_whom_it_waits_and_the_cure_works(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(execution, "SAY_SECONDS", (0.0, 60.0))
    key = checked_out(connection)
    connection.db["launches"].update_many({}, {"$set": {"host": "node7"}})
    fw_id = int(key.split("/")[1])
    launchpad = connection.launchpad()
    cure = threading.Timer(1.5, launchpad.rerun_fw, (fw_id,))
    cure.start()
    assert execution._wait_for_others(launchpad, "a", execution._Interrupt())
    cure.join()
    assert len([message for message in caplog.messages if message.startswith("waiting")]) == 1
    assert f"waiting for firework {fw_id} (work, RUNNING on node7)" in caplog.text
    assert f"inv-design lpad rerun_fws -i {fw_id}" in caplog.text
