"""A campaign of two rounds whose records are written directly: what the commands show is then known beforehand."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

NAME = "stiff"
# formula, lattice parameter (Å), prediction, MLIP modulus (None: not reached), Born stable, label (None: not labelled)
CRYSTALS: list[list[tuple[str, str, float, float, float | None, bool, float | None]]] = [
    [
        ("Re", "W", 3.12, 352.0, 361.0, True, 344.0),  # passes all stages
        ("Os", "W", 3.10, 340.0, 355.0, False, None),  # Born unstable
        ("Ir", "Re", 3.05, 372.0, 310.0, True, 262.0),  # labelled, off the target
        ("Al", "Ni", 2.89, 150.0, None, True, None),  # predicted off the target
        ("Mo", "Re", 3.11, 330.0, -1.0, True, None),  # the calculation fails (marked by -1)
        ("Cu", "Zn", 2.95, 120.0, None, True, None),  # predicted off the target
    ],
    [
        ("Os", "Ta", 3.20, 336.0, 341.0, True, 349.0),
        ("Ir", "Ta", 3.14, 345.0, 352.0, True, 338.0),
        ("Ru", "W", 3.08, 331.0, 330.0, True, None),  # waits for its label
        ("Re", "Ta", 3.19, 310.0, None, True, None),  # waits for stage II
        ("Ag", "Mg", 3.30, 80.0, None, True, None),
    ],
]


def write_campaign(folder: Path, database: str = "embedded") -> dict[str, Any]:
    """Write campaign.yaml into a folder and the campaign's records into a database; return the ids of the records."""
    import numpy as np
    import yaml
    from pymatgen.core import Lattice, Structure

    from builders.run import build_campaign
    from inv_design.config import CampaignConfig
    from inv_design.datasets.mp_binaries import load_alloys
    from inv_design.weights import pack
    from stores import records
    from stores.connection import connect
    from stores.documents import Evaluation
    from stores.ingest import ingest_reference
    from stores.provenance import provenance

    raw = {
        "name": NAME,
        "targets": {"bulk_modulus_vrh": "350 GPa"},
        "rounds": 1,
        "stages": {"predictor": {"min_radius_ratio": 0.5}},
    }
    (folder / "campaign.yaml").write_text(yaml.safe_dump(raw))
    config = CampaignConfig.model_validate(raw)
    made = provenance(command="tests")
    ids: dict[str, Any] = {"candidates": {}, "models": {}, "training_sets": []}
    with connect(database, root=folder) as connection:
        records.insert_campaign(NAME, config.model_dump(mode="json"), targets=config.targets, provenance=made)
        alloys = load_alloys()[:30]
        ingest_reference(alloys, "packaged")
        members: list[dict[str, Any]] = []
        for document in connection.db["calculations"].find({"method": "reference"}):
            label = {
                "value": document["results"]["bulk_modulus_vrh"],
                "unit": "GPa",
                "calculation_id": document["calculation_id"],
                "method": "reference",
            }
            split = "val" if len(members) % 5 == 0 else "train"
            members.append(
                {
                    "structure_id": document["structure_id"],
                    "labels": {"bulk_modulus_vrh": label},
                    "chemsys": "x",
                    "split": split,
                }
            )
        parent = None
        for number, crystals in enumerate(CRYSTALS):
            training_set, _ = records.insert_training_set(
                members, provenance=made, campaign=NAME, round=number, parent_training_set_id=parent
            )
            parent = training_set
            ids["training_sets"].append(training_set)
            for kind, model in (("predictor", "extra_trees"), ("generator", "substitution")):
                blob = pack({"x": np.full(3, number)}, {"kind": model, "round": number})
                document = records.insert_model(
                    blob,
                    kind=kind,
                    name=model,
                    provenance=made,
                    training_set_id=training_set,
                    campaign=NAME,
                    round=number,
                )
                ids["models"][kind, number] = document.model_id
            for index, (a, b, length, predicted, modulus, stable, label_value) in enumerate(crystals):
                structure = Structure(Lattice.cubic(length), [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]])
                source = {"kind": "generated", "id": ids["models"]["generator", number]}
                identity = records.insert_structure(structure, source, made)
                candidate, _ = records.insert_candidate(
                    campaign=NAME, structure_id=identity, round=number, seed=7 + number, index=index,
                    generator_model_id=ids["models"]["generator", number], score=predicted,
                    condition={"targets": {"bulk_modulus_vrh": 350.0}}, provenance=made,
                )  # fmt: skip
                ids["candidates"][f"{a}{b}"] = candidate
                records.insert_prediction(
                    structure_id=identity, property="bulk_modulus_vrh", value=predicted, std=12.0, unit="GPa",
                    model_id=ids["models"]["predictor", number], protocol_id=f"p-predictor-{number}", provenance=made,
                )  # fmt: skip
                if modulus is not None:
                    failed = modulus < 0
                    results = {
                        "bulk_modulus_vrh": modulus, "shear_modulus_vrh": 0.6 * modulus, "born_stable": stable,
                        "relaxed": True, "structure_matched": True, "volume_change": 0.01,
                    }  # fmt: skip
                    records.insert_calculation(
                        structure_id=identity, kind="elastic", method="mlip", protocol_id="p-mlip",
                        protocol={"calculator": {"calculator": "mace-alloy-small"}},
                        state="failed" if failed else "completed", results={} if failed else results,
                        flags=[] if stable else ["born_unstable"], error="relaxation: exploded" if failed else None,
                        provenance=made,
                    )  # fmt: skip
                if label_value is not None:
                    calculation, _ = records.insert_calculation(
                        structure_id=identity, kind="eos", method="surrogate", protocol_id="p-surrogate",
                        protocol={"calculator": {"calculator": "chgnet"}}, state="completed",
                        results={"bulk_modulus_vrh": label_value, "relaxed": True}, provenance=made,
                    )  # fmt: skip
                    ids.setdefault("labels", {})[f"{a}{b}"] = calculation
                    label = {"value": label_value, "unit": "GPa", "calculation_id": calculation, "method": "surrogate"}
                    members.append(
                        {
                            "structure_id": identity,
                            "labels": {"bulk_modulus_vrh": label},
                            "chemsys": "y",
                            "split": "train",
                        }
                    )
            for target in (200.0, 350.0):
                Evaluation(
                    evaluation_id=f"e-{number}{target:.0f}", campaign=NAME, round=number, property="bulk_modulus_vrh",
                    generator_model_id=ids["models"]["generator", number], target=target, judge="E(V) by chgnet",
                    unit="GPa", n=3, values=[target * f for f in (0.8, 0.9, 1.0)], median=0.9 * target,
                    mean_relative_error=0.1 / (number + 1), provenance=made,
                ).save(force_insert=True)  # fmt: skip
        build_campaign(NAME)
    return ids


@pytest.fixture(scope="session")
def written_campaign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Give (folder, ids) of the campaign; its tests only read it."""
    folder = tmp_path_factory.mktemp("stiff")
    return folder, write_campaign(folder)


@pytest.fixture
def served_campaign(wire_server: str, tmp_path: Path) -> Iterator[str]:
    """Give the URI of a server's database that holds the campaign, dropped after the test."""
    from pymongo import MongoClient

    name = f"inv_design_test_{uuid.uuid4().hex[:12]}"
    head, _, options = wire_server.partition("?")
    uri = f"{head.rstrip('/')}/{name}" + (f"?{options}" if options else "")
    write_campaign(tmp_path, uri)
    yield uri
    client: MongoClient[Any] = MongoClient(wire_server)
    client.drop_database(name)
    client.close()


@pytest.fixture
def inv_design(written_campaign: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Give a function that runs `inv-design` in the campaign's folder."""
    from inv_design.cli import main

    monkeypatch.chdir(written_campaign[0])
    monkeypatch.delenv("INV_DESIGN_DATABASE", raising=False)
    return lambda *args: CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture
def ids(written_campaign: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    """Give the ids of the campaign's records."""
    return written_campaign[1]
