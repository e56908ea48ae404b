"""Many runs and workers of one campaign: what a lost one leaves behind holds nobody up, and nothing is done twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fireworks import Firework, FWAction, FWorker, Workflow

from fireworks_specs import execution
from fireworks_specs.firetasks.close import CloseTask

if TYPE_CHECKING:
    from stores.connection import Connection


def chain() -> Workflow:
    """Return a piece of work and the advance that follows it."""
    spec = {"campaign": "a", "role": "work"}
    work = Firework([CloseTask(campaign="a", round=0)], spec=spec, name="work")
    after = spec | {"role": "advance", "_allow_fizzled_parents": True}
    return Workflow([work, Firework([CloseTask(campaign="a", round=0)], spec=after, name="advance", parents=[work])])


def test_a_failed_workflow_is_given_up_only_when_nobody_works_on_it(connection: Connection) -> None:
    launchpad = connection.launchpad()
    launchpad.bulk_add_wfs([chain()])
    node = FWorker(name="node7")
    _, launch_id = launchpad.checkout_fw(node, ".")
    launchpad.complete_launch(launch_id, FWAction(), "FIZZLED")
    advance, launch_id = launchpad.checkout_fw(node, ".")
    assert advance.name == "advance"
    assert execution.recover(launchpad, "a", everything=False) == 0
    launchpad.complete_launch(launch_id, FWAction(), "COMPLETED")
    assert launchpad.fireworks.distinct("state") == ["COMPLETED", "FIZZLED"]
    assert execution.recover(launchpad, "a", everything=False) == 2
    # FireWorks asks whether the field exists: one that says False is a lock for ever
    assert connection.db["workflows"].count_documents({"locked": {"$exists": True}}) == 0
    assert connection.db["workflows"].distinct("state") == ["ARCHIVED"]
