"""Wall times that are shorter than the work: what is finished of it counts, and what cannot be finished ends."""

from __future__ import annotations

import contextlib
import io
import signal
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from fireworks import Firework, FWorker, Workflow
from fireworks.core.rocket_launcher import launch_rocket
from pymatgen.core import Lattice, Structure

from fireworks_specs import preemption
from fireworks_specs.backends.surrogate import Surrogate
from fireworks_specs.firetasks.dft import DftTask
from fireworks_specs.firetasks.train import TrainTask
from fireworks_specs.preemption import IN_VAIN, TOO_SHORT, Preempted, put_back
from inv_design.config import CampaignConfig
from inv_design.mechanics.stages import failed
from stores import checkpoints
from stores.provenance import provenance
from stores.records import insert_campaign, insert_structures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fireworks import FiretaskBase, LaunchPad

    from stores.connection import Connection

SURROGATE = {"backend": "surrogate", "calculator": "emt", "retries": 1}
CONFIG = CampaignConfig.model_validate(
    {
        "name": "c",
        "targets": {"bulk_modulus_vrh": "150 GPa"},
        "stages": {"mlip": {"calculator": "emt"}, "dft": SURROGATE},
    }
)
COPPER = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.65), ["Cu"], [[0, 0, 0]]).get_primitive_structure()


@pytest.fixture(autouse=True)
def _long_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "BRIEF", 0.0)


def add(launchpad: LaunchPad, task: FiretaskBase) -> int:
    spec = {"campaign": "c", "role": "work", "_add_launchpad_and_fw_id": True}
    return next(iter(launchpad.add_wf(Workflow([Firework([task], spec=spec)])).values()))


def finish(connection: Connection, **metadata: str) -> None:
    """Store the output of a job with these metadata."""
    connection.db["outputs"].insert_one({"uuid": str(uuid.uuid4()), "index": 1, "metadata": metadata})


def stop(launchpad: LaunchPad, folder: Path) -> bool:
    """Launch the firework that is READY and give it back; return whether it is READY again."""
    firework, launch_id = launchpad.checkout_fw(FWorker(), str(folder))
    return put_back(launchpad, firework.fw_id, launch_id)


# -- giving back ------------------------------------------------------------------------------------------------------


def test_a_firework_that_leaves_nothing_is_not_given_back_for_ever(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launchpad = connection.launchpad()
    fw_id = add(launchpad, DftTask(campaign="c", round=0, structure_ids=["s-1"]))
    stored = [
        lambda: finish(connection, structure_id="s-1", work="w-1"),
        lambda: connection.db["calculations"].insert_one({"structure_id": "s-1"}),
        lambda: checkpoints.save("s-1/elastic/p", "i", {}, {"step": 1}, connection=connection),
        lambda: checkpoints.save("s-1/elastic/p", "i", {}, {"step": 2}, connection=connection),
    ]
    for step in stored:
        assert [stop(launchpad, tmp_path) for _ in range(IN_VAIN - 1)] == [True] * (IN_VAIN - 1)
        step()
        assert stop(launchpad, tmp_path)
    for nothing in ({"work": "w-1", "adopted": "u"}, {}, {"structure_id": "s-2", "work": "w-0"}):  # of this crystal
        finish(connection, **{"structure_id": "s-1", **nothing})
    checkpoints.save("s-2/elastic/p", "i", {}, {"step": 1}, connection=connection)
    with monkeypatch.context() as soon:
        soon.setattr(preemption, "BRIEF", 300.0)
        assert all(stop(launchpad, tmp_path) for _ in range(2 * IN_VAIN))
    assert [stop(launchpad, tmp_path) for _ in range(IN_VAIN)] == [True] * (IN_VAIN - 1) + [False]
    firework = launchpad.get_fw_by_id(fw_id)
    assert firework.state == "FIZZLED"
    assert firework.launches[-1].action.stored_data["_exception"]["_stacktrace"] == TOO_SHORT


def test_a_training_is_given_back_whatever_it_has_left(embedded_connection: Connection, tmp_path: Path) -> None:
    launchpad = embedded_connection.launchpad()
    add(launchpad, TrainTask(campaign="c", round=0, kind="predictor"))
    assert all(stop(launchpad, tmp_path) for _ in range(2 * IN_VAIN))


# -- stage III --------------------------------------------------------------------------------------------------------


class Ended(BaseException):
    """In place of the end of the process."""


class Slow:
    """A backend, each of whose launches ends as the plan says: by a signal, or by its time; ``+`` finishes a job."""

    def __init__(self, connection: Connection, structure_id: str) -> None:
        self.connection, self.structure_id = connection, structure_id
        self.plan: list[str] = []
        self.launches = 0

    def compute(self, _: list[Any], __: CampaignConfig) -> Iterator[tuple[int, dict[str, Any]]]:
        self.launches += 1
        what = self.plan.pop(0)
        if what.startswith("+"):
            finish(self.connection, structure_id=self.structure_id, work=f"w-{self.launches}")
        if what.endswith("signal"):
            raise Preempted(signal.SIGTERM)
        yield 0, failed("VASP was stopped") | {"reason": "out_of_time"}

    def run(self, *plan: str) -> list[str]:
        """Launch until the plan is done; return the firework's states after each launch."""
        self.plan = list(plan)
        launchpad = self.connection.launchpad()
        states = []
        while launchpad.fireworks.find_one({"state": "READY"}):
            with contextlib.suppress(Ended):
                launch_rocket(launchpad, FWorker(), strm_lvl="CRITICAL", err_file=io.StringIO())
            states.append(launchpad.fireworks.find_one({}, {"state": 1})["state"])
            if not self.plan and states[-1] == "READY":
                break
        return states

    def records(self) -> list[tuple[str, str, int | None]]:
        found = self.connection.db["calculations"].find({"method": "surrogate"})
        return [(c["state"], c["reason"], c.get("attempt")) for c in found]


@pytest.fixture
def slow(embedded_connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slow:
    def end(_: int) -> None:
        raise Ended

    monkeypatch.setattr(preemption, "ignore_signals", lambda: None)
    monkeypatch.setattr(preemption, "end_process", end)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.chdir(tmp_path)
    insert_campaign("c", CONFIG.model_dump(mode="json"), targets=CONFIG.targets, provenance=provenance())
    (identity,) = insert_structures([COPPER], [{"kind": "generated"}], provenance())
    slow = Slow(embedded_connection, identity)
    monkeypatch.setattr(Surrogate, "compute", lambda _, crystals, config: slow.compute(crystals, config))
    add(embedded_connection.launchpad(), DftTask(campaign="c", round=0, structure_ids=[identity]))
    return slow


@pytest.mark.parametrize("end", ["signal", "time"])
def test_launches_that_finish_jobs_are_no_failed_attempts(slow: Slow, end: str) -> None:
    assert slow.run(*[f"+{end}"] * 6) == ["READY"] * 6  # of a stage with one retry
    assert slow.records() == []


def test_a_crystal_that_no_wall_time_is_enough_for_fails(slow: Slow) -> None:
    in_vain = ["time"] * (IN_VAIN - 1)
    assert slow.run("+time", *in_vain, "time") == ["READY"] * IN_VAIN + ["COMPLETED"]
    assert slow.records() == [("failed", "out_of_time", None)]


def test_a_crystal_that_signals_stop_each_time_fails(slow: Slow) -> None:
    states = slow.run(*["signal"] * (2 * IN_VAIN))
    assert slow.records() == [("failed", "out_of_time", None), ("failed", "out_of_time", 2)]
    assert slow.launches == 2 * IN_VAIN
    assert states == ["READY"] * (2 * IN_VAIN)
    assert slow.run() == ["COMPLETED"]  # nothing is left to compute
    (calculation, _) = slow.connection.db["calculations"].find({"method": "surrogate"})
    assert calculation["error"] == TOO_SHORT


def test_outside_of_a_job_no_time_is_over(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    assert slow.run("+time") == ["COMPLETED"]
    assert slow.records() == [("failed", "out_of_time", None)]
