"""check: the campaign that is in the database, names, and cures that are no follow-up errors."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner

from fireworks_specs import execution
from inv_design.cli import main
from inv_design.cli.check_worker import read_worker
from inv_design.config import load_config
from stores.connection import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    Check = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a campaign.yaml in the present folder."""
    path = tmp_path / "campaign.yaml"
    path.write_text(Path(__file__).with_name("small_campaign.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INV_DESIGN_DATABASE", raising=False)
    return path


def change(path: Path, **stages: dict[str, Any]) -> None:
    """Change settings of stages in a campaign file."""
    raw = yaml.safe_load(path.read_text())
    for stage, settings in stages.items():
        raw["stages"][stage] |= settings
    path.write_text(yaml.safe_dump(raw))


def check(*options: str) -> dict[str, dict[str, Any]]:
    result = CliRunner().invoke(main, ["check", "--json", *options])
    found = {finding["part"]: finding for finding in json.loads(result.stdout)}
    assert all(finding["cure"] for finding in found.values() if finding["state"] == "failed")
    return found


def test_check_refuses_the_changed_settings_that_launch_refuses(campaign: Path) -> None:
    assert "not in the database yet" in check()["campaign"]["text"]
    with connect("embedded", root=campaign.parent) as connection:
        execution.launch(connection, load_config(campaign))
    found = check()
    assert found["campaign"]["state"] == "ok"
    assert "(0 candidates, 0 calculations, 0 models, 39 reference labels)" in found["database"]["text"]
    change(campaign, dft={"budget_per_round": 7})
    refused = check()["campaign"]
    assert refused["state"] == "failed"
    launched = CliRunner().invoke(main, ["launch"])
    assert "stages.dft.budget_per_round 6 -> 7" in refused["text"]
    assert launched.stderr == f"error: {refused['text']}\n"


def test_check_knows_the_predictors(campaign: Path) -> None:
    change(campaign, predictor={"model": "cgcn"})
    found = check()["predictor"]
    assert found["state"] == "failed"
    assert "no predictor is called 'cgcn'; choose from cgcnn" in found["text"]


@pytest.mark.parametrize("options", [(), ("--worker", "w.yaml")])
def test_without_a_database_there_is_one_failure_of_it(campaign: Path, options: tuple[str, ...]) -> None:
    Path("w.yaml").write_text("{name: cpu, category: dft}")
    found = check("--database", "mongodb://127.0.0.1:9/nothing?serverSelectionTimeoutMS=100", *options)
    assert found["database"]["state"] == "failed"
    assert not {"launchpad", "campaign", "writing", "clock"} & set(found)


def test_without_gpaw_there_is_one_failure_of_it(campaign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "gpaw":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "gpaw-data" else real(name)

    real = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    change(campaign, dft={"backend": "gpaw"})
    Path("w.yaml").write_text("{name: cpu, category: dft}")
    for options in ((), ("--worker", "w.yaml")):
        found = check(*options)
        assert found["labels"]["state"] == "failed"
        assert "gpaw not installed here" in found["labels"]["text"]
        assert "'.[gpaw]'" in found["labels"]["text"]
        assert "docs/how-to/gpaw.md" in found["labels"]["cure"]
        assert "setups" not in found


def test_vasps_cure_names_its_page(campaign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    change(campaign, dft={"backend": "vasp"})
    assert "docs/how-to/vasp.md" in check()["labels"]["cure"]


def test_a_campaign_file_is_no_worker(campaign: Path) -> None:
    with pytest.raises(ValueError, match="is no worker: it has 'targets'"):
        read_worker(campaign)
    Path("w.yaml").write_text("{name: cpu, catgory: dft}")
    with pytest.raises(ValueError, match="is no worker: it has 'catgory'; a worker has name, category, query, env"):
        read_worker(Path("w.yaml"))
