"""The evaluation that closes a round goes on from its checkpoint with the crystals that it judged, no others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from pymatgen.core import Lattice, Structure

from fireworks_specs import pool, steps
from fireworks_specs.firetasks.close import CloseTask
from fireworks_specs.preemption import Preempted
from inv_design.config import CampaignConfig
from stores.claims import Claims
from stores.provenance import provenance
from stores.records import insert_campaign

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stores.connection import Connection

CONFIG: dict[str, Any] = {
    "name": "a", "targets": {"bulk_modulus_vrh": 150.0}, "stages": {"mlip": {"calculator": "emt"}}
}  # fmt: skip


def crystal(a: float) -> Structure:
    return Structure(Lattice.cubic(a), ["Al"], [[0.0] * 3])


class Close(CloseTask):  # type: ignore[misc]
    """Samples what it is told."""

    config = CampaignConfig.model_validate(CONFIG)
    samples: dict[float, list[Structure]]

    def _sample(self, _model_id: str, target: float) -> list[Any]:
        return self.samples[target]


class Judge:
    """Says a crystal's length for its modulus, and is cut off when it has judged a number of them."""

    def __init__(self) -> None:
        self.judged: list[float] = []
        self.most = 100

    def __call__(self, _measure: Any, structures: list[Structure], **_: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, structure in enumerate(structures):
            if len(self.judged) == self.most:
                raise Preempted(15)
            self.judged.append(structure.lattice.a)
            yield index, {"state": "completed", "results": {"bulk_modulus_vrh": structure.lattice.a}}


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    judge = Judge()
    monkeypatch.setattr(pool, "map_structures", judge)
    monkeypatch.setattr(steps, "model_of_round", lambda *_: SimpleNamespace(model_id="m-1"))
    monkeypatch.setenv("INV_DESIGN_CHECKPOINT", "0")
    return judge


def evaluate(task: Close) -> None:
    with Claims(campaign="a", stage="close") as claims:
        claims.claim(["close/a/0"])
        task._evaluate(list(task.samples), "close/a/0", claims)


FIRST = {120.0: [crystal(3.0), crystal(3.1)], 150.0: [crystal(3.2), crystal(3.3)]}
FEWER = {120.0: [crystal(3.0), crystal(3.1)], 150.0: [crystal(3.2)]}
MOVED = {120.0: [crystal(3.0)], 150.0: [crystal(3.1), crystal(3.2), crystal(3.3)]}  # as many in all
FLAT = {120.0: [Structure(Lattice.cubic(1e-3), ["Al"], [[0.0] * 3])], 150.0: [crystal(3.2)]}  # has no id


@pytest.mark.parametrize(("then", "left"), [(FIRST, 1), (FEWER, 3), (MOVED, 4), (FLAT, 2)])
def test_an_evaluation_goes_on_only_with_the_crystals_it_judged(
    embedded_connection: Connection, judge: Judge, then: dict[float, list[Structure]], left: int
) -> None:
    task = Close(campaign="a", round=0)
    task.samples, judge.most = FIRST, 3
    with pytest.raises(Preempted):
        evaluate(task)
    task.samples, judge.most, judge.judged = then, 100, []  # on another node
    evaluate(task)
    assert len(judge.judged) == left
    found = {e["target"]: e["values"] for e in embedded_connection.db["evaluations"].find()}
    assert found == {target: [c.lattice.a for c in crystals] for target, crystals in then.items()}
    assert embedded_connection.db["checkpoints"].count_documents({}) == 0


@pytest.mark.parametrize("targets", [[120.0, 150.0], [0.0], []])
def test_a_round_is_closed_when_every_target_has_its_evaluation(
    embedded_connection: Connection, judge: Judge, monkeypatch: pytest.MonkeyPatch, targets: list[float]
) -> None:
    config = CampaignConfig.model_validate(CONFIG | {"evaluation": {"targets": targets}})
    insert_campaign("a", config.model_dump(mode="json"), targets=config.targets, provenance=provenance())
    monkeypatch.setattr(Close, "config", config)
    monkeypatch.setattr("fireworks_specs.firetasks.close.judge_as_before", lambda _: None)
    task = Close(campaign="a", round=0)
    task.samples = FIRST
    assert not steps.round_closed("a", 0)
    task.work()
    assert steps.round_closed("a", 0)
    assert not steps.round_closed("a", 1)
    if len(targets) > 1:  # a server that was killed has kept the first
        embedded_connection.db["evaluations"].delete_one({"target": targets[-1]})
        assert not steps.round_closed("a", 0)
        before = len(judge.judged)
        task.work()
        assert steps.round_closed("a", 0)
        assert len(judge.judged) == before + 2  # the other target's crystals are judged once
