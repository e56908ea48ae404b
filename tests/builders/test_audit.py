"""Audits: some rejects of stage II are drawn and labelled; they never count as hits or against the budget."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from builders.screening_queue import next_candidates
from inv_design.config import CampaignConfig
from inv_design.screening.audit import drawn, waiting


def config(audits: int, budget: int = 1) -> CampaignConfig:
    dft = {"audit_per_round": audits, "budget_per_round": budget}
    return CampaignConfig.model_validate({"name": "a", "targets": {"K": "300 GPa"}, "stages": {"dft": dft}})


def summary(number: int, *, stage: str = "mlip", status: str = "rejected", **more: Any) -> dict[str, Any]:
    stages = {"predictor": {"status": "passed", "value": 300.0, "std": 10.0}}
    stages["mlip"] = {"status": status if stage == "mlip" else "passed", "value": 200.0 + number}
    if stage == "dft":
        stages["dft"] = {"status": status}
    base = {"candidate_id": f"c-{number:02d}", "structure_id": f"s-{number}", "round": 0, "chemsys": f"X-{number}"}
    return {**base, "stage": stage, "status": status, "stages": stages, **more}


def queued(summaries: list[dict[str, Any]], chosen: CampaignConfig) -> list[tuple[str, str]]:
    return [(q["stage"], q["candidate_id"]) for q in next_candidates(summaries, config=chosen)]


def test_without_audits_rejects_are_not_labelled() -> None:
    rejects = [summary(n) for n in range(6)]
    assert queued(rejects, config(0)) == []


def test_the_draw_is_labelled_beyond_the_budget_and_after_the_rest() -> None:
    good = [summary(n, stage="dft", status="waiting") for n in (10, 11)]
    rejects = [summary(n) for n in range(6)]
    found = queued([*rejects, *good], config(2, budget=1))
    assert [stage for stage, _ in found] == ["dft"] * 3
    assert found[0][1] in ("c-10", "c-11")
    assert {identity for _, identity in found[1:]} == {s["candidate_id"] for s in drawn(rejects, 2, seed=0)}


def test_nobody_is_drawn_before_stage_two_is_done() -> None:
    rejects = [summary(n) for n in range(3)]
    assert {stage for stage, _ in queued([*rejects, summary(9, status="waiting")], config(2))} == {"mlip"}


def test_what_was_labelled_is_not_labelled_again_and_the_draw_stays() -> None:
    rejects = [summary(n) for n in range(6)]
    first, second = drawn(rejects, 2, seed=0)
    done = [
        s | ({"audit": {"status": "rejected", "value": 1.0}} if s["candidate_id"] == first["candidate_id"] else {})
        for s in rejects
    ]
    assert queued(done, config(2)) == [("dft", second["candidate_id"])]
    again = [
        s | ({"audit": {"status": "waiting", "attempts": 1}} if s["candidate_id"] == first["candidate_id"] else {})
        for s in rejects
    ]
    entry = next(q for q in next_candidates(again, config=config(2)) if q["candidate_id"] == first["candidate_id"])
    assert entry["attempts"] == 1


def test_failed_and_passed_candidates_are_not_drawn() -> None:
    others = [summary(1, status="failed"), summary(2, stage="dft", status="rejected")]
    assert drawn(others, 5, seed=0) == []


@given(st.lists(st.integers(0, 60), unique=True, max_size=30), st.integers(0, 5), st.randoms())
def test_the_draw_depends_on_nothing_but_ids_and_seed(numbers: list[int], n: int, random: Any) -> None:
    rejects = [summary(k) for k in numbers]
    shuffled = list(rejects)
    random.shuffle(shuffled)
    labelled = [s | {"audit": {"status": "passed"}} for s in shuffled]
    expected = [s["candidate_id"] for s in drawn(rejects, n, seed=1)]
    assert len(expected) == min(n, len(rejects))
    assert [s["candidate_id"] for s in drawn(labelled, n, seed=1)] == expected
    assert waiting(labelled, n, seed=1) == []
