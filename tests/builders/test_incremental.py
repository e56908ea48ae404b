"""Building now and then, in any order of inserts, leaves what one build from scratch leaves; and how little it does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from builders import campaign_metrics, candidates
from builders.campaign_metrics import CampaignMetricsBuilder
from builders.candidates import CandidateBuilder
from builders.run import build_campaign
from builders.screening_queue import ScreeningQueueBuilder
from builders.state import STATES, digest
from inv_design.config import CampaignConfig
from stores.provenance import provenance
from stores.records import (
    candidate_id,
    insert_calculation,
    insert_campaign,
    insert_candidates,
    insert_documents,
    insert_model,
    insert_predictions,
    insert_training_set,
    structure_record,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from stores.connection import Connection

    Fact = Callable[[Connection], Any]

DERIVED = ("candidate_summaries", "screening_queue", "campaign_metrics")
CAMPAIGNS = ("one", "two")
MADE = provenance()


def configuration(name: str, **changes: Any) -> CampaignConfig:
    raw = {"name": name, "targets": {"bulk_modulus_vrh": "350 GPa"}, "stages": {"dft": {"budget_per_round": 2}}}
    return CampaignConfig.model_validate({**raw, **changes})


def b2(a: str, b: str, length: float) -> Structure:
    return Structure(Lattice.cubic(length), [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]])


RECORDS = [
    structure_record(crystal, {"kind": "generated", "id": "m"}, MADE)
    for crystal in (
        b2("Re", "W", 3.1), b2("Re", "W", 3.15), b2("Re", "W", 3.2), b2("Ir", "Re", 3.1), b2("Ir", "Re", 3.3),
        Structure(Lattice.tetragonal(2.6, 6.5), ["Re", "W"], [[0, 0, 0], [0.5, 0.5, 0.3]]),
        b2("Ir", "Re", 3.2),  # of a training set alone
    )
]  # fmt: skip
IDS = [record["structure_id"] for record in RECORDS]


# -- facts: what may come into the database, in any order ------------------------------------------------------------


def crystal(i: int) -> Fact:
    return lambda _: insert_documents("structures", [RECORDS[i]])


def candidate(campaign: str, number: int, seed: int, index: int, i: int) -> Fact:
    place = {"campaign": campaign, "round": number, "seed": seed, "index": index}
    return lambda _: insert_candidates([{**place, "structure_id": IDS[i], "provenance": MADE}])


def prediction(i: int, value: float, model: str) -> Fact:
    record = {
        "structure_id": IDS[i], "property": "bulk_modulus_vrh", "value": value, "std": 10.0, "unit": "GPa",
        "model_id": model, "protocol_id": f"p-{model}",
    }  # fmt: skip
    return lambda _: insert_predictions([{**record, "provenance": provenance()}])


def calculation(i: int, kind: str, method: str, value: float | None, *, protocol: str = "p-1") -> Fact:
    results = {
        "bulk_modulus_vrh": value, "shear_modulus_vrh": 150.0, "born_stable": True, "eigenvalues": [50.0],
        "relaxed": True, "structure_matched": True, "rms": 0.01, "volume_change": 0.01,
    }  # fmt: skip
    record: dict[str, Any] = {"structure_id": IDS[i], "kind": kind, "method": method, "protocol_id": protocol}
    record |= {"state": "completed", "results": results} if value else {"state": "failed", "error": "exploded"}
    return lambda _: insert_calculation(**record, provenance=provenance())


def member(i: int, value: float) -> dict[str, Any]:
    label = {"value": value, "unit": "GPa", "calculation_id": f"k-{i}", "method": "reference"}
    return {"structure_id": IDS[i], "labels": {"K": label}, "chemsys": RECORDS[i]["chemsys"], "split": "train"}


def training_set(i: int, number: int) -> Fact:
    def insert(_: Connection) -> None:
        insert_training_set([member(i, 300.0)], provenance=MADE, campaign="one", round=number)

    return insert


def model(campaign: str, number: int, i: int) -> Fact:
    """Return a predictor that learned from the training set of crystal i, which may not be there yet."""
    from stores.records import training_set_id

    def insert(_: Connection) -> None:
        identity = training_set_id([member(i, 300.0)])
        place = {"campaign": campaign, "round": number, "training_set_id": identity}
        insert_model(b"w", kind="predictor", name="x", provenance=MADE, **place)

    return insert


def raw(collection: str, record: dict[str, Any]) -> Fact:
    """Return a record that no function of this project would have inserted."""
    return lambda connection: connection.db[collection].insert_one(dict(record))


def reconfigured(campaign: str, **changes: Any) -> Fact:
    config = configuration(campaign, **changes).model_dump(mode="json")
    return lambda connection: connection.db["campaigns"].update_one({"name": campaign}, {"$set": {"config": config}})


def lost(collection: str, campaign: str) -> Fact:
    """Return the loss of the first derived document of a campaign."""

    def remove(connection: Connection) -> None:
        key = {"candidate_summaries": "candidate_id", "screening_queue": "candidate_id", "campaign_metrics": "round"}
        found = sorted(connection.db[collection].find({"campaign": campaign}), key=lambda d: d[key[collection]])
        if found:
            connection.db[collection].delete_one({"_id": found[0]["_id"]})

    return remove


SOUND: list[Fact] = [
    *(crystal(i) for i in range(len(RECORDS))),
    *(candidate(c, n, s, i % 3, i) for c in CAMPAIGNS for i, (n, s) in enumerate([(0, 2), (0, 1), (1, 1), (0, 2)])),
    candidate("one", 0, 3, 0, 4),
    candidate("one", 1, 3, 1, 0),
    candidate("two", 1, 9, 0, 5),
    *(prediction(i, 340.0 + i, "m-0") for i in range(4)),
    prediction(0, 345.0, "m-1"),
    calculation(0, "elastic", "mlip", 345.0),
    calculation(0, "elastic", "mlip", 100.0, protocol="p-0"),
    calculation(1, "elastic", "mlip", None),
    calculation(3, "elastic", "mlip", 340.0),
    calculation(0, "eos", "surrogate", 348.0),
    calculation(0, "elastic", "gpaw", 347.0),
    calculation(3, "eos", "surrogate", None),
    training_set(1, 0),
    training_set(6, 0),
    model("one", 0, 1),
    model("two", 0, 6),
    reconfigured("one", chemistry={"exclude": ["Ir"]}),
    reconfigured("two", stages={"predictor": {"match": {"ltol": 0.2, "stol": 0.3, "angle_tol": 6.0}}}),
    reconfigured("two", stages={"dft": {"backend": "gpaw"}}),
    lost("candidate_summaries", "one"),
    lost("screening_queue", "two"),
    lost("campaign_metrics", "one"),
]
DAMAGED: list[Fact] = [
    raw("candidates", {"candidate_id": "c-bad", "campaign": "one", "structure_id": IDS[0], "round": 0, "seed": 1}),
    raw("candidates", {"candidate_id": "c-worse", "campaign": "two", "structure_id": None, "round": "first"}),
    raw("predictions", {"structure_id": IDS[5], "property": "bulk_modulus_vrh"}),
    raw("calculations", {"calculation_id": "k-bad", "structure_id": IDS[4], "kind": "elastic", "method": "mlip"}),
]
BUILDERS: list[Fact] = [
    lambda _: build_campaign(),
    lambda _: build_campaign("one"),
    lambda _: new_process() or build_campaign(),
    lambda _: CandidateBuilder("two", chunk_size=1).build(),
    lambda _: ScreeningQueueBuilder().build(),
]


def new_process() -> None:
    """Forget what only this process knows."""
    for cache in (candidates._searches, candidates._members, campaign_metrics._backgrounds):
        cache.clear()


def derived(connection: Connection) -> list[str]:
    """Return the derived documents without the times at which they were written."""
    hidden = dict.fromkeys(("_id", "last_updated", "provenance"), 0)
    return [
        json.dumps([c, *sorted(json.dumps(d, sort_keys=True) for d in connection.db[c].find({}, hidden))])
        for c in DERIVED
    ]


def empty(connection: Connection) -> None:
    """Take everything out of the database, and put two campaigns in."""
    new_process()
    for name in connection.db.list_collection_names():
        if not name.startswith("system."):
            connection.db[name].delete_many({})
    for name in CAMPAIGNS:
        insert_campaign(name, configuration(name).model_dump(mode="json"), targets={}, provenance=MADE)


@st.composite
def orders(draw: st.DrawFn) -> tuple[list[Fact], list[tuple[int, Fact]]]:
    """Draw facts in some order, and (after how many facts, build); one build comes just before the last fact."""
    facts = draw(st.permutations(SOUND + DAMAGED if draw(st.booleans()) else SOUND))
    facts = facts[: draw(st.integers(1, len(facts)))]
    builds = draw(st.lists(st.tuples(st.integers(0, len(facts)), st.sampled_from(BUILDERS)), max_size=3))
    return facts, [*builds, (len(facts) - 1, draw(st.sampled_from(BUILDERS[:3])))]


anew = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def check_order(connection: Connection, facts: list[Fact], builds: list[tuple[int, Fact]]) -> None:
    empty(connection)
    for i, fact in enumerate(facts):
        for place, build in builds:
            if place == i:
                build(connection)
        fact(connection)
    build_campaign()
    incremental = derived(connection)
    new_process()
    for name in (*DERIVED, STATES):
        connection.db[name].delete_many({})
    build_campaign()
    assert incremental == derived(connection)


@anew
@given(orders())
def test_any_order_of_inserts_and_builds_leaves_what_a_build_from_scratch_leaves(embedded_connection, order):
    check_order(embedded_connection, *order)


@pytest.mark.wire
@settings(anew, max_examples=3)
@given(orders())
def test_any_order_on_the_server(wire_connection, order):
    check_order(wire_connection, *order)


@pytest.mark.parametrize("last", range(len(SOUND)))
def test_no_input_is_missed_when_it_comes_last_of_all(embedded_connection, last):
    """Everything else is there and built, so that this one input alone must be noticed."""
    others = [fact for i, fact in enumerate(SOUND) if i != last]
    check_order(embedded_connection, [*others, SOUND[last]], [(len(others), BUILDERS[0])])


# -- how little is done ----------------------------------------------------------------------------------------------


@pytest.fixture
def many(embedded_connection):
    """Give a campaign of 100 candidates that is built."""
    empty(embedded_connection)
    crystals = [b2(a, "Re", 2.9 + 0.004 * i) for i in range(25) for a in ("W", "Ir", "Ru", "Mo")]
    records = [structure_record(s, {"kind": "generated", "id": "m"}, MADE) for s in crystals]
    insert_documents("structures", records)
    insert_candidates(
        {"campaign": "one", "structure_id": r["structure_id"], "round": 0, "seed": 1, "index": i, "provenance": MADE}
        for i, r in enumerate(records)
    )
    build_campaign("one")
    new_process()
    return embedded_connection, [record["structure_id"] for record in records]


def built(**options: Any) -> CandidateBuilder:
    builder = CandidateBuilder("one", **options)
    builder.build()
    return builder


def test_nothing_new_reads_no_record_in_full(many, monkeypatch):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("looked at again")

    monkeypatch.setattr(CandidateBuilder, "_assemble", never)
    monkeypatch.setattr(CandidateBuilder, "_find_duplicates", never)
    assert vars(built().counts) == {"read": 100, "processed": 0, "written": 0, "failed": 0}
    monkeypatch.setattr(ScreeningQueueBuilder, "process_item", never)
    queue, metrics = ScreeningQueueBuilder("one"), CampaignMetricsBuilder("one")
    assert (queue.build(), metrics.build()) == (0, 0)
    assert (queue.counts.processed, metrics.counts.processed) == (0, 0)


def test_one_input_of_a_hundred_processes_one_item(many):
    _, ids = many
    record = {"structure_id": ids[0], "property": "bulk_modulus_vrh", "value": 340.0, "protocol_id": "p-0"}
    insert_predictions([{**record, "unit": "GPa", "provenance": MADE}])
    assert (built().counts.processed, built().counts.processed) == (1, 0)


def test_a_candidate_that_comes_late_but_stands_first_rebuilds_only_what_it_changes(many):
    """It is the first of its formula, so that the one that was is now its duplicate; the 24 duplicates are now its."""
    connection, ids = many
    place = {"campaign": "one", "structure_id": ids[0], "round": 0, "seed": 0, "index": 0}
    insert_candidates([{**place, "provenance": MADE}])
    assert built().counts.processed == 1 + 25
    other = {"campaign": "one", "structure_id": ids[1], "round": 0, "seed": 1, "index": 50}
    late = raw("candidates", {**other, "candidate_id": "c-late"})
    late(connection)  # in the middle: those after it are duplicates of the same crystal as before
    assert built().counts.processed == 1
    new_process()
    assert built().counts.processed == 0
    before = derived(connection)
    built(from_scratch=True)
    assert derived(connection) == before


def test_a_version_a_setting_and_a_protocol_rebuild_all(many, monkeypatch):
    connection, _ = many
    monkeypatch.setattr(CandidateBuilder, "version", "next")
    assert (built().counts.processed, built().counts.processed) == (100, 0)
    reconfigured("one", chemistry={"exclude": ["Ir"]})(connection)
    assert (built().counts.processed, built().counts.processed) == (100, 0)
    assert built(protocols={"mlip": "p-9"}).counts.processed == 100


def test_a_summary_that_is_gone_is_made_again_and_one_too_many_removed(many):
    connection, _ = many
    summaries = connection.db["candidate_summaries"]
    gone = candidate_id("one", 0, 1, 7)
    summaries.delete_one({"candidate_id": gone})
    summaries.insert_one({"candidate_id": "c-stranger", "campaign": "one", "input_hash": "h"})
    assert built().counts.processed == 1
    assert summaries.count_documents({"candidate_id": gone}) == 1
    assert summaries.count_documents({"candidate_id": "c-stranger"}) == 0


def test_edited_documents_are_mended_from_scratch(many):
    connection, _ = many
    before = derived(connection)
    for name in DERIVED:
        connection.db[name].update_many({}, {"$set": {"status": "edited", "priority": 7.0, "generated": -1}})
    assert CandidateBuilder("one").build() == 0  # its hash says that it is up to date
    written = build_campaign("one", from_scratch=True)  # 96 are duplicates and wait for nothing
    assert written == {"candidate_summaries": 100, "screening_queue": 4, "campaign_metrics": 1}
    assert derived(connection) == before


def test_a_record_that_arrives_while_the_builder_runs_is_seen_by_the_next(many, monkeypatch):
    _, ids = many
    record = {"property": "bulk_modulus_vrh", "value": 340.0, "protocol_id": "p-0", "unit": "GPa", "provenance": MADE}
    insert_predictions([{**record, "structure_id": ids[0]}])
    original = CandidateBuilder.process_item

    def slow(self: CandidateBuilder, item: dict[str, Any]) -> dict[str, Any]:
        insert_predictions([{**record, "structure_id": ids[3]}])
        return original(self, item)

    monkeypatch.setattr(CandidateBuilder, "process_item", slow)
    assert built().counts.processed == 1
    monkeypatch.setattr(CandidateBuilder, "process_item", original)
    assert (built().counts.processed, built().counts.processed) == (1, 0)


def test_only_the_rounds_that_changed_are_queued_and_counted_again(many):
    _, ids = many
    insert_candidates(
        {"campaign": "one", "structure_id": s, "round": 1, "seed": 1, "index": i, "provenance": MADE}
        for i, s in enumerate(ids[:5])
    )
    built()
    for kind in (ScreeningQueueBuilder, CampaignMetricsBuilder):
        builder = kind("one")
        builder.build()
        assert builder.counts.processed == 1


def test_a_queue_that_cannot_be_told_is_kept_with_its_error(many, monkeypatch):
    connection, ids = many

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("no budget")

    before = connection.db["screening_queue"].count_documents({})
    insert_candidates(
        [{"campaign": "one", "structure_id": ids[0], "round": 0, "seed": 2, "index": 0, "provenance": MADE}]
    )
    built()
    monkeypatch.setattr("builders.screening_queue.next_candidates", broken)
    builder = ScreeningQueueBuilder("one")
    assert builder.build() == 0
    assert builder.counts.failed == 1
    assert connection.db["screening_queue"].count_documents({}) == before
    state = connection.db[STATES].find_one({"_id": "ScreeningQueueBuilder/one/0"})
    assert (state["state"], state["error"]) == ("failed", "ZeroDivisionError: no budget")
    monkeypatch.undo()
    builder = ScreeningQueueBuilder("one")
    builder.build()
    assert builder.counts.processed == 1
    assert connection.db[STATES].find_one({"_id": "ScreeningQueueBuilder/one/0"})["state"] == "successful"


def test_the_digest_knows_order_from_content():
    assert digest([[1, "a"], [2, "b"]]) == digest([[2, "b"], [1, "a"]])
    assert len({digest([[1]], [[2]]), digest([[1], [2]]), digest([[2]], [[1]]), digest([], [[1], [2]])}) == 4
