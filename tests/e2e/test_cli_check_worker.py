"""check --worker: what a worker's categories need, on the machine where it runs, with cures."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner

from inv_design.cli import check_worker, main
from inv_design.cli.check_worker import read_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from stores.connection import Connection

    Check = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def check(wire_connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Give a function that checks a worker of some categories for a campaign; returns part -> finding."""
    raw = {
        "name": "a",
        "targets": {"bulk_modulus_vrh": "350 GPa"},
        "data": {"elements": ["Al", "Ni"]},
        "stages": {"mlip": {"calculator": "emt"}, "dft": {"backend": "surrogate", "calculator": "emt"}},
    }
    uri = wire_connection.given[0] if wire_connection.given else ""
    monkeypatch.setenv("INV_DESIGN_DATABASE", uri)
    monkeypatch.chdir(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def run(worker: dict[str, Any], backend: str = "surrogate", **files: str) -> dict[str, dict[str, Any]]:
        raw["stages"]["dft"]["backend"] = backend  # type: ignore[index]
        (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(raw))
        (tmp_path / "w.yaml").write_text(yaml.safe_dump(worker))
        for name, script in files.items():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(stat.S_IRWXU)
        result = CliRunner().invoke(main, ["check", "--worker", "w.yaml", "--json"])
        found = {finding["part"]: finding for finding in json.loads(result.stdout)}
        failed = [part for part, finding in found.items() if finding["state"] == "failed"]
        assert result.exit_code == (1 if failed else 0), result.stderr
        assert all(finding["cure"] for finding in found.values() if finding["state"] == "failed")
        return found

    return run


@pytest.mark.wire
def test_a_worker_for_labels_needs_no_training(check: Check, wire_connection: Connection) -> None:
    answers = "echo ClusterName = lane"
    found = check({"name": "cpu", "category": ["dft"]}, sbatch="exit 0", squeue="exit 0", scontrol=answers)
    assert {part for part, finding in found.items() if finding["state"] == "failed"} == set()
    assert not {"torch", "gpu", "predictor", "generator"} & set(found)
    assert "emt: fcc Cu" in found["calculator"]["text"]
    assert found["queue"]["text"] == "slurm answers, cluster lane"
    assert wire_connection.db["claims"].count_documents({}) == 0


@pytest.mark.wire
def test_a_scheduler_that_does_not_answer_fails(check: Check) -> None:
    silent = "echo Unable to contact slurm controller >&2; exit 1"
    found = check({"name": "cpu", "category": "dft"}, sbatch="exit 0", squeue=silent)
    assert found["queue"]["state"] == "failed"
    assert "Unable to contact" in found["queue"]["text"]


@pytest.mark.wire
def test_a_worker_for_gpus_must_have_one_inside_a_job(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check({"name": "gpu", "category": ["mlip"]})["gpu"]["state"] == "info"
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert check({"name": "gpu", "category": ["mlip"]})["gpu"]["state"] == "failed"
    assert check({"name": "cpu", "category": ["mlip"]})["gpu"]["state"] == "info"


@pytest.mark.wire
def test_dft_needs_programs_and_potentials(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_worker, "gpaw_version", lambda _: "gpaw")
    monkeypatch.setattr(check_worker, "_gpaw_setups", lambda: {"Al", "Mg"})
    found = check({"name": "cpu", "category": "dft"}, backend="gpaw")
    assert "candidates with Ni will fail" in found["setups"]["text"]
    monkeypatch.setattr(check_worker, "_gpaw_setups", set)
    assert check({"name": "cpu", "category": "dft"}, backend="gpaw")["setups"]["state"] == "failed"
    monkeypatch.delenv("PMG_VASP_PSP_DIR", raising=False)
    found = check({"name": "cpu", "category": "dft"}, backend="vasp")
    assert found["labels"]["state"] == "failed"
    assert found["custodian"]["state"] == "ok"
    assert found["potcars"]["state"] == "failed"


def test_potcars_of_another_release_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymatgen.core import SETTINGS

    from inv_design.testing_vasp import write_potcars

    monkeypatch.setitem(SETTINGS, "PMG_VASP_PSP_DIR", str(tmp_path))
    write_potcars(tmp_path, ["Al"], "POT_GGA_PAW_PBE")
    assert check_worker._potcars() == set()
    write_potcars(tmp_path, ["Ni_pv"])
    assert check_worker._potcars() == {"Ni"}


@pytest.mark.wire
def test_clocks_files_and_rights(
    check: Check, wire_connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"host": "mongodb://elsewhere:27017/x", "name": wire_connection.db.name, "uri_mode": True}
    (tmp_path / "my_launchpad.yaml").write_text(yaml.safe_dump(other))
    monkeypatch.setattr("stores.connection.TIMEOUT_MS", 1500)
    kind = type(wire_connection)
    real = kind.now
    monkeypatch.setattr(kind, "now", lambda self: real(self) + timedelta(hours=1))
    found = check({"name": "cpu", "category": "dft"})
    assert "mongodb://elsewhere:27017/x" in found["launchpad"]["text"]
    assert found["launchpad"]["state"] == found["clock"]["state"] == "failed"
    monkeypatch.setattr(check_worker, "SCRATCH_GB", 1e9)
    assert check({"name": "cpu", "category": "dft"})["scratch"]["state"] == "failed"


def proxy_module() -> ModuleType:
    place = Path(__file__).with_name("authenticating_proxy.py")
    spec = importlib.util.spec_from_file_location("authenticating_proxy", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.wire
def test_the_launchpad_file_is_opened_as_a_worker_opens_it(
    check: Check, wire_connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.connection.TIMEOUT_MS", 1500)
    own = str(wire_connection.given[0] if wire_connection.given else "")
    name, path = wire_connection.db.name, tmp_path / "my_launchpad.yaml"
    server = own.removeprefix("mongodb://").partition("/")[0]
    rest = f"{name}?authMechanism=SCRAM-SHA-256"

    def launchpad(text: str | None = None, **fields: Any) -> dict[str, Any]:
        path.write_text(yaml.safe_dump(fields) if text is None else text)
        return check({"name": "cpu", "category": "dft"})["launchpad"]

    same = launchpad(host=own, name=name, uri_mode=True)
    assert same["state"] == "ok"
    assert "opens the same database" in same["text"]
    host, _, port = server.partition(":")
    plain = launchpad(host=host, port=int(port), name=name)  # the same, said in other words
    assert plain["state"] == "ok"
    # the right server and database, but what a worker reads there it may not, or cannot
    proxy = proxy_module().AuthenticatingProxy(server, {"designer": ("s3cret/w0rd", "worker")})
    try:
        for given in (
            f"mongodb://designer@127.0.0.1:{proxy.port}/{rest}",
            f"mongodb://designer:s3cret%2Fwr0ng@127.0.0.1:{proxy.port}/{rest}",
            f"mongodb://designer:s3cret/w0rd@127.0.0.1:{proxy.port}/{rest}",
        ):
            refused = launchpad(host=given, name=name, uri_mode=True)
            assert refused["state"] == "failed"
            assert f"{path.name} does not open mongodb://***@" in refused["text"]
            assert not {"s3cret", "w0rd", "wr0ng"} & set(re.findall(r"\w+", refused["text"]))
        given = f"mongodb://designer:s3cret%2Fw0rd@127.0.0.1:{proxy.port}/{rest}"
        opened = launchpad(host=given, name=name, uri_mode=True)
        assert opened["state"] == "ok", opened
    finally:
        proxy.stop()
    assert "has no host" in launchpad("[]")["text"]
    assert "is no YAML" in launchpad("host: [")["text"]


def test_workers_share_no_embedded_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INV_DESIGN_DATABASE", raising=False)
    (tmp_path / "campaign.yaml").write_text(
        yaml.safe_dump({"name": "a", "targets": {"bulk_modulus_vrh": 350}, "stages": {"dft": {"calculator": "emt"}}})
    )
    (tmp_path / "w.yaml").write_text("name: cpu\ncategory: dft\n")
    result = CliRunner().invoke(main, ["check", "--worker", "w.yaml"])
    assert result.exit_code == 1
    assert "which workers cannot share" in result.stdout


def test_worker_files(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    for text, expected in {
        "name: x": ("x", ["dft", "mlip", "train"]),
        "name: x\ncategory: dft": ("x", ["dft"]),
        "name: x\ncategory: [train, mlip]": ("x", ["train", "mlip"]),
    }.items():
        path.write_text(text)
        assert read_worker(path) == expected
    for text, error in {"[": "no YAML", "x: 1": "no name", "name: x\ncategory: gpu": "no firework has"}.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=error):
            read_worker(path)
