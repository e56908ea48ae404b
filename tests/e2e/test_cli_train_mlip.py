"""train-mlip as a user calls it: frames in a file to a model that `elastic` takes by its id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from click.testing import CliRunner

from inv_design.cli import main
from inv_design.testing import tiny_mace
from inv_design.weights import sha256

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

METALS = {"Al": 4.0, "Ni": 3.5, "Cu": 3.6, "Pd": 3.9}
TRAIN = ("train-mlip", "--database", "embedded", "-p", "tiny.safetensors", "-f", "frames.extxyz", "--steps", "40",
         "--replay", "8", "--rate", "0.1")  # fmt: skip


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a small network and EMT's frames of four metals."""
    import torch

    folder = tmp_path_factory.mktemp("mlip")
    torch.manual_seed(0)
    (folder / "tiny.safetensors").write_bytes(tiny_mace())
    frames = []
    for symbol, length in METALS.items():
        for scale in (0.97, 1.0, 1.03):
            atoms = bulk(symbol, "fcc", a=length * scale, cubic=True)
            atoms.rattle(0.05, seed=1)
            atoms.calc = EMT()
            labels = {
                "energy": atoms.get_potential_energy(),
                "forces": atoms.get_forces(),
                "stress": atoms.get_stress(),
            }
            atoms.calc = SinglePointCalculator(atoms, **labels)
            frames.append(atoms)
    frames.append(bulk("Cu"))  # no label
    write(folder / "frames.extxyz", frames, format="extxyz")
    write(folder / "copper.extxyz", bulk("Cu", cubic=True), format="extxyz")
    return folder


@pytest.fixture(autouse=True)
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made / "cache"))
    monkeypatch.delenv("INV_DESIGN_DATABASE", raising=False)
    return made


def test_frames_become_a_model_that_is_a_calculator(folder: Path) -> None:
    result = run(*TRAIN, "--name", "metals", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert "left out: frames.extxyz:12: " in result.stderr
    assert record["known"] is False
    assert record["files"] == ["frames.extxyz"]
    assert record["parent_sha256"] == sha256((folder / "tiny.safetensors").read_bytes())
    assert record["before"]["train"]["frames"] == record["done"]["train_frames"]
    log = [json.loads(line) for line in (folder / "train_mlip.jsonl").read_text().splitlines()]
    assert [entry["event"] for entry in log][:2] == ["data", "asked"]
    assert log[-1]["sha256"] == record["sha256"]

    again = run(*TRAIN, "--name", "metals", "--json")
    assert json.loads(again.stdout)["known"] is True
    assert json.loads(again.stdout)["model_id"] == record["model_id"]

    elastic = run("elastic", "copper.extxyz", "--calculator", record["model_id"], "--no-relax", "--json")
    by_path = run("elastic", "copper.extxyz", "--calculator", record["weights"], "--no-relax", "--json")
    moduli = [json.loads(r.stdout)["bulk_modulus_vrh"] for r in (elastic, by_path)]
    assert moduli[0] == moduli[1]
    lineage = run("lineage", record["model_id"], "--database", "embedded")
    assert record["parent_model_id"] in lineage.stdout

    table = run(*TRAIN, "--name", "metals")
    assert table.exit_code == 0
    assert "held out" in table.stdout
    assert "is there already" in table.stderr


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["-p", "tiny.model"], 1, "inv_design.calculators.convert"),
        (["-p", "chgnet"], 1, "'chgnet' is no MACE network"),
        (["-p", "m-00000000000000000000"], 1, "the database has no model"),
        (["-f", "none.extxyz"], 1, "none.extxyz does not exist"),
        (["--steps", "2", "--replay", "100"], 1, "use at least 13 steps"),
        (["--steps", "0"], 2, "--steps"),
        (["--rate", "-1"], 2, "rate is -1.0"),
        (["--campaign", "nowhere"], 1, "no campaign 'nowhere'"),
    ],
)
def test_what_cannot_be_trained_says_why(args: list[str], code: int, says: str) -> None:
    result = run(*TRAIN, *args)
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert len([line for line in result.stderr.strip().splitlines() if not line.startswith("left out")]) == 1


def test_a_campaign_without_labels_is_nothing_matched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stores.connection import connect
    from stores.provenance import provenance
    from stores.records import insert_campaign

    monkeypatch.chdir(tmp_path)
    config = {"name": "new", "targets": {"bulk_modulus_vrh": 150.0}}
    with connect("embedded", root=tmp_path):
        insert_campaign("new", config, targets={"bulk_modulus_vrh": 150.0}, provenance=provenance())
    result = run("train-mlip", "--database", "embedded")
    assert result.exit_code == 3, result.output
    assert "campaign 'new' has no stage-III calculation to learn from" in result.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_a_log_and_no_model(folder: Path, tmp_path: Path) -> None:
    arguments = [a if a != "40" else "100000" for a in TRAIN]
    log = tmp_path / "log.jsonl"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "inv_design.cli",
            *arguments,
            "--database",
            f"embedded:{tmp_path}/a.sqlite",
            "--log",
            log,
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # tests that run in a shell's background inherit a SIGINT that is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    deadline = time.monotonic() + 300
    while not (log.is_file() and '"step"' in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert '"done"' not in log.read_text()
    listed = run(
        "train-mlip", "--database", f"embedded:{tmp_path}/a.sqlite", "-f", "frames.extxyz", "-p", "m-" + 20 * "0"
    )
    assert "it has no mlip yet" in listed.stderr
