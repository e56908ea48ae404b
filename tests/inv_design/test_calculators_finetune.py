"""Fine-tuning: what frames hold, what is learned from them, and that what was asked is what ran."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from inv_design.calculators.finetune import (
    Finetuned,
    FinetuneSettings,
    check_log,
    energy_shifts,
    finetune,
    shifted,
    split_systems,
    usable_frames,
)
from inv_design.calculators.frame_errors import bulk_modulus, errors_of
from inv_design.calculators.frames import Frame, frames_digest, frames_of_calculation, read_frames
from inv_design.calculators.mace_model import MaceEvaluator, build_network, load_network, network_tensors
from inv_design.calculators.registry import (
    cache_model,
    cached_model,
    calculator_protocol,
    get_calculator,
    network_weights,
)
from inv_design.calculators.replay import replay_frames
from inv_design.mechanics.eos import BirchMurnaghan
from inv_design.mechanics.evaluate import GPA_PER_EV_A3
from inv_design.mechanics.stages import measure_equation_of_state
from inv_design.testing import TINY_MACE, tiny_mace
from inv_design.weights import sha256, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

METALS = {"Al": 4.0, "Ni": 3.5, "Cu": 3.6, "Pd": 3.9}
QUICK = FinetuneSettings(steps=60, rate=0.1, batch=8, replay=20, patience=12)


@pytest.fixture(scope="module", autouse=True)
def _alloys_read_once() -> Iterator[None]:
    """Read the packaged alloys once: a training reads them once, these tests train often."""
    from inv_design.datasets import mp_binaries

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mp_binaries, "load_alloys", cache(mp_binaries.load_alloys))
        yield


@pytest.fixture(scope="module")
def parent() -> bytes:
    import torch

    torch.manual_seed(0)
    return tiny_mace()


@pytest.fixture(scope="module")
def teacher(parent: bytes) -> MaceEvaluator:
    return MaceEvaluator(load_network(*unpack(parent)))


def emt_frame(symbol: str, scale: float = 1.0, rattle: float = 0.0) -> Frame:
    atoms = bulk(symbol, "fcc", a=METALS[symbol] * scale, cubic=True)
    atoms.rattle(rattle, seed=1)
    atoms.calc = EMT()
    stress = atoms.get_stress(voigt=False) * GPA_PER_EV_A3
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    return Frame(AseAtomsAdaptor.get_structure(atoms), energy, forces, stress, group=symbol, level="emt")


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    scales = (0.97, 0.985, 1.0, 1.015, 1.03)
    return [emt_frame(symbol, scale, r) for symbol in METALS for scale in scales for r in (0.0, 0.1)]


@pytest.fixture(scope="module")
def tuned(frames: list[Frame], parent: bytes) -> tuple[Finetuned, list[dict[str, Any]]]:
    log: list[dict[str, Any]] = []
    return finetune(frames, parent, QUICK, name="tuned", log=log.append), log


# -- frames -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eos_record() -> dict[str, Any]:
    """Give EMT's stage-III record of B2 AlNi, started off its volume."""
    structure = Structure(Lattice.cubic(3.0), ["Al", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    record = measure_equation_of_state(structure, calculator="emt", strain=0.04)
    assert record["state"] == "completed"
    return {**record, "calculation_id": "k-1", "protocol_id": "p-1"}


def test_an_equation_of_state_holds_frames_with_the_pressures_of_its_calculator(eos_record: dict[str, Any]) -> None:
    crystal = Structure.from_dict(eos_record["structure"])
    frames = frames_of_calculation(eos_record, crystal)
    assert len(frames) == len(eos_record["results"]["volumes"])
    relaxed = [frame for frame in frames if frame.forces is not None]
    assert len(relaxed) == 1
    assert np.abs(relaxed[0].forces).max() == 0
    assert np.abs(relaxed[0].stress).max() < 0.5
    for frame, energy in zip(frames, eos_record["results"]["energies"], strict=True):
        atoms = AseAtomsAdaptor.get_atoms(frame.structure)
        atoms.calc = EMT()
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        assert frame.energy == pytest.approx(energy * 2)
        own = -atoms.get_stress()[:3].mean() * GPA_PER_EV_A3
        assert frame.known_pressure == pytest.approx(own, abs=1.0)  # of -20 to 30 GPa
    modulus = bulk_modulus([f.volume for f in frames], [f.known_pressure or 0 for f in frames])
    assert modulus == pytest.approx(eos_record["results"]["bulk_modulus_vrh"], rel=0.05)


def test_an_elastic_tensor_alone_holds_pressures_and_no_energies() -> None:
    crystal = Structure(Lattice.cubic(3.0), ["Al", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    results = {"bulk_modulus_vrh": 160.0, "bulk_modulus_voigt": 165.0, "relaxed": True}
    frames = frames_of_calculation({"calculation_id": "k", "protocol_id": "p", "results": results}, crystal)
    assert [frame.energy for frame in frames] == [None] * 3
    assert [frame.forces is not None for frame in frames] == [False, True, False]
    modulus = bulk_modulus([f.volume for f in frames], [f.known_pressure or 0 for f in frames])
    assert modulus == pytest.approx(165.0, rel=0.02)


def test_stored_frames_are_taken_as_they_are(frames: list[Frame]) -> None:
    stored = [
        {
            "structure": f.structure.as_dict(),
            "energy": f.energy,
            "forces": f.forces.tolist(),
            "stress": f.stress.tolist(),
        }
        for f in frames[:2]
        if f.forces is not None and f.stress is not None
    ]
    record = {"calculation_id": "Al", "protocol_id": "emt", "results": {"frames": stored, "bulk_modulus_vrh": 1.0}}
    assert frames_digest(frames_of_calculation(record, frames[0].structure)) == frames_digest(frames[:2])


def test_a_calculation_without_labels_is_refused() -> None:
    crystal = Structure(Lattice.cubic(3.0), ["Al"], [[0, 0, 0]])
    with pytest.raises(ValueError, match="k-7"):
        frames_of_calculation({"calculation_id": "k-7", "protocol_id": "p", "results": {"relaxed": True}}, crystal)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({}, "no label"),
        ({"energy": float("nan")}, "not finite"),
        ({"forces": np.zeros((2, 3))}, r"shape \(2, 3\)"),
        ({"stress": np.zeros(6)}, r"shape \(6,\)"),
    ],
)
def test_a_frame_with_unusable_labels_is_refused(labels: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Frame(Structure(Lattice.cubic(3.0), ["Al"], [[0, 0, 0]]), **labels)


def test_the_digest_knows_labels_and_not_the_order(frames: list[Frame]) -> None:
    assert frames_digest(frames) == frames_digest(frames[::-1])
    assert frames[0].energy is not None
    changed = [replace(frames[0], energy=frames[0].energy + 1e-4), *frames[1:]]
    assert frames_digest(frames) != frames_digest(changed)


def test_frames_of_a_file_are_in_gpa_and_bad_ones_are_named(tmp_path: Path) -> None:
    atoms = bulk("Cu", "fcc", a=3.5, cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = EMT()
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=stress)
    named = atoms.copy()
    named.info |= {"REF_energy": energy, "REF_stress": stress, "group": "copper"}
    named.arrays["REF_forces"] = forces
    molecule = atoms.copy()
    molecule.pbc = False
    write(tmp_path / "frames.extxyz", [atoms, named, atoms.copy(), molecule], format="extxyz")
    frames, left_out = read_frames(tmp_path / "frames.extxyz")
    assert len(frames) == 2
    for frame in frames:
        assert frame.energy == pytest.approx(energy, abs=1e-6)
        assert np.allclose(frame.forces, forces, atol=1e-6)
        assert frame.known_pressure == pytest.approx(-stress[:3].mean() * GPA_PER_EV_A3, abs=1e-3)
    assert [frame.group for frame in frames] == ["Cu", "copper"]
    assert len(left_out) == 2
    assert "frames.extxyz:2" in left_out[0]
    assert "not periodic" in left_out[1]
    with pytest.raises(ValueError, match="ase convert OUTCAR"):
        read_frames("OUTCAR")
    with pytest.raises(FileNotFoundError):
        read_frames(tmp_path / "none.extxyz")
    (tmp_path / "bad.xyz").write_text("rubbish\n")
    with pytest.raises(ValueError, match=r"bad\.xyz"):
        read_frames(tmp_path / "bad.xyz")


# -- pieces -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(k=st.floats(20, 500), derivative=st.floats(3, 6), v0=st.floats(8, 40), off=st.floats(-0.02, 0.02))
def test_the_modulus_of_pressures_is_that_of_their_curve(k: float, derivative: float, v0: float, off: float) -> None:
    volumes = v0 * (1 + off + np.linspace(-0.04, 0.04, 7)) ** 3
    pressures = BirchMurnaghan(0.0, v0, k, derivative, 0.0).pressure(volumes) * GPA_PER_EV_A3
    assert bulk_modulus(volumes.tolist(), pressures.tolist()) == pytest.approx(k, rel=0.01)


@settings(deadline=None)
@given(st.sets(st.text("ABCDEFG", min_size=1, max_size=3)))
def test_systems_are_split_by_their_names(systems: set[str]) -> None:
    splits = split_systems(systems)
    assert sorted(chain.from_iterable(splits.values())) == sorted(systems)
    if len(systems) >= 4:
        assert splits["held_out"]
        assert splits["validation"]
        more = split_systems(systems | {"New-System"})
        # only a system that had to be held out although its hash did not ask for it may come back
        assert len(set(splits["held_out"]) - set(more["held_out"])) <= 1
    else:
        assert splits["train"] == sorted(systems)


def test_shifts_take_off_any_zero_of_energy(teacher: MaceEvaluator) -> None:
    zeros = {13: -100.0, 28: 7.0, 29: 0.3, 46: -2000.0}
    crystals = [
        Structure(Lattice.cubic(3.0 + 0.1 * i), pair, [[0, 0, 0], [0.5, 0.5, 0.5]])
        for i, pair in enumerate([("Al", "Ni"), ("Al", "Cu"), ("Ni", "Pd"), ("Cu", "Pd"), ("Al", "Al"), ("Ni", "Cu")])
    ]
    numbers = [[site.specie.Z for site in crystal] for crystal in crystals]
    own = [
        e
        for e, _, _ in teacher.evaluate(
            [(z, c.cart_coords, c.lattice.matrix) for z, c in zip(numbers, crystals, strict=True)]
        )
    ]
    labelled = [
        Frame(crystal, energy=energy + sum(zeros[z] for z in row), group=crystal.formula, level="other")
        for crystal, energy, row in zip(crystals, own, numbers, strict=True)
    ]
    shifts = energy_shifts(labelled, teacher)
    assert [shifted(f, shifts).energy for f in labelled] == pytest.approx(own, abs=0.01)
    other = replace(labelled[0], level="unknown")
    assert shifted(other, shifts).energy == other.energy


def test_replay_is_labelled_by_the_teacher_and_leaves_out_what_is_taught(teacher: MaceEvaluator) -> None:
    replay = replay_frames(teacher, 15, seed=1, exclude={"Al-Ni"})
    assert (len(replay.train), len(replay.validation)) == (15, 2)
    every = [*replay.train, *replay.validation, *replay.curves]
    assert "Al-Ni" not in {frame.chemsys for frame in every}
    groups = [{frame.group for frame in part} for part in (replay.train, replay.validation, replay.curves)]
    assert sum(map(len, groups)) == len(set.union(*groups))
    errors = errors_of(teacher, every)
    assert max(errors[key] for key in ("energy", "forces", "pressure")) < 1e-6
    assert len(replay.curves) == 5 * len(groups[2])
    assert frames_digest(replay_frames(teacher, 15, seed=1, exclude={"Al-Ni"}).train) == frames_digest(replay.train)
    assert frames_digest(replay_frames(teacher, 15, seed=2, exclude={"Al-Ni"}).train) != frames_digest(replay.train)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"steps": 0}, "steps"), ({"rate": 0.0}, "rate"), ({"replay": -1}, "replay"), ({"dtype": "float16"}, "float16")],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FinetuneSettings(**wrong)


# -- training ---------------------------------------------------------------------------------------------------------


def test_training_learns_the_frames(tuned: tuple[Finetuned, list[dict[str, Any]]]) -> None:
    result, _ = tuned
    before, after = result.errors["before"], result.errors["after"]
    assert after["train"]["energy"] < 0.8 * before["train"]["energy"]
    assert after["train"]["forces"] < 0.8 * before["train"]["forces"]
    assert after["train"]["pressure"] < 0.9 * before["train"]["pressure"]
    assert before["replay"]["energy"] < 1e-6  # the parent's own labels
    assert after["replay"]["energy"] > 0.1
    assert result.splits["held_out"]
    assert not set(result.splits["train"]) & set(result.splits["held_out"])


def test_the_stored_weights_are_those_that_were_judged(
    tuned: tuple[Finetuned, list[dict[str, Any]]], frames: list[Frame], parent: bytes
) -> None:
    result, _ = tuned
    tensors, config = unpack(result.blob)
    student = MaceEvaluator(load_network(tensors, config))
    held_out = [frame for frame in frames if frame.chemsys in result.splits["held_out"]]
    assert errors_of(student, held_out) == pytest.approx(result.errors["after"]["held_out"], abs=1e-6)
    assert config["name"] == "tuned"
    assert config["training"]["finetuned_from_sha256"] == sha256(parent)
    assert config["atomic_energies"] == TINY_MACE["atomic_energies"]


def test_the_log_says_what_was_asked_and_what_ran(
    tuned: tuple[Finetuned, list[dict[str, Any]]], parent: bytes, frames: list[Frame]
) -> None:
    result, log = tuned
    events = [entry["event"] for entry in log]
    assert events[:3] == ["asked", "frames", "errors"]
    assert events[-2:] == ["errors", "done"]
    assert "step" in events
    asked, done = log[0], log[-1]
    assert asked["parent_sha256"] == sha256(parent)
    assert asked["frames_sha256"] == frames_digest(frames)
    assert done["sha256"] == sha256(result.blob)
    assert done["steps_taken"] + done["steps_saved_by_validation"] == asked["steps"] == QUICK.steps
    assert done["train_frames"] == len([f for f in frames if f.chemsys in result.splits["train"]])
    json.dumps(log)


def test_the_same_seed_gives_the_same_bytes(
    tuned: tuple[Finetuned, list[dict[str, Any]]], frames: list[Frame], parent: bytes
) -> None:
    again = finetune(frames[::-1], parent, QUICK, name="tuned")
    assert sha256(again.blob) == sha256(tuned[0].blob)


def test_replay_keeps_what_the_parent_knows(
    tuned: tuple[Finetuned, list[dict[str, Any]]], frames: list[Frame], parent: bytes
) -> None:
    alone = finetune(frames, parent, replace(QUICK, replay=0))
    assert alone.errors["before"]["replay"]["frames"] > 0
    drift, drift_alone = (r.errors["after"]["replay"] for r in (tuned[0], alone))
    assert drift["forces"] < 0.9 * drift_alone["forces"]
    assert drift["pressure"] < 0.9 * drift_alone["pressure"]


def test_frames_of_unknown_elements_are_left_out_and_named(
    frames: list[Frame], parent: bytes, teacher: MaceEvaluator
) -> None:
    gold = Frame(Structure(Lattice.cubic(4.0), ["Au"], [[0, 0, 0]]), energy=-1.0, group="gold")
    usable, left_out = usable_frames([*frames, gold, frames[0]], teacher)
    assert left_out == ["gold: the parent does not know Au", "1 frames are there twice"]
    assert frames_digest(usable) == frames_digest(frames)
    with pytest.raises(ValueError, match="does not know Au"):
        finetune([gold], parent, QUICK)
    with pytest.raises(ValueError, match="there is none"):
        finetune([], parent, QUICK)


def test_steps_that_do_not_reach_every_frame_are_refused(frames: list[Frame], parent: bytes) -> None:
    with pytest.raises(ValueError, match="use at least 13 steps"):
        finetune(frames, parent, replace(QUICK, steps=12, replay=100))


def test_what_the_parent_says_itself_teaches_nothing(
    frames: list[Frame], parent: bytes, teacher: MaceEvaluator
) -> None:
    own = [
        replace(f, energy=energy, forces=forces, stress=stress * GPA_PER_EV_A3)
        for f, (energy, forces, stress) in zip(frames, teacher.evaluate([f.triple for f in frames]), strict=True)
    ]
    with pytest.raises(ValueError, match="no validation was better than the parent's"):
        finetune(own, parent, replace(QUICK, dtype="float64"))


def test_steps_that_were_not_taken_are_found(
    frames: list[Frame], parent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def sometimes_infinite(*arguments: Any) -> torch.Tensor:
        calls.append(None)
        norm = clip(*arguments)
        return torch.tensor(float("nan")) if len(calls) == 3 else norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", sometimes_infinite)
    with pytest.raises(RuntimeError, match=r"not what was asked \(steps: asked 60, ran 59\)"):
        finetune(frames, parent, QUICK)


@settings(deadline=None)
@given(st.data())
def test_every_difference_of_the_log_is_found(data: st.DataObject) -> None:
    asked = {"seed": 1, "dtype": "float32", "steps": 100, "elements": ["Al", "Ni"], "changed": True}
    check_log(asked, {**asked, "more": 1})
    key = data.draw(st.sampled_from(sorted(asked)))
    with pytest.raises(RuntimeError, match=key):
        check_log(asked, {**asked, key: "something else"})
    with pytest.raises(RuntimeError, match=key):
        check_log(asked, {k: v for k, v in asked.items() if k != key})


# -- parents and names ------------------------------------------------------------------------------------------------


def test_a_model_id_is_a_calculator_once_its_weights_are_here(
    parent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    name = "m-0123456789abcdef0123"
    with pytest.raises(FileNotFoundError, match=name):
        get_calculator(name)
    assert cache_model(name, parent) == cached_model(name)
    assert network_weights(name) == parent
    protocol = calculator_protocol(name)
    assert (protocol["calculator"], protocol["weights_sha256"]) == (name, sha256(parent))
    atoms = bulk("Cu")
    atoms.calc = get_calculator(name)
    assert np.isfinite(atoms.get_potential_energy())


def test_a_parent_must_be_a_network_and_no_pickle(parent: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(parent)
    assert network_weights(str(tmp_path / "p.safetensors")) == parent
    assert len(network_weights("mace-alloy-small")) > 100_000
    with pytest.raises(ValueError, match=r"inv_design.calculators.convert"):
        network_weights(str(tmp_path / "p.model"))
    with pytest.raises(ValueError, match="'chgnet' is no MACE network"):
        network_weights("chgnet")


def test_a_foundation_model_becomes_a_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.manual_seed(1)
    network = build_network({**TINY_MACE, "correlation": 2})
    torch.save(network, tmp_path / "release.model")
    monkeypatch.setattr("inv_design.calculators.registry._foundation_path", lambda _: tmp_path / "release.model")
    with pytest.raises(ValueError, match="INV_DESIGN_TRUST_SHA256"):  # it is a pickle
        network_weights("mace-mp-0")
    digest = hashlib.sha256((tmp_path / "release.model").read_bytes()).hexdigest()
    monkeypatch.setenv("INV_DESIGN_TRUST_SHA256", digest)
    tensors, config = unpack(network_weights("mace-mp-0"))
    assert config["atomic_numbers"] == TINY_MACE["atomic_numbers"]
    own = network_tensors(network)
    assert all(np.array_equal(tensors[name], own[name]) for name in own)
