"""A training that is stopped at any of its safe points and goes on ends in the same weights, bit for bit."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from inv_design.calculators.finetune import FinetuneSettings, finetune
from inv_design.calculators.frames import Frame, frames_of_calculation
from inv_design.checkpoint import Checkpoint, State, Within, load_optimizer, optimizer_arrays
from inv_design.datasets import mp_binaries
from inv_design.generators.con_cdvae import ConCDVAE
from inv_design.mechanics.stages import measure_equation_of_state
from inv_design.predictors.registry import make_predictor
from inv_design.testing import tiny_mace
from inv_design.weights import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Stopped(BaseException):
    """The process is gone."""


class Interrupted(Checkpoint):
    """Keeps every state as a file would, and stops the computation at some of the times that it is offered one."""

    def __init__(self, stops: set[int]) -> None:
        self.stops, self.offers, self.blob = stops, 0, b""

    def resume(self) -> State | None:
        return State(*unpack(self.blob)) if self.blob else None

    def offer(self, state: Callable[[], State]) -> None:
        self.offers += 1
        if self.offers in self.stops:
            found = state()
            self.blob = pack(found.tensors, found.values)
            torch.rand(7)  # another process has drawn other random numbers
            raise Stopped


def to_the_end(train: Callable[[Checkpoint], Any], stops: set[int]) -> tuple[Any, int]:
    """Return (result, offers) of a training that begins again after every stop."""
    checkpoint = Interrupted(stops)
    while True:
        try:
            return train(checkpoint), checkpoint.offers
        except Stopped:
            continue


def moments(offers: int) -> st.SearchStrategy[set[int]]:
    """Return up to three of the moments at which a training of so many safe points may be stopped."""
    return st.sets(st.integers(1, offers), min_size=1, max_size=3)


@pytest.fixture(scope="module", autouse=True)
def _alloys_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mp_binaries, "load_alloys", cache(mp_binaries.load_alloys))
        yield


# -- the predictor ----------------------------------------------------------------------------------------------------


def committee(checkpoint: Checkpoint | None, **options: Any) -> tuple[bytes, dict[str, Any]]:
    """Return (weights, metrics) of a small committee; early stopping and dropout so that all of the state counts."""
    alloys = mp_binaries.load_alloys()[:40]
    predictor = make_predictor(
        "cgcnn", committee=2, epochs=4, warm_epochs=3, batch_size=8, validation=0.3, patience=2, dropout=0.2
    )
    found = predictor.fit(
        [a.structure for a in alloys],
        [a.labels["bulk_modulus_vrh"] for a in alloys],
        seed=3,
        checkpoint=checkpoint,
        **options,
    )
    return predictor.to_bytes(), found


@cache
def undisturbed_committee() -> tuple[tuple[bytes, dict[str, Any]], int]:
    return to_the_end(committee, set())


@settings(max_examples=4, deadline=None)
@given(st.data())
def test_a_committee_ends_in_the_same_weights(data: st.DataObject) -> None:
    expected, offers = undisturbed_committee()
    assert offers >= 4
    assert committee(None) == expected
    stops = data.draw(moments(offers))
    found, made = to_the_end(committee, stops)
    assert found == expected
    assert made == offers  # nothing that was finished is trained again


def test_a_committee_that_continues_another_goes_on_too() -> None:
    from inv_design.predictors.registry import load_predictor

    previous = load_predictor(undisturbed_committee()[0][0])
    expected, offers = to_the_end(lambda c: committee(c, warm_start=previous), set())
    found, made = to_the_end(lambda c: committee(c, warm_start=previous), {1, offers})
    assert (found, made) == (expected, offers)
    assert expected != undisturbed_committee()[0]


# -- the generator ----------------------------------------------------------------------------------------------------


def new_generator() -> ConCDVAE:
    return ConCDVAE(joint_steps=24, decoder_steps=6, prior_steps=8, batch=16, finetune_steps=4)


@cache
def crystals() -> tuple[list[Any], list[float]]:
    alloys = mp_binaries.load_alloys()[:60]
    return [a.structure for a in alloys], [a.labels["bulk_modulus_vrh"] for a in alloys]


def generator(checkpoint: Checkpoint | None) -> tuple[bytes, dict[str, float]]:
    made = new_generator()
    structures, values = crystals()
    metrics = made.fit(structures, values, seed=5, checkpoint=checkpoint)
    return made.to_bytes(), metrics


@cache
def undisturbed_generator() -> tuple[tuple[bytes, dict[str, float]], int]:
    return to_the_end(generator, set())


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(st.data())
def test_a_generator_ends_in_the_same_weights(data: st.DataObject) -> None:
    expected, offers = undisturbed_generator()
    assert offers == 24 + 6 + 8
    found, made = to_the_end(generator, data.draw(moments(offers)))
    assert found == expected
    assert made == offers


@pytest.mark.parametrize(
    "stops", [{21, 27, 38}, *(pytest.param({n}, marks=pytest.mark.slow) for n in (24, 25, 30, 31))]
)
def test_a_generator_goes_on_at_the_borders_of_its_phases(stops: set[int]) -> None:
    expected, _ = undisturbed_generator()
    assert "best_step" in expected[1]  # the best validation is a part of the state
    assert to_the_end(generator, stops)[0] == expected


@pytest.mark.parametrize("stops", [{2, 5, 9}])
def test_a_finetuned_generator_ends_in_the_same_weights(stops: set[int]) -> None:
    structures, values = crystals()
    blob = undisturbed_generator()[0][0]

    def finetuned(checkpoint: Checkpoint | None) -> tuple[bytes, dict[str, float]]:
        made = ConCDVAE.from_bytes(blob)
        metrics = made.finetune(
            structures[:5], values[:5], replay_structures=structures[5:], replay_values=values[5:], seed=1,
            checkpoint=checkpoint,
        )  # fmt: skip
        return made.to_bytes(), metrics

    expected, offers = to_the_end(finetuned, set())
    assert offers == 4 + 2 + 6
    assert to_the_end(finetuned, stops)[0] == expected


# -- the potential ----------------------------------------------------------------------------------------------------


@cache
def frames() -> tuple[Frame, ...]:
    found = []
    for a, b, length in (("Al", "Ni", 2.9), ("Cu", "Pd", 3.0), ("Al", "Cu", 3.0), ("Ni", "Pd", 2.95)):
        crystal = Structure(Lattice.cubic(length), [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]])
        record = measure_equation_of_state(crystal, calculator="emt", strain=0.04)
        document = {**record, "calculation_id": a + b, "protocol_id": "p"}
        found += frames_of_calculation(document, Structure.from_dict(record["structure"]))
    return tuple(found)


@cache
def parent() -> bytes:
    torch.manual_seed(0)
    return tiny_mace()


def potential(checkpoint: Checkpoint | None, log: list[dict[str, Any]] | None = None) -> tuple[bytes, dict[str, Any]]:
    made = finetune(
        frames(),
        parent(),
        FinetuneSettings(steps=12, rate=0.02, batch=8, replay=6),
        checkpoint=checkpoint,
        log=None if log is None else log.append,
    )
    return made.blob, made.done


@cache
def undisturbed_potential() -> tuple[tuple[bytes, dict[str, Any]], int]:
    return to_the_end(potential, set())


def ends_the_same(stops: set[int]) -> None:
    expected, offers = undisturbed_potential()
    assert offers == expected[1]["steps_taken"] == 12
    log: list[dict[str, Any]] = []
    found, made = to_the_end(lambda c: potential(c, log), stops)
    assert found == expected
    assert made == offers
    assert [entry["step"] for entry in log if entry["event"] == "resumed"] == sorted(stops)


def test_a_potential_ends_in_the_same_weights() -> None:
    ends_the_same({6})


@pytest.mark.slow
@settings(max_examples=3, deadline=None)
@given(moments(12))
def test_a_potential_ends_in_the_same_weights_from_anywhere(stops: set[int]) -> None:
    ends_the_same(stops)


# -- the parts --------------------------------------------------------------------------------------------------------


def test_the_state_of_a_part_lies_in_that_of_the_whole() -> None:
    kept = Interrupted({1})
    part = Within(kept, lambda: State({"a": np.arange(3)}, {"members": 2}))
    with pytest.raises(Stopped):
        part.offer(lambda: State({"a": np.ones(2)}, {"epoch": 4}))
    saved = kept.resume()
    assert saved is not None
    rest, inner = Within.split(saved)
    assert (rest.tensors["a"].tolist(), rest.values) == ([0, 1, 2], {"members": 2})
    assert (inner.tensors["a"].tolist(), inner.values) == ([1.0, 1.0], {"epoch": 4})


@pytest.mark.parametrize("amsgrad", [False, True])
def test_an_optimizer_goes_on_bit_for_bit(amsgrad: bool) -> None:
    def run(stop: int | None) -> torch.Tensor:
        torch.manual_seed(1)
        layer = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, amsgrad=amsgrad)
        for step in range(6):
            if step == stop:
                saved, _ = unpack(pack(optimizer_arrays("o", optimizer), {}))
                optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, amsgrad=amsgrad)
                load_optimizer("o", optimizer, saved)
            optimizer.zero_grad()
            layer(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
        return layer.weight.detach().clone()

    assert torch.equal(run(None), run(3))
