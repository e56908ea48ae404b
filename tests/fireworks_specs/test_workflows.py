"""Workflows: small, ids only, no credentials, and accepted by FireWorks' own `lpad add`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from fireworks import Workflow

from fireworks_specs.seeds import derive_seed
from fireworks_specs.steps import STEP_NAMES, Step
from fireworks_specs.workflows import CATEGORIES, step_workflows

if TYPE_CHECKING:
    from pathlib import Path

IDS = tuple(f"s-{n:020x}" for n in range(10))
ITEMS = {
    "train": ("predictor", "generator"),
    "generate": (0, 1),
    "predictor": ("all",),
    "mlip": (IDS,),
    "dft": (IDS[:1],),
    "close": ("all",),
}


@pytest.mark.parametrize("name", STEP_NAMES)
def test_specs_are_small_and_carry_ids_only(name: str) -> None:
    workflows = step_workflows(Step("c", 1, name, ITEMS[name]), rounds=2)
    assert len(workflows) == len(ITEMS[name])
    for workflow in workflows:
        work, after = sorted(workflow.fws, key=lambda fw: len(fw.parents))
        assert workflow.links[work.fw_id] == [after.fw_id]
        assert after.spec["_allow_fizzled_parents"] is True
        assert work.spec["_category"] == CATEGORIES[name]
        for firework in (work, after):
            text = json.dumps(firework.to_dict(), default=str)
            assert len(text) < 8_000
            assert "lattice" not in text
            assert "mongodb://" not in text
            assert firework.spec["campaign"] == "c"


@pytest.mark.parametrize("name", STEP_NAMES)
def test_workflows_survive_their_file_form(name: str, tmp_path: Path) -> None:
    workflow = step_workflows(Step("c", 0, name, ITEMS[name]), rounds=0)[0]
    path = tmp_path / "workflow.yaml"
    workflow.to_file(str(path))
    again = Workflow.from_file(str(path))
    assert [fw.spec["_tasks"] for fw in again.fws] == [fw.spec["_tasks"] for fw in workflow.fws]


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(ValueError, match="polish"):
        step_workflows(Step("c", 0, "polish", ("all",)), rounds=0)


def test_a_step_has_the_same_key_wherever_it_is_derived() -> None:
    assert Step("c", 0, "mlip", (IDS,)).key == Step("c", 0, "mlip", (tuple(IDS),)).key
    assert Step("c", 0, "mlip", (IDS,)).key != Step("c", 0, "mlip", (IDS[1:],)).key
    assert Step("c", 0, "mlip", (IDS,)).key != Step("c", 1, "mlip", (IDS,)).key


def test_seeds_differ_by_every_part_and_never_change() -> None:
    assert derive_seed(0, 1, "generate", 2) == derive_seed(0, 1, "generate", 2)
    seeds = {
        derive_seed(s, r, k, c) for s in range(3) for r in range(3) for k in ("train", "generate") for c in range(9)
    }
    assert len(seeds) == 3 * 3 * 2 * 9
    assert all(0 <= seed < 2**31 for seed in seeds)
