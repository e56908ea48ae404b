"""init, check, ingest, elastic, metrics: the commands that work on files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml
from click.testing import CliRunner

from inv_design.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

REWRITTEN = "data_x\nrubbish\n"


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INV_DESIGN_DATABASE", raising=False)
    return tmp_path


@pytest.fixture
def metals(folder: Path) -> Path:
    """Give an extxyz file of fcc silver and copper-gold with ids and bulk moduli."""
    from pymatgen.core import Lattice, Structure

    from inv_design.structures.files import write_structures

    fcc = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    silver = Structure(Lattice.cubic(4.09), ["Ag"] * 4, fcc)
    alloy = Structure(Lattice.cubic(3.72), ["Au", "Cu", "Cu", "Cu"], fcc)
    path = folder / "metals.extxyz"
    write_structures(path, [(silver, {"id": "a1", "K": 100.0}), (alloy, {"id": "a2", "K": 150.0})])
    (folder / "bad.cif").write_text(REWRITTEN)
    return path


# -- init -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["default", "demo", "minimal"])
def test_init_writes_a_valid_commented_campaign(folder: Path, template: str) -> None:
    from inv_design.config import load_config

    result = run("init", "my alloys", "--template", template)
    assert result.exit_code == 0, result.output
    path = folder / "my alloys" / "campaign.yaml"
    config = load_config(path)
    assert config.name == "my-alloys"
    assert config.target == 350.0
    assert "#" in path.read_text()


def test_the_default_template_shows_the_defaults() -> None:
    from inv_design.cli.init import template_text
    from inv_design.config import CampaignConfig

    shown = CampaignConfig.model_validate(yaml.safe_load(template_text("default")))
    least = CampaignConfig.model_validate(yaml.safe_load(template_text("minimal")))
    assert shown == least


def test_init_never_overwrites(folder: Path) -> None:
    assert run("init", "x").exit_code == 0
    path = folder / "x" / "campaign.yaml"
    path.write_text("mine")
    result = run("init", "x")
    assert result.exit_code == 1
    assert "never overwritten" in result.stderr
    assert path.read_text() == "mine"
    (folder / "file").write_text("")
    assert "not a directory" in run("init", "file").stderr


def test_init_takes_names_that_yaml_would_read_as_numbers(folder: Path) -> None:
    from inv_design.config import load_config

    assert run("init", "2026").exit_code == 0
    assert load_config(folder / "2026" / "campaign.yaml").name == "2026"
    result = run("init", "y", "--name", "a b")
    assert result.exit_code == 2
    assert not (folder / "y").exists()


# -- elastic ----------------------------------------------------------------------------------------------------------


def test_elastic_writes_one_json_line_per_crystal_in_order(metals: Path) -> None:
    result = run("elastic", metals, "bad.cif", "missing.cif", metals, "--calculator", "emt", "--json")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [r["index"] for r in records] == [0, 1, 2, 3, 4, 5]
    assert [r["formula"] for r in records] == ["Ag", "Cu3Au", None, None, "Ag", "Cu3Au"]
    assert result.exit_code == 1
    assert "2 of 6 crystals failed" in result.stderr
    silver = records[0]
    assert silver["unit"] == "GPa"
    assert silver["bulk_modulus_vrh"] == pytest.approx(100.4, rel=0.03)  # EMT of silver: Jacobsen et al. 1996
    assert silver["born_stable"] is True
    assert silver["converged"] is True
    tensor = silver["elastic_tensor"]
    assert len(tensor) == 6
    assert tensor[0][0] > tensor[0][1] > 0
    assert silver["bulk_modulus_vrh"] == pytest.approx((tensor[0][0] + 2 * tensor[0][1]) / 3, rel=1e-6)
    for record in records[2:4]:
        assert record["bulk_modulus_vrh"] is None
        assert record["error"]
    assert "bad.cif" in records[2]["error"]
    assert "does not exist" in records[3]["error"]


def test_elastic_by_workers_gives_the_same_in_the_same_order(metals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("elastic", metals, "bad.cif", metals, "-k", "emt", "--json")
    alone = [json.loads(line) for line in run(*args).stdout.splitlines()]
    monkeypatch.setattr("inv_design.cli.elastic.WORTH_WORKERS", 2)
    monkeypatch.setenv("INV_DESIGN_WORKERS", "2")
    together = [json.loads(line) for line in run(*args).stdout.splitlines()]
    assert [r["index"] for r in together] == [0, 1, 2, 3, 4]
    for one, other in zip(alone, together, strict=True):
        assert one["source"] == other["source"]
        assert one["error"] == other["error"]
        assert other["bulk_modulus_vrh"] == pytest.approx(one["bulk_modulus_vrh"])


def test_elastic_as_a_table(metals: Path) -> None:
    result = run("elastic", metals, "-k", "emt", "--no-relax", "-v")
    assert result.exit_code == 0, result.output
    assert "Cu3Au" in result.stdout
    assert "elastic tensor, GPa" in result.stdout


@pytest.mark.parametrize("name", ["nonsense", "weights.model"])
def test_elastic_with_a_wrong_calculator_is_wrong_usage(metals: Path, name: str) -> None:
    result = run("elastic", metals, "--calculator", name)
    assert result.exit_code == 2
    assert name in result.stderr


# -- ingest -----------------------------------------------------------------------------------------------------------


def test_ingest_keeps_the_good_and_names_the_bad(metals: Path, folder: Path) -> None:
    from stores.connection import connect

    database = f"embedded:{folder / 'x.sqlite'}"
    result = run("ingest", metals, "bad.cif", "--database", database, "--json")
    assert result.exit_code == 1
    counts = json.loads(result.stdout)
    assert {k: counts[k] for k in ("read", "kept", "structures", "labels", "bad")} == {
        "read": 3,
        "kept": 2,
        "structures": 2,
        "labels": 2,
        "bad": 1,
    }
    assert "bad.cif" in counts["errors"][0]
    with connect(database, read_only=True) as connection:
        values = [c["results"]["bulk_modulus_vrh"] for c in connection.db["calculations"].find()]
    assert sorted(values) == [100.0, 150.0]
    again = run("ingest", metals, "--database", database)
    assert again.exit_code == 0
    assert "0 new structures, 0 new labelled records, 2 labelled records known before" in again.stdout


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_give_counts_and_the_target_error(metals: Path) -> None:
    result = run("metrics", metals, "--reference", metals, "--target", "K=125", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["unique"] == {"count": 2, "total": 2, "fraction": 1.0}
    assert record["novel"]["count"] == 0
    assert record["target"]["mape"] == pytest.approx(0.2)
    assert "mean relative error 20.0 %" in run("metrics", metals, "-t", "K=125").stdout


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--target", "K=-5"], 2, "not positive"),
        (["--target", "K"], 2, "PROPERTY=VALUE"),
        (["--target", "hardness=5"], 2, "unknown property"),
        (["--target", "G=5"], 1, "--values predictor"),
        (["--reference", "missing.cif"], 1, "does not exist"),
    ],
)
def test_metrics_errors_name_the_cure(metals: Path, args: list[str], code: int, says: str) -> None:
    result = run("metrics", metals, *args)
    assert result.exit_code == code
    assert says in result.stderr


# -- check ------------------------------------------------------------------------------------------------------------


def test_check_names_every_part_and_the_cure(folder: Path) -> None:
    run("init", "c", "--template", "minimal")
    path = folder / "c" / "campaign.yaml"
    text = path.read_text() + "stages: {mlip: {calculator: emt}, dft: {calculator: nonsense}}\n"
    path.write_text(text)
    result = run("check", "-c", path, "--json")
    findings = json.loads(result.stdout)
    by_part = {f["part"]: f for f in findings}
    for part in ("python", "config", "database", "launchpad", "data", "predictor", "generator", "labels", "queue"):
        assert part in by_part
    assert by_part["database"]["state"] == "ok"
    calculators = [f for f in findings if f["part"] == "calculator"]
    assert [f["state"] for f in calculators] == ["ok", "failed"]
    assert "nonsense" in calculators[1]["text"]
    assert calculators[1]["cure"]
    assert result.exit_code == 1
    assert "calculator" in result.stderr


# -- a process of its own ---------------------------------------------------------------------------------------------


def test_a_closed_pipe_is_no_trace(metals: Path) -> None:
    command = f"{sys.executable} -m inv_design.cli elastic {metals} -k emt --json | head -c 10"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert "Traceback" not in done.stderr
