"""jobflow's JobStore on the campaign's database: documents, large objects, and no address in anything it writes."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from jobflow import Flow, Maker, Response, job

from fireworks_specs.flows import JobFailed, run_flow, work_of
from fireworks_specs.jobstore import BLOBS, OUTPUTS, campaign_job_store

if TYPE_CHECKING:
    from pathlib import Path

    from stores.connection import Connection

RAN: list[str] = []


@job(data="density")
def dense(size: int) -> dict[str, Any]:
    return {"density": list(range(size)), "total": size * (size - 1) // 2}


@job
def total(result: dict[str, Any]) -> int:
    return int(np.sum(result["density"]))


@dataclass
class Doubling(Maker):
    """Doubles a number; the folder is where it would take files from."""

    name: str = "doubling"
    factor: float = 2.0
    fails: bool = False
    write_input_set_kwargs: dict | None = None

    @job
    def make(self, number: float, prev_dir: str | None = None) -> Response[dict[str, float]]:
        RAN.append(f"{self.factor}*{number} {prev_dir}")
        if self.fails:
            raise ValueError("it does not double")
        self.write_input_set_kwargs = {"from_prev": prev_dir is not None}  # as atomate2's makers do
        return Response(output={"number": self.factor * number})


@job
def spread(number: float, maker: Doubling) -> Response[Any]:
    jobs = [maker.make(number + step) for step in (1, 2)]
    return Response(replace=Flow(jobs, output=[j.output["number"] for j in jobs]))


@job
def largest(numbers: list[float]) -> float:
    return max(numbers)


def flow_of(*, fails: bool = False, factor: float = 3.0) -> Flow:
    first = Doubling(factor=factor).make(7.0)
    many = spread(first.output["number"], Doubling(factor=factor, fails=fails))
    return Flow([first, many, (last := largest(many.output))], output=last.output)


@pytest.fixture(autouse=True)
def _none_ran() -> None:
    RAN.clear()


def test_large_objects_go_to_gridfs_and_come_back(connection: Connection, tmp_path: Path) -> None:
    store = campaign_job_store()
    first = dense(300_000)
    outputs = run_flow(Flow([first, total(first.output)]), store, tmp_path)
    assert outputs[1] == outputs[0]["total"] == 300_000 * 299_999 // 2  # the second job read the object
    documents = list(connection.db[OUTPUTS].find())
    assert len(documents) == 2
    assert len(str(documents)) < 5000
    assert connection.db[f"{BLOBS}.files"].count_documents({}) == 1
    assert connection.db[f"{BLOBS}.files"].find_one()["length"] > 1_000_000
    loaded = store.query_one({"uuid": first.uuid}, load=True)
    assert loaded["output"]["density"] == list(range(300_000))
    again = campaign_job_store()  # another process
    assert again.get_output(first.uuid, load=True)["density"][-1] == 299_999


def test_nothing_of_it_knows_the_database(connection: Connection, tmp_path: Path) -> None:
    store = campaign_job_store()
    text = json.dumps(store.as_dict(), default=str) + repr(store) + store.name
    text += "".join(part.name for part in store.additional_stores.values())
    for secret in (connection.db.name if connection.kind == "mongodb" else "sqlite", "127.0.0.1", "mongodb://"):
        assert secret not in text
    assert store.as_dict()["docs_store"]["collection_name"] == OUTPUTS
    run_flow(flow_of(), store, tmp_path)
    written = str([list(connection.db[name].find()) for name in (OUTPUTS, f"{BLOBS}.files")])
    assert "mongodb://" not in written
    assert connection.uri_redacted not in written


def test_a_job_that_is_done_is_not_run_again(connection: Connection, tmp_path: Path) -> None:
    store = campaign_job_store()
    with pytest.raises(JobFailed, match="doubling") as caught:
        run_flow(flow_of(fails=True), store, tmp_path)
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.folder.is_dir()
    assert RAN == ["3.0*7.0 None", "3.0*22.0 None"]
    assert run_flow(flow_of(), store, tmp_path)[-1] == 69.0
    assert RAN[2:] == ["3.0*22.0 None", "3.0*23.0 None"]
    assert run_flow(flow_of(), store, tmp_path)[-1] == 69.0
    assert len(RAN) == 4
    assert run_flow(flow_of(factor=4.0), store, tmp_path)[-1] == 120.0
    assert len(RAN) == 7
    adopted = list(connection.db[OUTPUTS].find({"metadata.adopted": {"$exists": True}}))
    origin = {d["metadata"]["adopted"] for d in adopted}
    assert len(adopted) == 4
    assert connection.db[OUTPUTS].count_documents({"uuid": {"$in": list(origin)}}) == len(origin) == 3


def test_what_a_job_computes_is_told_by_settings_and_arguments(tmp_path: Path) -> None:
    assert work_of(total({"density": [1]})) is None  # cheap jobs are nobody's
    one = work_of(Doubling().make(1.0))
    assert one == work_of(Doubling(write_input_set_kwargs={"from_prev": False}).make(1.0, prev_dir="host:/there"))
    others = [Doubling(factor=3.0).make(1.0), Doubling().make(1.5), Doubling().make(1.0)]
    others[2].update_metadata({"protocol_id": "p-2"})
    assert len({one, *map(work_of, others)}) == 4


def test_a_folder_that_is_gone_is_done_without(embedded_connection: Connection, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    store = campaign_job_store()
    run_flow(Flow([Doubling().make(1.0, prev_dir=f"host:{there}")]), store, tmp_path / "jobs")
    run_flow(Flow([Doubling().make(2.0, prev_dir=f"host:{tmp_path / 'gone'}")]), store, tmp_path / "jobs")
    assert [f"2.0*1.0 host:{there}", "2.0*2.0 None"] == RAN


def test_an_outage_is_not_the_jobs_fault(embedded_connection: Connection, tmp_path: Path) -> None:
    from pymongo.errors import ServerSelectionTimeoutError

    class Away(type(campaign_job_store())):  # type: ignore[misc]
        def update(self, *_: Any, **__: Any) -> None:
            raise ServerSelectionTimeoutError("away")

    store = campaign_job_store()
    store.__class__ = Away
    with pytest.raises(ServerSelectionTimeoutError):
        run_flow(Flow([Doubling().make(1.0)]), store, tmp_path)


def test_a_move_takes_the_outputs_along(wire_connection: Connection, tmp_path: Path) -> None:
    """`db move` copies every collection; `db check` reads records, and outputs are none."""
    from stores.connection import connect
    from stores.integrity import problems
    from stores.move import move, moving

    run_flow(Flow([dense(1000), Doubling().make(1.0)]), campaign_job_store(), tmp_path)
    assert list(problems(wire_connection)) == []
    uri = f"embedded:{tmp_path / 'moved.sqlite'}"
    with moving():
        target = connect(uri, alias="moved")
        move(wire_connection, target)
    assert target.db[OUTPUTS].count_documents({}) == 2
    assert target.db[f"{BLOBS}.files"].count_documents({}) == 1
    target.close()


@job
def interrupted(folder: str) -> None:
    subprocess.Popen(["sleep", "300"], cwd=folder, start_new_session=True)
    raise KeyboardInterrupt


def test_an_interrupt_ends_what_the_job_started_wherever_it_works_and_nothing_else(
    connection: Connection, tmp_path: Path
) -> None:
    import psutil

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    others = subprocess.Popen(["sleep", "300"], cwd=scratch)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_flow(Flow([interrupted(str(scratch))]), campaign_job_store(), tmp_path / "jobs")
        running = [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(scratch)]
        assert [p.pid for p in running if p.status() != psutil.STATUS_ZOMBIE] == [others.pid]
    finally:
        others.kill()
        others.wait()
