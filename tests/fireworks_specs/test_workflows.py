"""Workflows: small, ids only, no credentials, and accepted by FireWorks' own `lpad add`."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import bson
import pytest
from fireworks import Firework, FWAction, FWorker, Workflow
from hypothesis import given, settings
from hypothesis import strategies as st

from fireworks_specs.seeds import derive_seed
from fireworks_specs.steps import STEP_NAMES, Step
from fireworks_specs.workflows import CATEGORIES, step_workflows

if TYPE_CHECKING:
    from pathlib import Path

    from stores.connection import Connection

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
            assert_small(firework)
            assert firework.spec["campaign"] == "c"


def assert_small(firework: Firework) -> None:
    """Check that a spec is below 8 kB, as JSON and as the database has it, and holds neither crystal nor credential."""
    stored = firework.to_db_dict()
    text = json.dumps(stored["spec"], default=str)
    assert len(text) < 8_000
    assert len(bson.encode(stored["spec"])) < 8_000
    assert not re.search(r"lattice|coords|species|mongodb|password|://", text)


@pytest.mark.parametrize("name", ["mlip", "dft"])
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=4))
def test_no_spec_is_large_however_many_ids_an_item_has(name: str, sizes: list[int]) -> None:
    items = tuple(tuple(f"s-{k:03d}{n:029x}" for n in range(size)) for k, size in enumerate(sizes))
    workflows = step_workflows(Step("c" * 60, 10**6, name, items), rounds=10**6)
    tasks = []
    for workflow in workflows:
        for firework in workflow.fws:
            assert_small(firework)
        [task] = next(fw for fw in workflow.fws if not fw.parents).tasks
        tasks.append(task)
    assert [i for task in tasks for i in task["structure_ids"]] == [i for item in items for i in item]
    done = 0
    for task in tasks:
        assert task["before"] == done
        done += len(task["structure_ids"])
        assert task["total"] == sum(sizes)
    assert len({workflow.name for workflow in workflows}) == len(workflows)


def test_specs_stay_small_after_a_failure(connection: Connection) -> None:
    launchpad = connection.launchpad()
    launchpad.bulk_add_wfs(step_workflows(Step("c", 0, "mlip", (IDS,)), rounds=1))
    _, launch_id = launchpad.checkout_fw(FWorker(), ".")
    trace = FWAction(stored_data={"_exception": {"_stacktrace": "x" * 100_000, "_details": None}})
    launchpad.complete_launch(launch_id, trace, "FIZZLED")
    after, _ = launchpad.checkout_fw(FWorker(), ".")
    assert after.spec["role"] == "advance"
    for fw_id in launchpad.fireworks.distinct("fw_id"):
        assert_small(launchpad.get_fw_by_id(fw_id))


def test_ten_thousand_workflows_are_made_in_time() -> None:
    """The time per workflow does not grow with their number."""
    seconds = {}
    for count in (10, 500, 4000):  # the first one imports
        items = tuple((f"s-{n:020x}",) for n in range(count))
        began = time.process_time()
        step_workflows(Step("c", 0, "dft", items), rounds=1)
        seconds[count] = (time.process_time() - began) / count
    assert seconds[4000] < 3 * seconds[500]


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
