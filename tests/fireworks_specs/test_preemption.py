"""Workers that are told to end, or killed: the firework goes back, what was computed stays, and the work goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from fireworks import FWorker
from pymatgen.core import Lattice, Structure

from fireworks_specs import preemption
from fireworks_specs.execution import launch, register_campaign
from fireworks_specs.firetasks.train import TrainTask
from fireworks_specs.preemption import Preempted, preemptible, put_back, safe_points, stop_here
from fireworks_specs.protocols import mlip_protocol
from fireworks_specs.steps import Step
from fireworks_specs.workflows import step_workflows
from inv_design.config import CampaignConfig
from stores.protocol import protocol_id
from stores.provenance import provenance
from stores.records import insert_structures
from stores.workers import is_dead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from stores.connection import Connection

CONFIG: dict[str, Any] = {
    "name": "small",
    "targets": {"bulk_modulus_vrh": "150 GPa"},
    "data": {"elements": ["Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt"], "exclude": [], "max_entries": 60},
    "generator": {
        "name": "con_cdvae", "pretrained": False, "samples_per_round": 8,
        "settings": {"joint_steps": 30, "decoder_steps": 8, "prior_steps": 8, "batch": 16},
    },
    "stages": {
        "predictor": {"model": "cgcnn", "committee": 2, "epochs": 10},
        "mlip": {"calculator": "emt"},
        "dft": {"backend": "surrogate", "calculator": "emt"},
    },
    "rounds": 0,
}  # fmt: skip
PATIENCE = 600.0


def wait_for(condition: Callable[[], bool], worker: Worker) -> None:
    """Wait until something is so; fail if the worker ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert worker.process.poll() is None, worker.said()
        assert time.monotonic() < deadline, worker.said()
        time.sleep(0.02)


class Worker:
    """FireWorks' own ``rlaunch rapidfire`` in a process of its own, on the fireworks that a query finds."""

    def __init__(self, connection: Connection, folder: Path, query: str, **environment: str) -> None:
        folder.mkdir(exist_ok=True)
        name, uri = connection.db.name, connection._uri
        (folder / "my_launchpad.yaml").write_text(f"host: {uri}\nuri_mode: true\nname: {name}\n")
        (folder / "my_fworker.yaml").write_text(f"name: node1\ncategory: ''\nquery: '{query}'\n")
        self.log = folder / "log"
        known = os.environ | {"INV_DESIGN_WORKERS": "1", "OMP_NUM_THREADS": "1", "INV_DESIGN_CHECKPOINT": "0"}
        known.pop("INV_DESIGN_DATABASE", None)
        words = ["fireworks.scripts.rlaunch_run", "-l", "my_launchpad.yaml", "-w", "my_fworker.yaml", "rapidfire"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", *words],
                cwd=folder, env=known | environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def said(self) -> str:
        return self.log.read_text()[-3000:]

    def stop(self, number: int) -> None:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        assert self.process.wait(timeout=60) == -number, self.said()


# -- trainings --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.wire
@pytest.mark.parametrize("kind", ["predictor", "generator"])
def test_a_training_goes_on_after_sigterm_and_sigkill(
    wire_connection: Connection, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    db, query = wire_connection.db, '{"spec.role": "work", "spec.step": "train", "spec._tasks.0.kind": "KIND"}'
    config = CampaignConfig.model_validate(CONFIG)
    assert launch(wire_connection, config) == 2
    key = f"train/small/0/{kind}"
    seen: set[str] = set()
    logs = []

    def saved() -> bool:
        versions = set(db["checkpoints"].distinct("version", {"key": key}))
        return len(versions - seen) > 0

    for number in (signal.SIGTERM, signal.SIGKILL):
        worker = Worker(wire_connection, tmp_path / "w", query.replace("KIND", kind))
        wait_for(saved, worker)
        worker.stop(number)
        logs.append(worker.said())
        seen |= set(db["checkpoints"].distinct("version", {"key": key}))
        assert seen
        assert db["models"].count_documents({}) == 0
        if number == signal.SIGKILL:
            assert db["claims"].count_documents({"key": key}) == 1
            assert launch(wire_connection, config) == 0  # the other kind's firework is still there
            add_training(wire_connection, kind)
        else:
            assert db["claims"].count_documents({}) == 0
            firework = db["fireworks"].find_one({"spec.role": "work", "spec._tasks.0.kind": kind, "state": "READY"})
            assert firework["launches"] == []
            assert len(firework["archived_launches"]) == 1
            assert db["fireworks"].count_documents({"state": "FIZZLED"}) == 0
            assert "it is READY again" in worker.said()
    worker = Worker(wire_connection, tmp_path / "w", query.replace("KIND", kind), INV_DESIGN_CHECKPOINT="30")
    assert worker.process.wait(timeout=PATIENCE) == 0, worker.said()
    for text in [*logs[1:], worker.said()]:
        assert f"{key} goes on from its checkpoint (" in text
    assert db["checkpoints"].count_documents({}) == 0
    assert db["claims"].count_documents({}) == 0
    [model] = db["models"].find()
    assert model["sha256"] == undisturbed(tmp_path, kind)


def add_training(connection: Connection, kind: str) -> None:
    """Put the training that was given up on the launchpad again."""
    for workflow in step_workflows(Step("small", 0, "train", (kind,)), rounds=0):
        connection.launchpad().add_wf(workflow)


def undisturbed(folder: Path, kind: str) -> str:
    """Return the SHA-256 of the model of the same campaign in another database, trained in one go."""
    code = (
        "import sys; from pathlib import Path; from stores.connection import connect\n"
        "from fireworks_specs.execution import register_campaign\n"
        "from fireworks_specs.firetasks.train import TrainTask\n"
        "from inv_design.config import CampaignConfig\n"
        "connection = connect('embedded', root=Path('.'))\n"
        "register_campaign(CampaignConfig.model_validate_json(Path('config.json').read_text()))\n"
        "TrainTask(campaign='small', round=0, kind=sys.argv[1]).work()\n"
        "print(connection.db['models'].find_one()['sha256'])\n"
    )
    place = folder / "quiet"
    place.mkdir()
    (place / "config.json").write_text(CampaignConfig.model_validate(CONFIG).model_dump_json())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, kind],
        cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()[-1]


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.wire
def test_a_batch_goes_on_after_sigterm_and_sigkill(wire_connection: Connection, tmp_path: Path) -> None:
    from fireworks_specs.recovery import recover
    from inv_design.mechanics.stages import measure_elasticities

    db, launchpad = wire_connection.db, wire_connection.launchpad()
    config = CampaignConfig.model_validate(CONFIG)
    register_campaign(config)
    metals = [("Al", "Ni"), ("Cu", "Pd"), ("Ag", "Au"), ("Al", "Cu"), ("Ni", "Pt"), ("Au", "Pd"), ("Ag", "Pt")]
    made = [Structure(Lattice.cubic(a), p, [[0.0] * 3, [0.5] * 3]) for p in metals for a in (2.9, 3.1)]
    ids = insert_structures(made, [{"kind": "ingested", "id": "test"}] * len(made), provenance())
    step = Step("small", 0, "mlip", (tuple(ids),))
    where = {"kind": "elastic", "protocol_id": protocol_id(mlip_protocol(config))}

    def computed() -> int:
        return int(db["calculations"].count_documents(where))

    for workflow in step_workflows(step, rounds=0):
        launchpad.add_wf(workflow)
    query, before = '{"spec.role": "work"}', 0
    for number in (signal.SIGTERM, signal.SIGKILL):
        worker = Worker(wire_connection, tmp_path / "w", query)
        wait_for(lambda before=before: computed() > before + 1, worker)  # type: ignore[misc]
        worker.stop(number)
        assert before < computed() < len(ids), worker.said()
        before = computed()
        if number == signal.SIGTERM:
            assert db["claims"].count_documents({}) == 0
            assert db["fireworks"].count_documents({"state": "READY"}) == 1
        else:
            assert recover(launchpad, "small", everything=False) == 2
            for workflow in step_workflows(step, rounds=0):
                launchpad.add_wf(workflow)
    began = {c["structure_id"]: c["_id"] for c in db["calculations"].find(where)}
    worker = Worker(wire_connection, tmp_path / "w", query)
    assert worker.process.wait(timeout=PATIENCE) == 0, worker.said()
    found = {c["structure_id"]: c for c in db["calculations"].find(where)}
    assert computed() == len(found) == len(ids)
    assert all(found[i]["_id"] == identity for i, identity in began.items())  # nothing is computed twice
    # killed between a result and its claim's release, a worker leaves the claim of a result that nobody asks for again
    left = {claim["key"] for claim in db["claims"].find() if is_dead(claim["worker"])}
    assert db["claims"].count_documents({}) == len(left) <= 1
    assert db["checkpoints"].count_documents({}) == 0
    stage = config.stages.mlip
    alone = measure_elasticities(
        made, calculator="emt", fmax=stage.fmax, max_steps=stage.max_steps, keep_structure=stage.keep_structure
    )
    for index, record in alone:
        assert found[ids[index]]["state"] == record["state"]
        assert found[ids[index]]["results"].get("bulk_modulus_vrh") == record["results"].get("bulk_modulus_vrh")


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def unhandled() -> Iterator[None]:
    """Nobody handles the signals; a shell starts what runs in its background with Ctrl-C ignored."""
    before = {number: signal.signal(number, default) for number, default in preemption.DEFAULTS.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("unhandled")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_block_and_the_handlers_go_with_it(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def work() -> None:
        with preemptible():
            os.kill(os.getpid(), number)
            time.sleep(5.0)

    with pytest.raises(Preempted, match=number.name):
        work()
    assert signal.getsignal(number) == before
    assert not preemption.is_asked_to_stop()
    stop_here()  # nothing is left of it


def test_a_signal_waits_for_the_next_safe_point() -> None:
    reached = []

    def work() -> None:
        with preemptible(), safe_points():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # said twice, as to a group of processes
            time.sleep(0.05)
            reached.append("the end of the step")
            stop_here()
            reached.append("the next step")

    with pytest.raises(Preempted):
        work()
    assert reached == ["the end of the step"]


def test_a_computation_without_a_safe_point_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "GRACE", 0.2)
    began = time.monotonic()

    def work() -> None:
        with preemptible(), safe_points():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10.0)

    with pytest.raises(Preempted):
        work()
    assert 0.2 <= time.monotonic() - began < 5.0


def test_a_swallowed_stop_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "GRACE", 0.2)
    swallowed = []

    def work() -> None:
        with preemptible():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5.0)
            except BaseException as error:  # what a library may do
                swallowed.append(error)
            time.sleep(10.0)

    with pytest.raises(Preempted):
        work()
    assert len(swallowed) == 1


def test_signals_of_others_are_left_alone() -> None:
    taken: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
    try:
        with preemptible():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert taken == [signal.SIGTERM]
    inside: list[Any] = []

    def elsewhere() -> None:
        with preemptible():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert inside == [previous]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_handler_of_rlaunch_is_nobodys(number: signal.Signals) -> None:
    from fireworks.scripts.rlaunch_run import handle_interrupt

    def work() -> None:
        with preemptible():
            os.kill(os.getpid(), number)
            time.sleep(5.0)

    previous = signal.signal(number, handle_interrupt)
    try:
        with pytest.raises(Preempted, match=number.name):
            work()
        assert signal.getsignal(number) is handle_interrupt
    finally:
        signal.signal(number, previous)


def test_a_block_that_ends_before_it_was_stopped_is_the_last() -> None:
    def work() -> None:
        with preemptible(), safe_points():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    def following() -> None:
        with preemptible():
            stop_here()

    work()
    with pytest.raises(Preempted, match="SIGTERM"):
        following()
    following()  # it was heeded


def test_without_a_further_block_the_signal_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "GRACE", 0.2)
    taken: list[int] = []
    with preemptible(), safe_points():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
    previous = signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
    time.sleep(0.6)
    signal.signal(signal.SIGTERM, previous)
    assert taken == [signal.SIGTERM]
    with pytest.raises(Preempted), preemptible():
        stop_here()


def test_work_of_other_processes_has_no_safe_point(embedded_connection: Connection) -> None:
    from fireworks_specs.checkpoints import answers_kept

    reached = []

    def work(*, here: bool) -> None:
        with preemptible(), answers_kept(["one"], "i") as answers:
            if here:
                answers.recall(0)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            reached.append(here)
            answers.offer({})

    for here in (False, True):
        with pytest.raises(Preempted):
            work(here=here)
    assert reached == [True]


SIGNALLED = """
import io, os, signal, time
from pathlib import Path
from fireworks import Firework, FWorker, Workflow, explicit_serialize
from fireworks.core.rocket_launcher import launch_rocket
from fireworks.scripts.rlaunch_run import handle_interrupt
from fireworks_specs.firetasks.base import CampaignTask
from fireworks_specs.preemption import safe_points
from stores.connection import connect

class Told(CampaignTask):
    _fw_name = "{{signalled.Told}}"
    required_params = ("campaign", "told")
    def fetch_models(self): pass
    def work(self):
        print("begins", self.fw_id, flush=True)
        if self["told"] == "in time":
            with safe_points():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
        elif self["told"] == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5.0)

def rapidfire(*orders):
    launchpad = connect("embedded", root=Path(".")).launchpad()
    spec = {"_add_launchpad_and_fw_id": True}
    for told in orders:
        launchpad.add_wf(Workflow([Firework([Told(campaign=None, told=told)], spec=spec)]))
    signal.signal(signal.SIGINT, handle_interrupt)
    for _ in range(2):
        launch_rocket(launchpad, FWorker(), strm_lvl="CRITICAL", err_file=io.StringIO())
"""


@pytest.mark.parametrize(
    ("told", "number", "states"),
    [("in time", signal.SIGTERM, ["COMPLETED", "READY"]), ("Ctrl-C", signal.SIGINT, ["READY", "READY"])],
)
def test_a_worker_that_was_told_begins_nothing_more(
    tmp_path: Path, told: str, number: signal.Signals, states: list[str]
) -> None:
    from stores.connection import connect

    (tmp_path / "signalled.py").write_text(SIGNALLED)
    code = f"import signalled; signalled.rapidfire({told!r}, 'no')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == -number, done.stderr
    assert re.findall(r"^begins (\d)$", done.stdout, re.MULTILINE) == ["1"]
    with connect("embedded", root=tmp_path) as connection:
        found = connection.db["fireworks"].find({}, {"fw_id": 1, "state": 1})
        assert [f["state"] for f in sorted(found, key=lambda f: f["fw_id"])] == states


# -- the launchpad ----------------------------------------------------------------------------------------------------


def test_a_firework_goes_back_without_having_failed(connection: Connection, tmp_path: Path) -> None:
    launchpad = connection.launchpad()
    [workflow] = step_workflows(Step("small", 0, "train", ("predictor",)), rounds=0)
    launchpad.add_wf(workflow)
    firework, launch_id = launchpad.checkout_fw(FWorker(), str(tmp_path))
    assert put_back(launchpad, firework.fw_id, launch_id)
    states = {f["spec"]["role"]: f["state"] for f in connection.db["fireworks"].find()}
    assert states == {"work": "READY", "advance": "WAITING"}
    assert connection.db["launches"].find_one({"launch_id": launch_id})["state"] == "ARCHIVED"
    again, following = launchpad.checkout_fw(FWorker(), str(tmp_path))
    assert (again.fw_id, following) == (firework.fw_id, launch_id + 1)
    assert not put_back(launchpad, firework.fw_id, launch_id)  # it is another worker's now
    assert connection.db["fireworks"].find_one({"fw_id": firework.fw_id})["state"] == "RUNNING"


def test_a_reserved_firework_goes_back_from_its_job(connection: Connection, tmp_path: Path) -> None:
    launchpad = connection.launchpad()
    [workflow] = step_workflows(Step("small", 0, "train", ("predictor",)), rounds=0)
    launchpad.add_wf(workflow)
    firework, reserved = launchpad.reserve_fw(FWorker(), str(tmp_path))
    started, launch_id = launchpad.checkout_fw(FWorker(), str(tmp_path), firework.fw_id)
    assert started.fw_id == firework.fw_id
    assert launch_id == reserved
    assert put_back(launchpad, firework.fw_id, launch_id)
    assert connection.db["fireworks"].find_one({"fw_id": firework.fw_id})["state"] == "READY"
    assert launchpad.reserve_fw(FWorker(), str(tmp_path))[0].fw_id == firework.fw_id


def test_training_here_needs_no_signals(embedded_connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CampaignConfig.model_validate(CONFIG | {"stages": {**CONFIG["stages"], "predictor": {"model": "forest"}}})
    register_campaign(config)
    monkeypatch.setenv("INV_DESIGN_CHECKPOINT", "0")
    thread = threading.Thread(target=TrainTask(campaign="small", round=0, kind="predictor").work)
    thread.start()
    thread.join()
    assert embedded_connection.db["models"].count_documents({"kind": "predictor"}) == 1
    assert embedded_connection.db["checkpoints"].count_documents({}) == 0
