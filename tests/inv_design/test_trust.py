"""The trust report's numbers and its page, from plain summaries."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inv_design.metrics.share import Share
from inv_design.metrics.trust import (
    PATHS,
    VERDICTS,
    Judgement,
    Row,
    agreement,
    agreements,
    before_and_after,
    confusion,
    interval,
    rows_of,
    spearman,
    unknown,
    verdict_shares,
)
from inv_design.report.trust import Trust, overview, page, section


def summary(
    name: str,
    *,
    predictor: float | None = None,
    mlip: float | None = None,
    label: float | None = None,
    statuses: tuple[str, str, str] = ("passed", "passed", "passed"),
    **more: Any,
) -> dict[str, Any]:
    """Return a candidate summary with the values of the stages that have one (GPa)."""
    stages: dict[str, Any] = {}
    if predictor is not None:
        stages["predictor"] = {"value": predictor, "std": 10.0, "status": statuses[0]}
    if mlip is not None:
        stages["mlip"] = {"value": mlip, "status": statuses[1], "flags": []}
    if label is not None:
        stages["dft"] = {
            "value": label, "status": statuses[2], "method": "gpaw", "calculation_id": f"k-{name}"
        }  # fmt: skip
    base = {"candidate_id": f"c-{name}", "structure_id": f"s-{name}", "formula": name, "round": 0}
    return {**base, "stages": stages, **more}


CAMPAIGN = [
    summary("ReW", predictor=350.0, mlip=360.0, label=340.0),
    summary("IrRe", predictor=370.0, mlip=330.0, label=262.0, statuses=("passed", "passed", "rejected")),
    summary("OsTa", predictor=340.0, mlip=341.0, label=349.0, round=1),
    summary("OsW", predictor=340.0, mlip=200.0, statuses=("passed", "rejected", "")),
    summary("AlNi", predictor=150.0, statuses=("rejected", "", "")),
    summary("CuZn", predictor=345.0, statuses=("rejected", "", ""), duplicate_of="c-ReW"),
    summary("RuW", predictor=331.0, mlip=330.0),
    summary("MoRe", predictor=330.0),
    {"candidate_id": "c-broken", "round": None},
]


def test_rows_have_what_each_judge_says() -> None:
    rows = {r.formula: r for r in rows_of(CAMPAIGN, predictor="cgcnn", potential=lambda n: f"mace-{n}")}
    assert len(rows) == len(CAMPAIGN) - 1
    first = rows["ReW"]
    assert first.judgements["predictor"] == Judgement(350.0, "cgcnn", 10.0)
    assert first.judgements["mlip"].method == "mace-0"
    assert rows["OsTa"].judgements["mlip"].method == "mace-1"
    assert first.judgements["label"].method == "gpaw"
    assert first.deviation("mlip", "label") == pytest.approx(360 / 340 - 1)
    assert rows["MoRe"].deviation("mlip", "label") is None
    assert (rows["IrRe"].path, rows["IrRe"].verdict) == (PATHS[2], "miss")
    assert (rows["OsW"].path, rows["OsW"].verdict) == (PATHS[1], "not labelled")
    assert (rows["AlNi"].path, rows["CuZn"].duplicate) == (PATHS[0], True)
    assert rows["MoRe"].path == PATHS[3]
    assert first.record()["deviations"]["predictor_label"] == pytest.approx(350 / 340 - 1)


def test_agreement_is_what_it_says() -> None:
    found = agreement(rows_of(CAMPAIGN), "predictor", "label")
    relative = [350 / 340 - 1, 370 / 262 - 1, 340 / 349 - 1]
    assert found["n"] == 3
    assert found["mean_relative_error"] == pytest.approx(sum(map(abs, relative)) / 3)
    assert found["bias"] == pytest.approx(sum(relative) / 3)
    assert found["bias_gpa"] == pytest.approx((10 + 108 - 9) / 3)
    assert found["mae_log10"] == pytest.approx(sum(abs(math.log10(1 + r)) for r in relative) / 3)
    # log K counts: 349 lies within 340 ± 10; 340 is 1.01 standard deviations below 350 ± 10, 262 lies far off
    assert found["coverage_1s"] == pytest.approx(1 / 3)
    assert found["spearman"] == pytest.approx(-1.0)
    assert "coverage_1s" not in agreement(rows_of(CAMPAIGN), "mlip", "label")
    assert agreement([], "mlip", "label") == {"judge": "mlip", "reference": "label", "n": 0, "left_out": 0}


def test_coverage_is_counted_as_in_the_reports_reliability() -> None:
    from statistics import NormalDist

    from inv_design.cli.report_data import reliabilities

    # 240 and 241 are 2.0 linear, but 2.2 logarithmic standard deviations off 300 ± 30; 362 is 2.1 and 1.9
    rows = [
        summary(f"X{i}", predictor=300.0, label=v) for i, v in enumerate((240.0, 241.0, 250.0, 300.0, 330.0, 362.0))
    ]
    for row in rows:
        row["stages"]["predictor"]["std"] = 30.0
    found = agreement(rows_of(rows), "predictor", "label")
    (curve,) = reliabilities(None, rows)
    level = 2 * NormalDist().cdf(2.0) - 1
    drawn = dict(zip(curve.nominal, curve.observed, strict=True))
    assert level == pytest.approx(0.95, abs=0.005)
    assert found["coverage_2s"] == pytest.approx(drawn[0.95], abs=1e-3) == pytest.approx(4 / 6, abs=1e-3)


def test_values_in_doubt_take_no_part_and_are_counted() -> None:
    doubtful = summary("X", predictor=300.0, mlip=900.0, label=300.0)
    doubtful["stages"]["mlip"]["flags"] = ["bulk_modulus_mismatch", "shear_modulus_out_of_bounds"]
    rows = rows_of([*CAMPAIGN, doubtful])
    assert rows[-1].judgements["mlip"].doubts == ["bulk_modulus_mismatch"]
    without = agreement(rows_of(CAMPAIGN), "mlip", "label")
    assert agreement(rows, "mlip", "label") == without | {"left_out": 1}


def test_methods_are_judged_apart() -> None:
    rows = rows_of(CAMPAIGN, potential=lambda number: ("mace", "tuned")[number])
    found = {(a["judge"], a["reference"], a["method"]): a for a in agreements(rows)}
    assert found["mlip", "label", "mace"]["n"] == 2
    assert found["mlip", "label", "tuned"]["n"] == 1
    assert found["mlip", "label", "tuned"]["rounds"] == [1]
    assert found["predictor", "label", "predictor"]["n"] == 3


@given(st.lists(st.tuples(st.floats(1, 500), st.floats(1, 500)), min_size=2, max_size=30))
def test_the_rank_correlation_is_scipys(pairs: list[tuple[float, float]]) -> None:
    from scipy.stats import spearmanr

    one, other = map(list, zip(*pairs, strict=True))
    found = spearman(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(one, other).statistic, abs=1e-9)


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_every_candidate_is_in_one_cell() -> None:
    table = confusion(rows_of(CAMPAIGN))
    assert sum(sum(cells.values()) for cells in table.values()) == len(CAMPAIGN) - 1
    assert table[PATHS[0]] == dict.fromkeys(VERDICTS, 0) | {"not labelled": 2}
    assert table[PATHS[2]] == {"hit": 2, "miss": 1, "failed": 0, "not labelled": 1}
    shares = verdict_shares(rows_of(CAMPAIGN))
    assert (shares["stage_II_by_III"]["count"], shares["stage_II_by_III"]["total"]) == (2, 3)
    assert (shares["stage_I_by_II"]["count"], shares["stage_I_by_II"]["total"]) == (4, 5)
    assert shares["stage_II_misses"]["fraction"] is None


def test_what_is_not_known_is_said() -> None:
    lines = " ".join(unknown(rows_of(CAMPAIGN)))
    assert "Stage I rejected 2 candidates (1 of them as duplicates)" in lines
    assert "rate of missed hits is not known (stages.dft.audit_per_round" in lines
    assert "1 candidates passed stage II and were not labelled" in lines
    assert unknown([]) == []


def test_audits_tell_what_stage_two_missed() -> None:
    audit = {"status": "passed", "value": 350.0, "method": "gpaw", "calculation_id": "k-a"}
    other = summary("WTa", predictor=345.0, mlip=250.0, statuses=("passed", "rejected", ""))
    rows = rows_of([*CAMPAIGN, other | {"audit": audit}])
    assert rows[-1].audited
    assert (rows[-1].path, rows[-1].verdict) == (PATHS[1], "hit")
    assert rows[-1].judgements["label"].value == 350.0
    shares = verdict_shares(rows)
    assert (shares["stage_II_misses"]["count"], shares["stage_II_misses"]["total"]) == (1, 1)
    assert (shares["stage_II_by_III"]["count"], shares["stage_II_by_III"]["total"]) == (2, 3)  # the precision stays
    assert "1 of them, chosen at random, were labelled, 1 are hits" in " ".join(unknown(rows))


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_its_share(counts: tuple[int, int]) -> None:
    found = interval(Share(*counts))
    assert found is not None
    assert 0 <= found[0] <= counts[0] / counts[1] + 1e-12
    assert counts[0] / counts[1] - 1e-12 <= found[1] <= 1


def test_the_interval_is_wilsons() -> None:
    assert interval(Share(0, 0)) is None
    assert interval(Share(8, 10)) == pytest.approx((0.4902, 0.9433), abs=1e-4)


# -- fine-tuning ------------------------------------------------------------------------------------------------------


def tuned_rows() -> list[Row]:
    later = [
        summary(f"A{n}", predictor=300.0, mlip=310.0, label=300.0 + n, round=1) for n in range(4)
    ]  # fmt: skip
    return rows_of([*CAMPAIGN, *later], potential=lambda number: ("mace", "m-tuned")[number])


def test_only_what_was_not_learned_judges_a_fine_tuned_potential() -> None:
    base = {f"s-A{n}": Judgement(345.0, "mace") for n in range(4)}
    learned = frozenset({"k-ReW", "k-IrRe", "k-A3"})  # the last one somehow got into the training
    (found,) = before_and_after(tuned_rows(), base, {1: learned})
    assert (found["round"], found["n"], found["learned"]) == (1, 3, 3)
    assert (found["base"], found["method"]) == ("mace", "m-tuned")
    labels = [300.0, 301.0, 302.0]
    assert found["before"]["mean_relative_error"] == pytest.approx(sum(345 / x - 1 for x in labels) / 3)
    assert found["after"]["mean_relative_error"] == pytest.approx(sum(310 / x - 1 for x in labels) / 3)
    assert before_and_after(tuned_rows(), {}, {1: learned}) == []
    assert before_and_after(tuned_rows(), base, {}) == []


def test_both_potentials_are_judged_on_the_same_candidates() -> None:
    base = {f"s-A{n}": Judgement(345.0, "mace", doubts=["bulk_modulus_mismatch"] if n else []) for n in range(3)}
    (found,) = before_and_after(tuned_rows(), base, {1: frozenset()})
    assert found["n"] == found["before"]["n"] == found["after"]["n"] == 1


# -- the page ---------------------------------------------------------------------------------------------------------


def trust(rows: list[Row], **options: Any) -> Trust:
    return Trust(
        "stiff", rows, "surrogate (chgnet E(V))", 350.0, 0.2, options.get("base", {}), options.get("learned", {})
    )


def test_the_page_says_what_there_is() -> None:
    base = {f"s-A{n}": Judgement(345.0, "mace<") for n in range(4)}
    text = page(trust(tuned_rows(), base=base, learned={1: frozenset({"k-A3"})}), "2026-11-22")
    assert text.count("data:image/svg+xml") == 3
    assert "Rehearsal" in text
    assert "before and after fine-tuning" in text
    assert "mace&lt; → m-tuned" in text
    assert "<td class='n'>3</td>" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert page(trust(rows_of(CAMPAIGN)), "x").count("data:image/svg+xml") == 2


@pytest.mark.parametrize("rows", [[], CAMPAIGN[4:5]])
def test_a_campaign_without_two_judges_has_no_section(rows: list[dict[str, Any]]) -> None:
    assert section(trust(rows_of(rows))) == ""
    assert "No candidate has been judged twice" in page(trust(rows_of(rows)), "x")


@pytest.mark.parametrize("rows", [CAMPAIGN, CAMPAIGN[:1], CAMPAIGN[3:4]])
def test_the_picture_is_a_picture(rows: list[dict[str, Any]]) -> None:
    assert overview(trust(rows_of(rows))).startswith(b"\x89PNG")
