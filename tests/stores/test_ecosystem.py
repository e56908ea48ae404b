"""FireWorks, maggma and mongoengine do on both databases what they do on MongoDB."""

from datetime import UTC, datetime

import pytest
from fireworks import FiretaskBase, Firework, FWAction, FWorker, Workflow, explicit_serialize
from fireworks.core.rocket_launcher import rapidfire
from maggma.builders import MapBuilder

from stores.documents import CandidateSummary, Step
from stores.provenance import provenance


@explicit_serialize
class Record(FiretaskBase):
    required_params = ("key",)

    def run_task(self, fw_spec):  # noqa: ARG002
        from stores.connection import connect_from_launchpad
        from stores.records import insert_documents

        connection = connect_from_launchpad(self.launchpad) if hasattr(self, "launchpad") else None
        made = provenance(fw_id=self.fw_id if hasattr(self, "fw_id") else None)
        insert_documents("steps", [{"key": self["key"], "provenance": made}], connection=connection)
        return FWAction(stored_data={"key": self["key"]}, update_spec={"last": self["key"]})


@explicit_serialize
class Fail(FiretaskBase):
    def run_task(self, fw_spec):  # noqa: ARG002
        raise RuntimeError("this one fizzles")


@explicit_serialize
class Detour(FiretaskBase):
    def run_task(self, fw_spec):  # noqa: ARG002
        return FWAction(detours=Firework([Record(key="detour")], spec={"_add_launchpad_and_fw_id": True}))


@pytest.fixture
def launchpad(connection, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return connection.launchpad(strm_lvl="CRITICAL")


def test_a_workflow_runs(launchpad, connection):
    spec = {"_add_launchpad_and_fw_id": True}
    first = Firework([Record(key="a")], spec=spec, name="a")
    second = Firework([Detour()], parents=[first], name="b")
    third = Firework([Record(key="c")], spec=spec, parents=[second], name="c")
    failing = Firework([Fail()], name="d")
    launchpad.add_wf(Workflow([first, second, third], metadata={"campaign": "x"}))
    launchpad.bulk_add_wfs([Workflow([failing]), Workflow([Firework([Record(key="e")], spec=spec)])])
    rapidfire(launchpad, FWorker(), strm_lvl="CRITICAL")
    assert {step.key for step in Step.objects} == {"a", "detour", "c", "e"}
    assert len(launchpad.get_fw_ids({"state": "COMPLETED"})) == 5
    [fizzled] = launchpad.get_fw_ids({"state": "FIZZLED"})
    assert (
        "this one fizzles"
        in launchpad.get_fw_by_id(fizzled).launches[-1].action.stored_data["_exception"]["_stacktrace"]
    )
    assert len(launchpad.get_wf_ids({"metadata.campaign": "x", "state": "COMPLETED"})) == 1
    assert launchpad.rerun_fw(fizzled) == [fizzled]
    assert launchpad.get_fw_ids({"state": "READY"}) == [fizzled]
    assert Step.objects.get(key="a").provenance["fw_id"] is not None


def test_mongoengine_queries(connection):
    for i in range(6):
        CandidateSummary(
            candidate_id=f"c-{i}", campaign="x", round=i % 2, elements=["Re", "W"] if i > 2 else ["Re"],
            bulk_modulus_vrh=300.0 + 10 * i, stages={"mlip": {"value": i}}, anything="goes",
        ).save()  # fmt: skip
    found = CandidateSummary.objects(campaign="x", bulk_modulus_vrh__gte=320, elements__all=["Re", "W"])
    assert [c.candidate_id for c in found.order_by("-bulk_modulus_vrh")] == ["c-5", "c-4", "c-3"]
    assert CandidateSummary.objects(stages__mlip__value__lt=2).count() == 2
    assert CandidateSummary.objects(round=1).only("candidate_id").first().bulk_modulus_vrh is None
    assert CandidateSummary.objects.average("bulk_modulus_vrh") == 325.0
    CandidateSummary.objects(candidate_id="c-0").update_one(set__status="passed")
    assert CandidateSummary.objects.get(candidate_id="c-0").status == "passed"
    assert CandidateSummary.objects(campaign="x").delete() == 6


class Doubling(MapBuilder):
    def unary_function(self, item):
        if item["value"] == 3:
            raise ValueError("three")
        return {"double": 2 * item["value"]}


def test_a_maggma_builder_builds_incrementally(connection):
    source = connection.maggma_store("things", key="id")
    target = connection.maggma_store("doubles", key="id")
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    source.update([{"id": i, "value": i, "last_updated": now} for i in range(5)])
    builder = Doubling(source, target, projection=["value"])
    builder.run()  # closes its stores
    target.connect()
    assert {d["id"]: d.get("double") for d in target.query()} == {0: 0, 1: 2, 2: 4, 3: None, 4: 8}
    assert target.query_one({"id": 3})["state"] == "failed"
    source.connect()
    source.update([{"id": 9, "value": 9, "last_updated": now}])
    builder.run()
    source.connect()
    target.connect()
    assert target.query_one({"id": 9})["double"] == 18
    assert target.count() == 6
    assert {k["value"]: len(d) for k, d in source.groupby("value")} == {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 9: 1}
    assert sorted(source.distinct("id", {"value": {"$gt": 3}})) == [4, 9]
