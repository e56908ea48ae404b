"""A pickle that would leave a mark is planted wherever weights or crystals are read from: it is never executed."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from inv_design.cli import main
from stores import records
from stores.provenance import provenance

if TYPE_CHECKING:
    from stores.connection import Connection

CALCULATE = ("elastic", "POSCAR", "--calculator")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.marker, "boom")


def torch_file(bomb: Bomb) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(bomb, buffer)
    return buffer.getvalue()


def zip_of_pickle(bomb: Bomb) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(bomb))
        archive.writestr("manifest.json", "{}")
    return buffer.getvalue()


FORMS = {"pickle": pickle.dumps, "torch": torch_file, "zip": zip_of_pickle}


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the file that appears if the pickle runs, in a folder with a crystal and a cache of its own."""
    from pymatgen.core import Lattice, Structure

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Structure(Lattice.cubic(2.9), ["Al", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(filename="POSCAR", fmt="poscar")
    return tmp_path / "executed"


@pytest.fixture(params=FORMS)
def blob(request: pytest.FixtureRequest, marker: Path) -> bytes:
    """Give a pickle in one of the forms in which weights are handed around."""
    return FORMS[request.param](Bomb(marker))


def refuse(marker: Path, *words: str) -> str:
    """Call a command that must fail and not run the pickle; return what it says."""
    result = CliRunner().invoke(main, list(words))
    assert not marker.exists(), f"{words} ran the pickle"
    assert result.exit_code != 0, f"{words}: {result.output}"
    assert not isinstance(result.exception, pickle.UnpicklingError)
    return result.output


def test_the_bomb_is_real(marker: Path) -> None:
    import torch

    for make in (FORMS["pickle"], FORMS["torch"]):
        made = make(Bomb(marker))
        pickle.loads(made) if make is FORMS["pickle"] else torch.load(io.BytesIO(made), weights_only=False)
        assert marker.read_text() == "boom"
        marker.unlink()


@pytest.mark.parametrize("kind", ["predictor", "generator", "mlip"])
def test_planted_in_the_database(embedded_connection: Connection, marker: Path, blob: bytes, kind: str) -> None:
    model = records.insert_model(blob, kind=kind, name="bomb", provenance=provenance(command="plant"))
    database = f"embedded:{embedded_connection.client.path}"
    embedded_connection.close()
    commands = {
        "predictor": (
            ["predict", "POSCAR", "--model", model.model_id],
            ["metrics", "POSCAR", "--target", "K=150", "--values", "predictor", "--model", model.model_id],
        ),
        "generator": (["generate", "-t", "K=150", "-n", "1", "-o", "x.extxyz", "--model", model.model_id],),
        "mlip": ([*CALCULATE, model.model_id],),
    }[kind]
    for words in commands:
        assert "not a model file" in refuse(marker, *words, "--database", database)


@pytest.mark.parametrize("suffix", ["safetensors", "model", "pt", "pkl", "bin"])
@pytest.mark.parametrize("blob", ["pickle", "torch"], indirect=True)
def test_given_as_a_file(marker: Path, blob: bytes, suffix: str) -> None:
    path = f"bomb.{suffix}"
    Path(path).write_bytes(blob)
    refuse(marker, "predict", "POSCAR", "--model", path)
    refuse(marker, "generate", "-t", "K=150", "-n", "1", "-o", "x.extxyz", "--model", path)
    said = refuse(marker, *CALCULATE, path)
    if suffix in ("model", "pt", "pkl"):
        assert "python -m inv_design.calculators.convert" in said  # the cure


CRYSTALS = ("cif", "vasp", "extxyz", "csv", "json", "json.gz", "pkl", "traj", "npz", "db")


@pytest.mark.parametrize(
    ("blob", "suffix"),
    [*(("pickle", suffix) for suffix in CRYSTALS), *((form, "zip") for form in FORMS)],
    indirect=["blob"],
)
def test_given_as_crystals(marker: Path, blob: bytes, suffix: str) -> None:
    path = f"bomb.{suffix}"
    Path(path).write_bytes(blob)
    refuse(marker, "ingest", path, "--database", "embedded")
    refuse(marker, "predict", path)
    refuse(marker, "metrics", path)
    refuse(marker, "import", path, "--database", "embedded")


@pytest.mark.parametrize("name", ["bomb.model", "bomb.safetensors"])
def test_named_by_a_campaign(marker: Path, blob: bytes, name: str) -> None:
    """What the workers of stages II and III do with the calculator's name in the campaign's document."""
    from pymatgen.core import Structure

    from inv_design.mechanics.stages import measure_elasticities, measure_equations_of_state

    path, crystals = marker.parent / name, [Structure.from_file("POSCAR")]
    path.write_bytes(blob)
    for measure, options in (
        (measure_elasticities, {"fmax": 0.1, "max_steps": 1, "keep_structure": {}}),
        (measure_equations_of_state, {"strain": 0.04}),
    ):
        said = ""
        try:
            said = "".join(str(record["error"]) for _, record in measure(crystals, calculator=str(path), **options))
        except ValueError as error:
            said = str(error)
        assert not marker.exists()
        assert "pickle" in said or "not a model file" in said


def test_a_planted_release_of_a_foundation_model(marker: Path, blob: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = marker.parent / "2023-12-03-mace-128-L1_epoch-199.model"
    path.write_bytes(blob)
    monkeypatch.setattr("inv_design.calculators.registry._foundation_path", lambda _: path)
    monkeypatch.delenv("INV_DESIGN_TRUST_SHA256", raising=False)
    assert "INV_DESIGN_TRUST_SHA256" in refuse(marker, *CALCULATE, "mace-mp-0")
    monkeypatch.setenv("INV_DESIGN_TRUST_SHA256", "0" * 64)  # another release is trusted, not this file
    refuse(marker, *CALCULATE, "mace-mp-0")


def test_a_file_in_the_cache_of_models(marker: Path, blob: bytes) -> None:
    from inv_design.calculators.registry import cache_model

    name = f"m-{'0' * 20}"
    cache_model(name, blob)
    assert "not a model file" in refuse(marker, *CALCULATE, name)
