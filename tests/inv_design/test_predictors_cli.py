"""`predict --property` and the property of the model that is given."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from pymatgen.core import Lattice, Structure

from inv_design.cli import main
from inv_design.datasets.mp_binaries import load_alloys
from inv_design.predictors.forest import ExtraTrees
from inv_design.predictors.target import Target

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own")
    crystals = [a.structure for a in load_alloys()[::16]]
    predictor = ExtraTrees(Target("hardness", "GPa", lower=0.0), trees=5)
    predictor.fit(crystals, [c.density for c in crystals])
    (path / "hardness.safetensors").write_bytes(predictor.to_bytes())
    Structure(Lattice.cubic(2.88), ["Ni", "Al"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(str(path / "nial.cif"))
    return path


def run(folder: Path, *args: str) -> Result:
    return CliRunner().invoke(main, ["predict", str(folder / "nial.cif"), *args, "--json"])


def record(result: Result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_model_predicts_its_own_property_whatever_it_is(folder):
    model = str(folder / "hardness.safetensors")
    assert record(run(folder, "-m", model))["property"] == "hardness"
    found = record(run(folder, "-m", model, "--property", "hardness"))
    assert (found["unit"], found["model"]) == ("GPa", model)
    assert 3.0 < found["value"] < 12.0


def test_a_model_of_another_property_is_refused(folder):
    result = run(folder, "-m", str(folder / "hardness.safetensors"), "--property", "G")
    assert result.exit_code == 1
    assert "predicts 'hardness', not 'shear_modulus_vrh'" in result.stderr


def test_both_moduli_are_packaged(folder):
    bulk, shear = record(run(folder)), record(run(folder, "--property", "shear_modulus_vrh"))
    assert (bulk["property"], shear["property"]) == ("bulk_modulus_vrh", "shear_modulus_vrh")
    assert shear["value"] < bulk["value"]
    assert shear["model"] == "packaged:cgcnn"
    result = run(folder, "--property", "hardness")
    assert result.exit_code == 2
    assert "unknown property 'hardness'" in result.stderr
