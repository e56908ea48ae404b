from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from inv_design.objective import objectives_of
from inv_design.report.data import (
    BestCandidate,
    Distribution,
    ElementStage,
    Evaluation,
    LatentMap,
    ParetoPoint,
    Parity,
    Reliability,
    ReportData,
    RoundData,
    StageCount,
    StageNumber,
    element_shares,
)
from inv_design.report.page import render

SURROGATE = "surrogate (CHGNet E(V))"


def report_data(**changes: object) -> ReportData:
    rng = np.random.default_rng(0)
    rounds, distributions = [], []
    for number, mean in enumerate((290.0, 340.0)):
        stages = [
            StageCount("predictor", 40, 25, 15, 0, 0, "cgcnn", {"target": 10, "duplicate": 5}),
            StageCount("mlip", 25, 9, 13, 3, 0, "mace-alloy-small", {"born_stable": 4, "target": 9}),
            StageCount("dft", 9, 4, 3, 0, 2, SURROGATE, {"target": 3}),
        ]
        rounds.append(RoundData(number, 40, stages, "con_cdvae", f"t-{number}", 1309 + 7 * number))
        distributions += [
            Distribution(number, "predictor", "predictor (cgcnn)", rng.normal(mean, 40, 40).tolist()),
            Distribution(number, "dft", f"label: {SURROGATE}", [mean, mean + 20, 120.0]),
        ]
    structure = Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.12), ["Re", "W"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    numbers = [StageNumber("predictor", "cgcnn", 352.0, 11.0), StageNumber("dft", SURROGATE, 344.0)]
    values: dict[str, object] = {
        "campaign": "stiff <alloys>",
        "target": 350.0,
        "tolerance": 0.2,
        "rounds": rounds,
        "created_at": "2026-01-01",
        "label_method": SURROGATE,
        "training_values": {0: rng.gamma(3, 40, 300).tolist()},
        "distributions": distributions,
        "evaluations": [Evaluation(r, t, "E(V) by mace", 8, 0.3 / (r + 1), t) for r in (0, 1) for t in (100.0, 350.0)],
        "parities": [Parity("Validation", [100.0, 210.0], [110.0, 200.0], "cgcnn", "DFT", [9.0, 12.0])],
        "latent": LatentMap(rng.normal(size=(30, 8)), rng.gamma(3, 40, 30).tolist(), [0] * 25 + [1] * 5, "con_cdvae"),
        "element_sets": {0: [["Re", "W"], ["Re", "Os"], ["Mo", "W"]], 1: [["Re", "W"], ["Re", "Ir"], ["Nb", "Ta"]]},
        "best": [BestCandidate("c-01", "ReW", structure, numbers, 1, "Pm-3m (221)", True, 0.02, ["symmetry_residual"])],
        "provenance": {"Software": [("inv-design", "0.1.0")]},
    }
    return ReportData(**{**values, **changes})  # type: ignore[arg-type]


class Page(HTMLParser):
    """Collects what a page would load, and checks that its tags are balanced."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    return render(report_data())


def test_the_page_is_self_contained_and_well_formed(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert len(page.sources) >= 7
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert "<script" not in html
    assert not re.search(r"url\(|@import", html)


def test_names_are_escaped(html: str) -> None:
    assert "stiff &lt;alloys&gt;" in html
    assert "<alloys>" not in html


def test_the_surrogate_is_named_wherever_its_numbers_are(html: str) -> None:
    text = " ".join(Page(html).text.split())
    assert "Rehearsal." in text
    assert "344-2 % · surrogate (CHGNet E(V))" in text
    assert "surrogate labels are hits (within 20 % of 350 GPa, no quality flag against it)" in text


def test_dft_labels_are_not_called_a_rehearsal() -> None:
    data = report_data(label_method="VASP (PBE)", latent=None, parities=[], evaluations=[], best=[], distributions=[])
    assert "Rehearsal" not in render(data)


def test_the_headline_counts_what_the_records_say(html: str) -> None:
    text = " ".join(Page(html).text.split())
    assert "8 of 14" in text  # 4 passed and 3 rejected in each of two rounds
    assert "80crystals generated in 2 rounds" in text
    assert "from 1,309 in round 0" in text


def test_the_funnel_gives_reasons_and_failures(html: str) -> None:
    text = " ".join(Page(html).text.split())
    assert "target 9 · born stable 4 · failed 3" in text
    assert "target 3 · waiting 2" in text


def test_an_element_in_most_candidates_is_a_warning() -> None:
    text = render(report_data(latent=None, best=[]))
    assert "Narrow chemistry" in text
    assert "Re (67 %)" in text
    spread = {0: [[a, b] for a, b in zip("ABCDE", "FGHIJ", strict=True)]}
    assert "Narrow chemistry" not in render(report_data(element_sets=spread, latent=None, best=[]))


def test_a_campaign_that_has_just_begun_has_a_report() -> None:
    data = ReportData("new", 350.0, 0.2, [RoundData(0, 0, [StageCount("predictor")])], "2026-01-01")
    page = Page(render(data))
    assert page.open == []
    assert "Best candidates" not in page.text


def test_the_same_data_gives_the_same_page(html: str) -> None:
    assert render(report_data()) == html


def test_element_shares_count_crystals_not_atoms() -> None:
    assert element_shares([["Re", "Re", "W"], ["Re"]]) == [("Re", 1.0), ("W", 0.5)]


def test_hits_are_what_passed_stage_three() -> None:
    assert report_data().hits() == {0: (4, 7), 1: (4, 7)}
    stages = [StageCount("dft", 2, 0, 0, 1, 1)]
    assert report_data(rounds=[RoundData(0, 9, stages)]).hits() == {}


def test_doubtful_values_are_counted_not_drawn() -> None:
    distribution = Distribution(0, "mlip", "MLIP (m)", [300.0, 320.0], left_out=4)
    assert "4 more have quality flags" in render(report_data(distributions=[distribution], latent=None, best=[]))


def test_a_round_without_its_own_training_set_uses_the_one_before() -> None:
    data = report_data(training_values={0: [1.0], 2: [2.0]})
    assert [data.training_for(n) for n in (0, 1, 2, 3)] == [[1.0], [1.0], [2.0], [2.0]]


def test_the_best_number_is_the_last_stages() -> None:
    best = report_data().best[0]
    assert best.judged is not None
    assert best.judged.value == 344.0


def light(**changes: object) -> ReportData:
    """Return report data without the figures that take long."""
    return report_data(
        **{"latent": None, "best": [], "distributions": [], "evaluations": [], "parities": [], **changes}
    )


def test_several_objectives_have_a_front_and_a_table_of_it() -> None:
    objectives = objectives_of({"K": "350 GPa", "density": "min", "cost": "..8"})
    points = [
        ParetoPoint("c-1", "ReW", {"bulk_modulus_vrh": 345.0, "density": 19.0, "cost": 5.0}, "hit", 0, front=True),
        ParetoPoint("c-2", "Re3Os", {"bulk_modulus_vrh": 300.0, "density": 21.0, "cost": 9.0}, "open", 1),
        ParetoPoint("c-3", "TaOs", {"bulk_modulus_vrh": 250.0, "density": 12.0, "cost": 1.0}, "out", 1),
    ]
    page = Page(render(light(objectives=objectives, pareto=points)))
    text = " ".join(page.text.split())
    assert page.open == []
    assert "Crystals with a bulk modulus of 350 GPa; density: min; cost: at most 8" in text
    assert "1 of 3 candidates with a value of every objective are on the Pareto front" in text
    table = text[text.index("Between the objectives") :]
    assert "c-1" in table
    assert "c-3" not in table
    alone = render(light(objectives=objectives[:1], pareto=points))
    assert "Between the objectives" not in alone


def test_the_reliability_of_the_intervals_is_drawn_with_what_chance_allows() -> None:
    curve = Reliability("held-out crystals", [0.1, 0.5, 0.9], [0.12, 0.4, 0.8], 130)
    few = Reliability("labelled candidates", [0.1, 0.5, 0.9], [0.0, 0.5, 1.0], 1)
    with_curve, without = render(light(reliability=[curve, few])), render(light())
    assert "central intervals" in with_curve
    assert "central intervals" not in without
    assert len(Page(with_curve).sources) == len(Page(without).sources) + 1


def test_element_shares_of_every_stage_are_a_map_with_its_warnings() -> None:
    stages = {
        0: [ElementStage("training_set", 900, {"Al": 0.5, "Re": 0.1, "W": 0.4})],
        1: [
            ElementStage("training_set", 900, {"Al": 0.5, "Re": 0.1, "W": 0.4}),
            ElementStage("generated", 40, {"Re": 0.6, "W": 0.4}, {"Re": 6.0, "W": 1.0}),
            ElementStage("hits", 2, {"Re": 1.0}, {"Re": 9.0}),
        ],
    }
    text = render(light(element_stages=stages, warnings={1: ["Re is 60 % of the atoms"]}))
    assert "Narrow chemistry" in text
    assert "<li>Re is 60 % of the atoms</li>" in text
    assert "contain the element" not in text
    assert "Narrow chemistry" not in render(light(element_stages=stages, warnings={0: ["earlier"]}))
