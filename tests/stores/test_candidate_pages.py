"""The same answer on both stores, in a total order, as a plain Python oracle gives it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stores import candidate_pages as pages
from stores.documents import CandidateSummary
from stores.queries import candidates

if TYPE_CHECKING:
    from stores.connection import Connection

NUMBERS = st.none() | st.sampled_from([-1.5, 0.0, 100.0, 350.0, 350.5])
ELEMENTS = ["Al", "Os", "Re", "W"]
STORE = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@st.composite
def summaries(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw a small collection with ties, missing fields and nulls."""
    made = []
    for i in range(draw(st.integers(0, 12))):
        document: dict[str, Any] = {
            "candidate_id": f"c-{i * 7919 % 97:02d}",
            "campaign": draw(st.sampled_from(["x", "x", "x", "y"])),
            "round": draw(st.integers(0, 2)),
            "stage": draw(st.sampled_from(["predictor", "mlip", "dft"])),
            "status": draw(st.sampled_from(["passed", "rejected", "waiting"])),
            "elements": sorted(draw(st.sets(st.sampled_from(ELEMENTS), min_size=1, max_size=3))),
            "formula": draw(st.none() | st.sampled_from(["Re", "ReW", "AlOs"])),
            "born_stable": draw(st.sampled_from([None, True, False])),
        }
        for field in ("bulk_modulus_vrh", "density"):
            if draw(st.booleans()):
                document[field] = draw(NUMBERS)
        if draw(st.booleans()):
            document["stages"] = {
                "mlip": {"value": draw(NUMBERS), "protocol_id": draw(st.sampled_from(["p-1", "p-2"]))}
            }
        made.append(document)
    return made


CONDITIONS = {
    "K=0..350": lambda d: d.get("bulk_modulus_vrh") is not None and 0 <= d["bulk_modulus_vrh"] <= 350,
    "K!=0..350": lambda d: d.get("bulk_modulus_vrh") is None or not 0 <= d["bulk_modulus_vrh"] <= 350,
    "K>0": lambda d: d.get("bulk_modulus_vrh") is not None and d["bulk_modulus_vrh"] > 0,
    "K<=350": lambda d: d.get("bulk_modulus_vrh") is not None and d["bulk_modulus_vrh"] <= 350,
    "density=none": lambda d: d.get("density") is None,
    "density!=none": lambda d: d.get("density") is not None,
    "density!=100": lambda d: d.get("density") != 100,
    "formula=ReW": lambda d: d.get("formula") == "ReW",
    "born_stable=true": lambda d: d["born_stable"] is True,
    "born_stable!=false": lambda d: d["born_stable"] is not False,
    "stages.mlip.value>=100": lambda d: (at(d, "stages.mlip.value") or -9) >= 100,
    "elements=Re": lambda d: "Re" in d["elements"],
}  # fmt: skip


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of a question."""
    some = st.lists(st.sampled_from(ELEMENTS), max_size=2, unique=True)
    direction = st.sampled_from(["", "-"])
    fields = st.sampled_from(["K", "density", "round", "stages.mlip.value", "formula", "candidate_id", "status"])
    asked: dict[str, Any] = {
        "where": draw(st.lists(st.sampled_from(list(CONDITIONS)), max_size=2, unique=True)),
        "sort": [draw(direction) + field for field in draw(st.lists(fields, max_size=3, unique=True))],
        "elements": draw(st.just([]) | some),
        "any_of": draw(st.just([]) | some),
        "without": draw(st.just([]) | some),
        "stage": draw(st.none() | st.sampled_from(["mlip", "dft"])),
        "status": draw(st.none() | st.just("passed")),
        "round": draw(st.none() | st.integers(0, 2) | st.just([0, 2])),
        "protocol": draw(st.just([]) | st.sampled_from([["p-1"], ["mlip=p-2"], ["dft=p-1"]])),
    }
    return {name: value for name, value in asked.items() if value not in (None, [])}


def at(document: dict[str, Any], field: str) -> Any:
    value: Any = document
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def oracle(documents: list[dict[str, Any]], asked: dict[str, Any]) -> list[str]:
    """Return the ids that a question has as its answer, in plain Python."""
    rounds = asked.get("round")
    found = [
        d
        for d in documents
        if d["campaign"] == "x"
        and all(CONDITIONS[text](d) for text in asked.get("where", []))
        and set(asked.get("elements", [])) <= set(d["elements"])
        and (not asked.get("any_of") or set(asked["any_of"]) & set(d["elements"]))
        and not set(asked.get("without", [])) & set(d["elements"])
        and asked.get("stage") in (None, d["stage"])
        and asked.get("status") in (None, d["status"])
        and (rounds is None or d["round"] in ([rounds] if isinstance(rounds, int) else rounds))
        and all(protocol_of(d, text) for text in asked.get("protocol", []))
    ]
    sort = asked.get("sort") or ["round"]
    last = "-" if sort[-1].startswith("-") else ""
    for key in reversed([*sort, *([] if any("candidate_id" in s for s in sort) else [f"{last}candidate_id"])]):
        field = key.lstrip("-").replace("K", "bulk_modulus_vrh")
        known = [d for d in found if at(d, field) is not None]
        known.sort(key=lambda d: at(d, field), reverse=key.startswith("-"))
        found = known + [d for d in found if at(d, field) is None]
    return [d["candidate_id"] for d in found]


def protocol_of(document: dict[str, Any], text: str) -> bool:
    stage, _, identity = text.rpartition("=")
    return any(at(document, f"stages.{s}.protocol_id") == identity for s in ([stage] if stage else ["mlip", "dft"]))


def fill(connection: Connection, documents: list[dict[str, Any]]) -> None:
    collection = connection.db["candidate_summaries"]
    collection.delete_many({})
    # one that has every nested field, so that asking for it is no mistake
    everything = {"stages": {"mlip": {"value": 1.0, "protocol_id": "p-1"}}, "elements": ["Re"]}
    collection.insert_one({"candidate_id": "c-zz", "campaign": "z", **everything})
    if documents:
        collection.insert_many([dict(d) for d in documents])


@pytest.fixture(autouse=True)
def nested_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sample be of all campaigns: a drawn one need not have a document with a stage."""
    original = pages.summary_fields
    monkeypatch.setattr(pages, "summary_fields", lambda _: original(None))


@STORE
@given(documents=summaries(), asked=questions())
def test_both_stores_answer_as_plain_python_does(
    connection: Connection, documents: list[dict[str, Any]], asked: dict[str, Any]
) -> None:
    fill(connection, documents)
    found = [d["candidate_id"] for d in candidates("x", **asked)]
    assert found == oracle(documents, asked)


@STORE
@given(documents=summaries(), asked=questions(), size=st.integers(1, 5))
def test_pages_neither_double_nor_lose(
    connection: Connection, documents: list[dict[str, Any]], asked: dict[str, Any], size: int
) -> None:
    fill(connection, documents)
    whole = oracle(documents, asked)
    skipped = [candidates("x", **asked, limit=size, skip=start) for start in range(0, len(whole) + size, size)]
    assert [d["candidate_id"] for part in skipped for d in part] == whole
    followed: list[str] = []
    while part := candidates("x", **asked, limit=size, after=followed[-1] if followed else None):
        followed += [d["candidate_id"] for d in part]
        assert len(followed) <= len(whole)
    assert followed == whole


@STORE
@given(documents=summaries(), asked=questions(), fronts=st.none() | st.integers(1, 2))
def test_pareto_fronts(
    connection: Connection, documents: list[dict[str, Any]], asked: dict[str, Any], fronts: int | None
) -> None:
    fill(connection, documents)
    found = candidates("x", **asked, pareto="K,-density", fronts=fronts)
    matching = {d["candidate_id"]: d for d in documents if d["candidate_id"] in oracle(documents, asked)}
    left = {
        i: (-d["bulk_modulus_vrh"], d["density"])
        for i, d in matching.items()
        if d.get("bulk_modulus_vrh") is not None and d.get("density") is not None
    }
    ranks: dict[str, int | None] = dict.fromkeys(matching)
    for rank in itertools.count():
        if not left:
            break
        best = [i for i, p in left.items() if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in left.values())]
        for i in best:
            ranks[i] = rank
            del left[i]
    wanted = {i: r for i, r in ranks.items() if fronts is None or (r is not None and r < fronts)}
    assert {d["candidate_id"]: d["pareto_rank"] for d in found} == wanted
    order = [d["pareto_rank"] for d in found]
    assert order == sorted(order, key=lambda r: 99 if r is None else r)


@settings(deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 9) | st.just(float("nan"))] * 2), min_size=40, max_size=120), st.integers(1, 3)
)
def test_the_first_fronts_are_those_of_all(points: list[tuple[float, float]], fronts: int) -> None:
    every = pages._ranks([list(p) for p in points], None)
    expected = [r if r is not None and r < fronts else None for r in every]
    assert pages._ranks([list(p) for p in points], fronts) == expected


def test_mongoengine_gives_the_same(connection: Connection) -> None:
    fill(connection, [{"candidate_id": f"c-{i}", "campaign": "x", "bulk_modulus_vrh": float(i)} for i in range(5)])
    documents = CandidateSummary.objects(campaign="x", bulk_modulus_vrh__gte=3).order_by("-bulk_modulus_vrh")
    assert [d.candidate_id for d in documents] == ["c-4", "c-3"]
    assert [d["candidate_id"] for d in candidates("x", where="K>=3", sort="-K")] == ["c-4", "c-3"]
    assert len(candidates()) == 6
    assert candidates("nobody") == []


def test_what_is_asked_wrongly_is_told(connection: Connection) -> None:
    fill(connection, [])
    with pytest.raises(ValueError, match="did you mean 'bulk_modulus_vrh'"):
        candidates("x", where="bulk_modulu_vrh>3")
    with pytest.raises(LookupError, match="'c-none'"):
        candidates("x", after="c-none")
    with pytest.raises(ValueError, match="no candidate id"):
        candidates("x", after={"$ne": 1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use skip with pareto"):
        candidates("x", after="c-zz", pareto="K")
    with pytest.raises(ValueError, match="no campaign 'x'"):
        candidates("x", pareto="objectives")
