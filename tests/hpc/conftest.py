"""Fixtures of this lane: a Slurm cluster, started for the first test that asks for it, and campaigns on it."""

from __future__ import annotations

import os
import sys
import uuid
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REQUIRE_VARIABLE = "INV_DESIGN_REQUIRE_HPC"


def load(name: str) -> Any:
    """Return a module that lies beside this file; pytest's import mode puts none on the path."""
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def slurm() -> Iterator[Any]:
    """Give a running cluster of one node; see slurm_cluster.py."""
    module = load("slurm_cluster")
    if reason := module.why_not():
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(f"{REQUIRE_VARIABLE}=1, but {reason}")
        pytest.skip(reason)
    module.sweep()
    cluster = module.SlurmCluster(cpus=4)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def new_campaign(slurm: Any, wire_server: str, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Give a maker of campaigns on the cluster, each with a database of its own; see slurm_campaign.py."""
    from pymongo import MongoClient

    module = load("slurm_campaign")
    made = []

    def make(name: str, text: str, **options: Any) -> Any:
        uri = f"{wire_server}/inv_design_test_{uuid.uuid4().hex[:12]}"
        campaign = module.SlurmCampaign(slurm, tmp_path / name, uri, text, **options)
        made.append(campaign)
        return campaign

    yield make
    for campaign in made:
        campaign.end()
        with MongoClient(campaign.uri) as client:
            client.drop_database(client.get_default_database().name)
