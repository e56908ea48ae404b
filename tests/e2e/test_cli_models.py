"""predict and generate: what they write, in which order, and what a bad item does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from inv_design.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a predictor and a generator, trained on some crystals in seconds, and a file of crystals."""
    from inv_design.datasets.mp_binaries import load_alloys
    from inv_design.generators.substitution import Substitution
    from inv_design.predictors.registry import make_predictor
    from inv_design.structures.files import write_structures

    folder = tmp_path_factory.mktemp("models")
    entries = load_alloys()[::12]
    structures = [e.structure for e in entries]
    values = [e.labels["bulk_modulus_vrh"] for e in entries]
    predictor = make_predictor("extra_trees", trees=20)
    predictor.fit(structures, values)
    (folder / "predictor.safetensors").write_bytes(predictor.to_bytes())
    generator = Substitution(pool=300)
    generator.fit(structures, values)
    generator.save(folder / "generator.safetensors")
    write_structures(folder / "some.extxyz", [(e.structure, {"id": e.source_id}) for e in entries[:4]])
    (folder / "bad.cif").write_text("data_x\nrubbish\n")
    return folder


@pytest.fixture(autouse=True)
def folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(models)
    monkeypatch.delenv("INV_DESIGN_DATABASE", raising=False)
    return models


# -- predict ----------------------------------------------------------------------------------------------------------


def test_predict_writes_one_object_per_line_in_the_order_of_the_input(models: Path) -> None:
    from inv_design.predictors.registry import load_predictor
    from inv_design.structures.files import read_structures

    result = run(
        "predict", "some.extxyz", "bad.cif", "none.cif", "some.extxyz", "-m", "predictor.safetensors", "--json"
    )
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert "2 of 10 crystals failed" in result.stderr
    assert [r["index"] for r in records] == list(range(10))
    assert [r["error"] is None for r in records] == [True] * 4 + [False] * 2 + [True] * 4
    assert {"source", "index", "formula", "property", "value", "std", "unit", "model", "error"} <= set(records[0])
    assert records[2]["source"] == "some.extxyz:2"
    assert records[4]["value"] is None
    assert "bad.cif" in records[4]["error"]
    assert "none.cif does not exist" in records[5]["error"]
    structures = [item.structure for item in read_structures("some.extxyz")]
    predictor = load_predictor((models / "predictor.safetensors").read_bytes())
    expected = predictor.predict([s for s in structures if s is not None])
    assert [r["value"] for r in records[:4]] == pytest.approx(expected.values.tolist())
    assert [r["std"] for r in records[6:]] == pytest.approx(expected.std.tolist())
    assert {r["unit"] for r in records} == {"GPa"}


def test_predict_in_chunks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("predict", "some.extxyz", "bad.cif", "some.extxyz", "-m", "predictor.safetensors", "--json")
    whole = run(*args).stdout
    monkeypatch.setattr("inv_design.cli.predict.CHUNK", 3)
    assert [json.loads(x) for x in run(*args).stdout.splitlines()] == [json.loads(x) for x in whole.splitlines()]


def test_predict_as_a_table() -> None:
    result = run("predict", "some.extxyz", "-m", "predictor.safetensors")
    assert result.exit_code == 0
    assert "bulk_modulus_vrh (GPa)" in result.stdout
    assert len(result.stdout.strip().splitlines()) == 5


@pytest.mark.parametrize(
    ("model", "code", "says"),
    [
        ("missing.safetensors", 1, "missing.safetensors does not exist"),
        ("some.extxyz", 1, "not a model file"),
        ("generator.safetensors", 1, "predictor"),
        ("extra_trees", 1, "no trained 'extra_trees' is packaged"),
        ("m-123", 1, "'m-123' is no packaged predictor"),
    ],
)
def test_predict_with_a_wrong_model(model: str, code: int, says: str) -> None:
    result = run("predict", "some.extxyz", "--model", model)
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1


def test_predict_an_unknown_property_is_wrong_usage() -> None:
    result = run("predict", "some.extxyz", "--property", "hardness")
    assert result.exit_code == 2
    assert "unknown property 'hardness'" in result.stderr


# -- generate ---------------------------------------------------------------------------------------------------------

GENERATE = ("generate", "-t", "bulk_modulus=200", "-n", "5", "-m", "generator.safetensors")


@pytest.mark.parametrize("name", ["new.extxyz", "new.json", "new_cifs"])
def test_generate_says_in_the_file_what_each_crystal_is(folder: Path, name: str) -> None:
    from inv_design.structures.files import read_structures
    from inv_design.structures.identity import structure_id

    result = run(*GENERATE, "--seed", "3", "--exclude", "Al,Os", "--exclude", "actinides", "-o", name, "--json")
    assert result.exit_code == 0, result.output
    items = list(read_structures(folder / name))
    printed = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(items) == len(printed) == 5
    for index, (item, record) in enumerate(zip(items, printed, strict=True)):
        assert item.structure is not None
        assert not {"Al", "Os", "U"} & {e.symbol for e in item.structure.composition.elements}
        assert item.properties["id"] == record["id"] == structure_id(item.structure)
        assert item.properties["index"] == index
        assert item.properties["seed"] == 3
        assert item.properties["model"] == "generator.safetensors"
        assert item.properties["condition"]["targets"] == {"bulk_modulus_vrh": 200.0}
        assert "Os" in item.properties["condition"]["exclude_elements"]


def test_the_same_seed_gives_the_same_crystals() -> None:
    def ids(seed: int) -> list[str]:
        result = run(*GENERATE, "--seed", seed, "-o", "again.extxyz", "--json")
        return [json.loads(line)["id"] for line in result.stdout.splitlines()]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-t", "bulk_modulus=-5", "-o", "x.extxyz"], "not positive"),
        (["-t", "K=abc", "-o", "x.extxyz"], "not a number"),
        (["-t", "K=350 eV", "-o", "x.extxyz"], "give it in GPa"),
        (["-t", "350", "-o", "x.extxyz"], "PROPERTY=VALUE"),
        (["-t", "hardness=3", "-o", "x.extxyz"], "unknown property"),
        (["-t", "K=350", "-o", "x.doc"], "suffix '.doc'"),
        (["-t", "K=350", "-o", "x.extxyz", "-n", "0"], "0 is not in the range"),
        (["-t", "K=350", "-o", "x.extxyz", "--exclude", "Xx"], "'Xx' is neither an element"),
        (["-t", "K=350"], "--output"),
    ],
)
def test_generate_refuses_before_it_works(folder: Path, args: list[str], says: str) -> None:
    result = run("generate", "-m", "generator.safetensors", *args)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert not (folder / "x.extxyz").exists()


def test_generate_notes_an_extrapolation() -> None:
    result = run("generate", "-t", "K=5000", "-n", "1", "-m", "generator.safetensors", "-o", "far.extxyz")
    assert "outside" in result.stderr


def test_generate_refuses_settings_that_the_generator_does_not_have() -> None:
    result = run(*GENERATE, "-o", "y.extxyz", "--guidance", "2")
    assert result.exit_code == 2
    assert "--guidance" in result.stderr


# -- interruption -----------------------------------------------------------------------------------------------------


def test_ctrl_c_is_one_line_and_130() -> None:
    """Ctrl-C after the first of many results."""
    files = ["some.extxyz"] * 500
    command = [sys.executable, "-m", "inv_design.cli", "predict", *files, "-m", "predictor.safetensors", "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        # tests that run in a shell's background inherit a SIGINT that is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["index"] == 0
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("interrupted")
