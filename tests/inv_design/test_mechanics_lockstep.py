"""Many crystals in lockstep, symmetry-reduced strains, and the gates of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure

from inv_design.mechanics import stages
from inv_design.mechanics.elastic import DIRECTIONS, elastic_tensor, elastic_tensors
from inv_design.mechanics.evaluate import evaluate, to_atoms
from inv_design.mechanics.flags import symmetry_residual, tensor_flags
from inv_design.mechanics.lockstep import run_in_order, run_together
from inv_design.mechanics.relax import generalised_force, relax_structure, relax_structures
from inv_design.mechanics.springs import spring_hessian
from inv_design.mechanics.symmetry import crystal_symmetry, spanning, to_mandel
from inv_design.screening.quality import mlip_dft_difference

COPPER = Structure.from_spacegroup(225, Lattice.cubic(3.65), ["Cu"], [[0, 0, 0]]).get_primitive_structure()
L1_2 = Structure.from_spacegroup(221, Lattice.cubic(3.9), ["Au", "Cu"], [[0, 0, 0], [0, 0.5, 0.5]])
HCP = Structure.from_spacegroup(194, Lattice.hexagonal(2.6, 4.2), ["Ni"], [[1 / 3, 2 / 3, 0.25]])
LOW = Structure(
    Lattice.orthorhombic(2.8, 4.4, 4.7),
    ["Cu", "Cu", "Au", "Au"],
    [[0, 0, 0], [0.5, 0.45, 0.1], [0, 0.5, 0.55], [0.5, 0.95, 0.5]],
)


class BatchedEmt(EMT):
    """EMT that answers batches, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def evaluate_batch(self, configurations: Any) -> list[dict[str, Any]]:
        self.batches.append(len(configurations))
        found = [evaluate(EMT(), [atoms])[0] for atoms in configurations]
        for answer in found:
            if answer.error is not None:
                raise ValueError(answer.error)
        return [{"energy": e.energy, "forces": e.forces, "stress": e.stress} for e in found]


def test_results_come_as_they_finish_and_batches_stay_full() -> None:
    calculator = BatchedEmt()
    atoms = to_atoms(COPPER)

    def work(steps: int) -> Any:
        for _ in range(steps):
            (evaluation,) = yield [atoms]
            assert np.isfinite(evaluation.energy)
        return steps

    lengths = [3, 0, 1, 2, 1]
    found = list(run_together((work(n) for n in lengths), calculator, batch=2))
    assert [lengths[index] for index, _ in found] == [result for _, result in found]
    assert found[0] == (1, 0)
    assert list(run_in_order((work(n) for n in lengths), calculator, batch=2)) == lengths
    assert max(calculator.batches) == 2


def test_the_calculator_says_how_many_go_together() -> None:
    atoms = to_atoms(COPPER)

    def work() -> Any:
        yield [atoms]
        yield [atoms]
        return True

    for batch in (2, 5):
        calculator = BatchedEmt()
        calculator.batch = batch  # as a network's, by its device
        assert list(run_in_order((work() for _ in range(6)), calculator)) == [True] * 6
        assert max(calculator.batches) == batch
    single = EMT()  # it evaluates one by one
    assert list(run_in_order((work() for _ in range(3)), single)) == [True] * 3


def test_alone_or_in_a_batch_a_crystal_gives_the_same() -> None:
    crystals = [L1_2, COPPER, LOW]
    together = list(relax_structures(crystals, BatchedEmt(), fmax=0.005))
    for crystal, result in zip(crystals, together, strict=True):
        alone = relax_structure(crystal, EMT(), fmax=0.005)
        assert result.n_steps == alone.n_steps
        assert result.energy_per_atom == pytest.approx(alone.energy_per_atom, abs=1e-10)
        assert generalised_force(to_atoms(alone.structure), evaluate(EMT(), [to_atoms(alone.structure)])[0]) <= 0.0051
    relaxed = [result.structure for result in together]
    for crystal, tensor in zip(relaxed, elastic_tensors(relaxed, BatchedEmt()), strict=True):
        assert np.allclose(tensor.tensor, elastic_tensor(crystal, EMT()).tensor, atol=1e-6)


@pytest.mark.parametrize(("crystal", "strains"), [(COPPER, 2), (L1_2, 2), (HCP, 3), (LOW, 6)])
def test_symmetry_gives_the_strains_that_are_not_applied(
    crystal: Structure, strains: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    relaxed = relax_structure(crystal, EMT(), fmax=0.002).structure
    assert relaxed is not None
    symmetry = crystal_symmetry(relaxed)
    chosen = spanning(np.array([to_mandel(symmetry.turned(direction)) for direction in DIRECTIONS]))
    assert len(chosen) <= strains
    reduced = elastic_tensor(relaxed, EMT())
    monkeypatch.setattr("inv_design.mechanics.elastic.crystal_symmetry", lambda s: crystal_symmetry(s, symprec=1e-14))
    full = elastic_tensor(relaxed, EMT())
    assert reduced.bulk_modulus_vrh == pytest.approx(full.bulk_modulus_vrh, rel=0.005)
    assert np.abs(reduced.tensor - full.tensor).max() < 1.0
    assert reduced.symmetry_residual < 0.01
    assert symmetry_residual(reduced.tensor, relaxed) < 0.01


def test_permutations_move_each_site_onto_its_image() -> None:
    symmetry = crystal_symmetry(HCP)
    assert len(symmetry.rotations) == 24
    assert np.allclose(symmetry.rotations @ symmetry.rotations.transpose(0, 2, 1), np.eye(3))
    assert (np.sort(symmetry.permutations, axis=1) == np.arange(len(HCP))).all()
    assert len(symmetry.stabiliser(0)) == 12


@pytest.mark.parametrize("crystal", [COPPER, L1_2, HCP, LOW])
def test_the_model_hessian_is_positive_definite(crystal: Structure) -> None:
    hessian = spring_hessian(crystal)
    assert hessian.shape == (3 * len(crystal) + 6,) * 2
    assert np.linalg.eigvalsh(hessian)[0] > 1e-3


def test_an_unconverged_relaxation_flags_the_tensor() -> None:
    start = L1_2.copy()
    start.perturb(0.08, seed=1)
    keep = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
    record = stages.measure_elasticity(start, calculator="emt", fmax=0.001, max_steps=2, keep_structure=keep)
    assert record["state"] == "completed", record["error"]
    assert "unconverged_relaxation" in record["flags"]


def test_a_calculator_that_cannot_be_made_blames_no_crystal() -> None:
    with pytest.raises(ValueError, match="nonesuch"):
        dict(stages.measure_equations_of_state([COPPER, L1_2], calculator="nonesuch", strain=0.04))


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", True),
        ("CUDA error: device-side assert triggered", True),
        ("CUDA error: out of memory", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("index 4 is out of bounds", False),
    ],
)
def test_a_gpu_that_failed_is_no_failure_of_the_crystal(text: str, lost: bool) -> None:
    from ase.calculators.emt import EMT

    from inv_design.mechanics.evaluate import DeviceLost, evaluate

    class Failing(EMT):
        def calculate(self, *_: object, **__: object) -> None:
            raise RuntimeError(text)

    if lost:
        with pytest.raises(DeviceLost, match="CU"):
            evaluate(Failing(), [COPPER.to_ase_atoms()])
    else:
        (found,) = evaluate(Failing(), [COPPER.to_ase_atoms()])
        assert found.error is not None
        assert text[:20] in found.error


def test_a_tensor_of_another_code_passes_the_same_gates() -> None:
    tensor = np.diag([50.0] * 3 + [75.0] * 3)
    tensor[:3, :3] += 120
    assert tensor_flags(tensor, L1_2) == []
    tensor[3, 3] = -20.0
    assert {"born_unstable", "symmetry_residual"} <= set(tensor_flags(tensor, L1_2))


def test_potential_and_dft_are_compared_where_both_have_the_number() -> None:
    differences, flags = mlip_dft_difference(
        {"bulk_modulus_vrh": 250.0, "volume_per_atom": 15.0}, {"bulk_modulus_vrh": 200.0, "volume_per_atom": 14.8}
    )
    assert differences["bulk_modulus_vrh"] == pytest.approx(0.25)
    assert flags == ["mlip_dft_bulk_modulus"]
    assert mlip_dft_difference({"bulk_modulus_vrh": None}, {"bulk_modulus_vrh": 200.0}) == ({}, [])
    assert mlip_dft_difference(None, None) == ({}, [])
