"""Random symmetric crystals: valid, of the groups they were drawn from, ranked or not, the same for the same seed."""

from __future__ import annotations

import subprocess
import sys
from copy import copy

import numpy as np
import pytest

from inv_design.datasets.mp_binaries import load_alloys
from inv_design.generators.property_model import count_elements
from inv_design.generators.protocol import Condition, Generator
from inv_design.generators.random_symmetric import (
    RandomSymmetric,
    RandomSymmetricSettings,
    _compatible,
    _random_structure,
)
from inv_design.generators.registry import load_generator, make_generator
from inv_design.structures.validity import min_radius_ratio

K = "bulk_modulus_vrh"


@pytest.fixture(scope="module")
def alloys():
    return [a for a in load_alloys() if len(a.structure) <= 4][::20]


@pytest.fixture(scope="module")
def fitted(alloys) -> RandomSymmetric:
    generator = RandomSymmetric()
    generator.fit([a.structure for a in alloys], [a.labels[K] for a in alloys])
    return generator


def ids(samples):
    return [(*np.round(s.structure.lattice.parameters, 6), s.structure.formula) for s in samples]


def test_samples_are_valid_new_different_and_follow_the_condition(fitted, alloys):
    assert isinstance(fitted, Generator)
    condition = Condition({K: 180.0}, exclude_elements=frozenset({"Pt"}), max_sites=3)
    samples = fitted.sample(8, condition, seed=4)
    assert [s.index for s in samples] == list(range(8))
    known = {e.symbol for a in alloys for e in a.structure.composition}
    for sample in samples:
        assert min_radius_ratio(sample.structure) >= 0.75
        assert len(sample.structure) <= 3
        assert {e.symbol for e in sample.structure.composition} <= known - {"Pt"}
        assert not fitted.known.contains(sample.structure)
    statistics = fitted.last_statistics
    assert statistics["accepted"] == 8
    assert statistics["draws"] == 8 + sum(statistics["rejected"].values())
    only = fitted.sample(2, Condition({K: 100.0}, elements=frozenset({"Al", "Cu", "Ni"})), seed=0)
    assert {e.symbol for s in only for e in s.structure.composition} <= {"Al", "Cu", "Ni"}


def test_ranking_brings_predictions_to_the_target_and_none_ignores_it(fitted):
    def samples(filter, target):
        generator = copy(fitted)
        generator.settings = RandomSymmetricSettings(filter=filter)
        return generator.sample(8, Condition({K: target}, max_sites=3), seed=1)

    error = [np.mean([abs(np.log(s.score / 150)) for s in samples(n, 150.0)]) for n in (1, 30)]
    assert error[1] < 0.5 * error[0]
    assert ids(samples(1, 50.0)) == ids(samples(1, 300.0))


def test_the_seed_determines_the_crystals_in_every_process(fitted, tmp_path):
    condition = Condition({K: 120.0}, max_sites=4)
    samples = fitted.sample(4, condition, seed=9)
    np.random.seed(1)  # nothing may depend on the global state
    assert ids(fitted.sample(4, condition, seed=9)) == ids(samples)
    assert ids(fitted.sample(4, condition, seed=10)) != ids(samples)
    fitted.save(tmp_path / "model.safetensors")
    code = (
        "import sys; from inv_design.generators.protocol import Condition;"
        "from inv_design.generators.random_symmetric import RandomSymmetric as R;"
        f"s = R.load(sys.argv[1]).sample(4, Condition({{{K!r}: 120.0}}, max_sites=4), seed=9);"
        "print(*(f'{x.structure.formula} {x.structure.volume:.5f}' for x in s), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.safetensors")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{s.structure.formula} {s.structure.volume:.5f}" for s in samples]


def test_a_file_is_the_same_generator(fitted):
    loaded = load_generator(fitted.to_bytes())
    assert loaded.to_bytes() == fitted.to_bytes()
    assert loaded.capabilities() == fitted.capabilities()


@pytest.mark.parametrize(("number", "counts"), [(225, {13: 1, 29: 1}), (139, {22: 1, 28: 2}), (62, {26: 4, 40: 4})])
def test_a_placed_crystal_has_its_group_atoms_and_volume(fitted, number, counts):
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    atoms = list(counts.values())
    assert _compatible(number, tuple(sorted(atoms)))
    row = np.zeros((1, 95), dtype=int)
    row[0, list(counts)] = atoms
    volume = float(fitted.property_model.predict_volume(row)[0])
    made = None
    for seed in range(30):
        rng = np.random.default_rng(seed)
        made = _random_structure(number, list(counts), atoms, volume, settings=fitted.settings, rng=rng)
        if made is not None:
            break
    assert made is not None
    held = count_elements(np.array([[s.specie.Z for s in made]]))
    np.testing.assert_array_equal(held, row * len(made) // sum(atoms))
    assert made.volume / len(made) == pytest.approx(volume / sum(atoms), rel=1e-6)
    analyzer = SpacegroupAnalyzer(made, symprec=1e-3)
    # the atoms may sit more symmetrically than the group asks, never less
    assert len(analyzer.get_symmetry_operations()) >= {225: 192, 139: 32, 62: 8}[number]


def test_groups_without_room_are_not_compatible():
    assert not _compatible(225, (2, 3))
    assert _compatible(1, (2, 3))


def test_finetune_learns_elements_and_never_returns_the_crystals(alloys):
    generator = RandomSymmetric()
    with pytest.raises(RuntimeError, match="not fitted"):
        generator.sample(1, Condition({K: 100.0}))
    with pytest.raises(RuntimeError, match="not fitted"):
        generator.finetune([alloys[0].structure], [100.0])
    first = [a for a in alloys if "Al" not in a.structure.formula]
    new = next(a for a in alloys if "Al" in a.structure.formula)
    generator.fit([a.structure for a in first], [a.labels[K] for a in first])
    assert "Al" not in generator.capabilities().elements
    assert generator.finetune([new.structure], [new.labels[K]])["crystals"] == len(first) + 1
    assert "Al" in generator.capabilities().elements
    assert generator.known.contains(new.structure)
    sample = generator.sample(1, Condition({K: 150.0}, max_sites=2), seed=0)[0]
    avoiding = generator.avoiding([sample.structure])
    assert ids(avoiding.sample(1, Condition({K: 150.0}, max_sites=2), seed=0)) != ids([sample])


def test_what_cannot_be_done_is_named(fitted, alloys):
    for settings in ({"filter": 0}, {"attempts": 0}, {"cells": -1}):
        with pytest.raises(ValueError, match=str(next(iter(settings)))):
            make_generator("random_symmetric", **settings)
    with pytest.raises(ValueError, match="positive"):
        RandomSymmetric().fit([alloys[0].structure], [-1.0])
    with pytest.raises(ValueError, match="shear"):
        fitted.sample(1, Condition({"shear_modulus_vrh": 5.0}))
    with pytest.raises(ValueError, match="none of the"):
        fitted.sample(1, Condition({K: 100.0}, elements=frozenset({"O"})))
    with pytest.raises(ValueError, match="at most 1 sites"):
        fitted.sample(1, Condition({K: 100.0}, max_sites=1))
    # a single attempt with no room for error ends short and says so
    tight = RandomSymmetric(min_ratio=1.4, attempts=2)
    tight.known, tight.values, tight.property_model = fitted.known, fitted.values, fitted.property_model
    tight._fitted = True
    assert tight.sample(2, Condition({K: 100.0}, max_sites=4)) == []
    assert tight.last_statistics["draws"] == 4
    assert sum(tight.last_statistics["rejected"].values()) == 4
