import pytest
from pymatgen.core import Lattice, Structure
from pymongo.errors import OperationFailure

from stores import queries
from stores.candidate_pages import DEFAULT_ORDER, declared_fields, explained, parts, total_order
from stores.conditions import candidate_filter, sort_keys
from stores.provenance import provenance
from stores.queries import INDEXES, ensure_indexes, indexes
from stores.records import insert_calculation, insert_candidates, insert_model, insert_prediction, insert_structure


@pytest.fixture
def candidates(connection):
    made = provenance()
    place = {"campaign": "x", "seed": 1, "provenance": made}
    insert_candidates([{**place, "round": r, "index": i, "structure_id": f"s-{i}"} for r in (1, 0) for i in range(4)])
    insert_candidates([{**place, "campaign": "y", "round": 0, "index": 9, "structure_id": "s-9"}])
    return made


def test_every_named_query_has_its_index(connection):
    made = {
        collection: [
            tuple(field for field, _ in index["key"])
            for index in connection.db[collection].index_information().values()
        ]
        for collection in indexes()
    }
    for name, (collection, fields) in INDEXES.items():
        assert any(index[: len(fields)] == fields for index in made[collection]), f"{name} has no index in {collection}"


SORTED_ONCE_FOUND = {"elements", "a formula", "at least one of some elements", "a structure", "a candidate"}


def question(name):
    """Return the (filter, keys) of a question's parts, as they are put to a store."""
    asked = dict(queries.QUESTIONS[name])
    keys = total_order(sort_keys(asked.pop("sort", []), declared_fields()) or DEFAULT_ORDER)
    wanted = candidate_filter(campaign="x", **asked)
    return list(parts(wanted, keys))


def is_equality(wanted):
    return not isinstance(wanted, dict) or bool(wanted.keys() & {"$eq", "$all", "$in"})


@pytest.mark.parametrize("name", queries.QUESTIONS)
def test_every_question_is_a_prefix_of_an_index(name):
    made = [[field for field, _ in index["fields"]] for index in indexes()["candidate_summaries"]]
    for wanted, keys in question(name):
        equal = {field for field, condition in wanted.items() if is_equality(condition)}
        ranges = [field for field, condition in wanted.items() if not is_equality(condition)]
        if name in SORTED_ONCE_FOUND:
            assert any(set(index) <= equal for index in made)
            continue
        order = [field for field, _ in keys if field not in equal]
        assert ranges in ([], order[:1]), "a range is on the field that is sorted by"
        assert len({direction for _, direction in keys}) == 1, "an index runs one way or the other"
        assert any(
            set(index[: len(equal)]) == equal and index[len(equal) : len(equal) + len(order)] == order for index in made
        ), f"no index begins with {sorted(equal)} and goes on with {order}"


@pytest.fixture
def asked_store(connection):
    """Give a store with enough candidates that reading them all would be the wrong plan."""
    connection.db["candidate_summaries"].insert_many(
        {
            "candidate_id": f"c-{i}", "campaign": "xy"[i % 20 == 0], "round": i % 4, "structure_id": f"s-{i}",
            "stage": ("predictor", "mlip", "dft")[i % 7 % 3], "status": ("passed", "waiting")[i % 2],
            "bulk_modulus_vrh": 200.0 + i if i % 9 else None, "target_error": abs(150.0 - i) / 350,
            "elements": [("Re", "Os", "Al", "Ta")[i % 4], "W"], "chemsys": "Re-W" if i % 4 == 0 else "Al-W",
            "formula": ("ReW", "OsW", "AlW", "TaW")[i % 4],
            "stages": {stage: {"protocol_id": f"p-{i % 5}"} for stage in ("predictor", "mlip", "dft")},
        }
        for i in range(1200)
    )  # fmt: skip
    return connection


def test_explain_confirms_the_index_of_every_question(asked_store):
    told = {
        name: [plan for wanted, keys in question(name) for plan in explained(wanted, keys) or [None]]
        for name in queries.QUESTIONS
    }
    if all(plans[0] is None for plans in told.values()):
        assert asked_store.kind == "mongodb", "the embedded store explains"
        pytest.skip("this server does not explain")
    for name, plans in told.items():
        for index, ordered in plans:
            assert index is not None, f"{name}: reads all candidates"
            assert ordered or name in SORTED_ONCE_FOUND, f"{name}: sorts what {index} finds"


def test_explain_tells_what_no_index_serves(asked_store):
    plans = explained({"campaign": "x"}, [("density", -1)])
    if plans is None:
        pytest.skip("this server does not explain")
    assert not plans[0][1], "those with a density are sorted; those without one are in the order of their ids"
    assert explained({"density": {"$gt": 1}}, [("density", -1)]) == [(None, False)]


def test_named_queries_use_their_index(asked_store):
    for collection, fields in INDEXES.values():
        try:
            plan = asked_store.db[collection].find(dict.fromkeys(fields, "x")).explain()
        except OperationFailure:
            pytest.skip("this server does not explain")
        assert "IXSCAN" in str(plan["queryPlanner"]["winningPlan"]), f"{collection}: {fields}"


def test_indexes_are_made_once(connection):
    before = {name: connection.db[name].index_information() for name in indexes()}
    ensure_indexes()
    assert {name: connection.db[name].index_information() for name in indexes()} == before


def test_candidates_without_a_result(candidates):
    insert_prediction(structure_id="s-1", property="k", value=1.0, protocol_id="p", provenance=candidates)
    insert_prediction(structure_id="s-2", property="k", error="no", protocol_id="p", provenance=candidates)
    insert_prediction(structure_id="s-3", property="k", value=1.0, protocol_id="other", provenance=candidates)
    lacking = queries.candidates_without_prediction("x", "k", "p", round=0)
    assert [c["structure_id"] for c in lacking] == ["s-0", "s-3"]
    assert len(queries.candidates_without_prediction("x", "k", "p")) == 4
    insert_calculation(
        structure_id="s-0",
        kind="relax",
        method="mlip",
        protocol_id="p",
        state="failed",
        error="e",
        provenance=candidates,
    )
    assert [c["index"] for c in queries.candidates_without_calculation("x", "relax", "p", round=1)] == [1, 2, 3]


def test_labels_are_the_completed_ones(candidates):
    for i, (state, results) in enumerate([("completed", {"k": 5.0}), ("failed", {}), ("completed", {"other": 1.0})]):
        insert_calculation(
            structure_id=f"s-{i}", kind="reference", method="reference", protocol_id="p", state=state, results=results,
            provenance=candidates,
        )  # fmt: skip
    [label] = queries.reference_labels("k")
    assert (label["structure_id"], label["value"], label["method"]) == ("s-0", 5.0, "reference")


def test_structures_by_id_and_likeness(candidates):
    crystals = [Structure(Lattice.cubic(a), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]) for a in (4.0, 4.1)]
    ids = [insert_structure(crystal, {"kind": "reference", "id": "1"}, candidates) for crystal in crystals]
    assert queries.structures_by_id([*ids, "s-none"]) == dict(zip(ids, crystals, strict=True))
    assert queries.alike(["CsCl|2|221", "NaCl|2|225"]) == {"CsCl|2|221": sorted(ids)}


def test_latest_model(candidates):
    for number in (0, 2, 1):
        insert_model(bytes([number]), kind="generator", name="g", campaign="x", round=number, provenance=candidates)
    assert queries.latest_model("x", "generator")["round"] == 2
    assert queries.latest_model("x", "generator", round=1)["round"] == 1
    assert queries.latest_model("x", "predictor") is None


def test_queue_and_funnel(connection):
    summaries = [("generated", "rejected"), ("mlip", "passed"), ("mlip", "passed")]
    connection.db["candidate_summaries"].insert_many(
        [
            {"candidate_id": f"c-{i}", "campaign": "x", "round": 0, "stage": s, "status": t}
            for i, (s, t) in enumerate(summaries)
        ]
    )
    assert queries.funnel("x") == {(0, "generated", "rejected"): 1, (0, "mlip", "passed"): 2}
    connection.db["screening_queue"].insert_many(
        [
            {"candidate_id": f"c-{i}", "campaign": "x", "round": 0, "stage": "dft", "priority": p}
            for i, p in enumerate([1, 3, 2])
        ]
    )
    assert [item["candidate_id"] for item in queries.queue("x", 0, "dft", limit=2)] == ["c-1", "c-2"]
