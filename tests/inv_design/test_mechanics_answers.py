"""Relaxations and tensors that are stopped between two passes of the calculator go on from the answers they had."""

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.emt import EMT
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from inv_design.checkpoint import State
from inv_design.mechanics.answers import history_of, history_state
from inv_design.mechanics.evaluate import Evaluation
from inv_design.mechanics.lockstep import Memory, remembering, run_together
from inv_design.mechanics.stages import _elasticity
from inv_design.weights import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ase import Atoms

    from inv_design.mechanics.lockstep import History

OPTIONS: dict[str, Any] = {
    "fmax": 0.02, "max_steps": 60, "keep_structure": {"ltol": 0.3, "stol": 0.5, "angle_tol": 10},
}  # fmt: skip


class Batched(EMT):
    """EMT that evaluates many configurations in one call, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def calculate(self, *arguments: Any, **options: Any) -> None:
        self.count += 1
        super().calculate(*arguments, **options)

    def evaluate_batch(self, configurations: Sequence[Atoms]) -> list[dict[str, Any]]:
        found = []
        for atoms in configurations:
            one = atoms.copy()
            one.calc = self
            found.append({"energy": one.get_potential_energy(), "forces": one.get_forces(), "stress": one.get_stress()})
        return found


class Stopped(BaseException):
    """The process is gone."""


class Kept(Memory):
    """Keeps all answers as a file would, and stops the computations at some of the times that it is offered them."""

    def __init__(self, stops: set[int]) -> None:
        self.stops, self.offers = stops, 0
        self.blobs: dict[int, bytes] = {}

    def recall(self, index: int) -> History:
        return history_of(State(*unpack(self.blobs[index]))) if index in self.blobs else []

    def offer(self, histories: Mapping[int, History]) -> None:
        self.offers += 1
        if self.offers in self.stops:
            states = {index: history_state(history) for index, history in histories.items()}
            self.blobs |= {index: pack(state.tensors, state.values) for index, state in states.items()}
            raise Stopped


@cache
def crystals() -> tuple[Structure, ...]:
    pairs = [("Al", "Ni"), ("Cu", "Pd"), ("Ag", "Au")]
    made = [Structure(Lattice.cubic(3.0), pair, [[0, 0, 0], [0.5, 0.5, 0.5]]) for pair in pairs]
    hcp = Structure(Lattice.hexagonal(2.6, 4.4), ["Cu", "Cu"], [[1 / 3, 2 / 3, 0.26], [2 / 3, 1 / 3, 0.75]])
    return (*made, hcp)


def measured(stops: set[int], calculator: Any, batch: int = 3) -> tuple[dict[int, dict[str, Any]], int]:
    """Return (records, passes of the calculator), begun again after every stop with what lacks a record."""
    memory, found = Kept(stops), {}
    while True:
        left = [i for i in range(len(crystals())) if i not in found]
        keys = Shifted(memory, left)
        try:
            with remembering(keys):
                works = (_elasticity(crystals()[i], **OPTIONS) for i in left)
                for place, record in run_together(works, calculator, batch=batch):
                    found[left[place]] = record
        except Stopped:
            continue
        return found, memory.offers


class Shifted(Memory):
    """A memory of some of the crystals, under their own numbers."""

    def __init__(self, memory: Kept, numbers: list[int]) -> None:
        self.memory, self.numbers = memory, numbers

    def recall(self, index: int) -> History:
        return self.memory.recall(self.numbers[index])

    def offer(self, histories: Mapping[int, History]) -> None:
        self.memory.offer({self.numbers[index]: history for index, history in histories.items()})


@cache
def undisturbed() -> tuple[dict[int, dict[str, Any]], int, int]:
    calculator = Batched()
    found, passes = measured(set(), calculator)
    return found, passes, calculator.count


@settings(max_examples=5, deadline=None)
@given(st.data())
def test_crystals_go_on_from_the_answers_they_had(data: st.DataObject) -> None:
    expected, passes, evaluations = undisturbed()
    assert all(record["state"] == "completed" for record in expected.values())
    assert passes > 8
    stops = data.draw(st.sets(st.integers(1, passes), min_size=1, max_size=3))
    calculator = Batched()
    found, _ = measured(stops, calculator)
    assert found == expected
    assert calculator.count == evaluations  # nothing is asked twice


def test_nothing_is_kept_without_a_memory() -> None:
    works = (_elasticity(crystal, **OPTIONS) for crystal in crystals())
    assert dict(run_together(works, Batched(), batch=3)) == undisturbed()[0]


def test_answers_of_another_crystal_are_not_believed() -> None:
    class Wrong(Memory):
        def recall(self, index: int) -> History:
            del index
            return [[Evaluation(1.0, np.zeros((5, 3)), np.zeros(6))]]

    with remembering(Wrong()):
        found = dict(run_together((_elasticity(c, **OPTIONS) for c in crystals()), Batched(), batch=3))
    assert found == undisturbed()[0]


def test_failed_answers_come_back_too() -> None:
    nan = float("nan")
    history = [
        [Evaluation(-1.5, np.arange(6.0).reshape(2, 3), np.arange(6.0))],
        [
            Evaluation(nan, np.full((3, 3), nan), np.full(6, nan), "it failed"),
            Evaluation(0.1, np.ones((1, 3)), np.ones(6)),
        ],
    ]  # fmt: skip
    state = history_state(history)
    back = history_of(State(*unpack(pack(state.tensors, state.values))))
    assert [len(answer) for answer in back] == [1, 2]
    for one, other in zip(chain(*history), chain(*back), strict=True):
        assert one.error == other.error
        np.testing.assert_array_equal(one.energy, other.energy)
        np.testing.assert_array_equal(one.forces, other.forces)
        np.testing.assert_array_equal(one.stress, other.stress)
    assert history_of(history_state([])) == []
