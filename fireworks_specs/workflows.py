"""Workflows: a step of a round as small workflows, each one piece of work and the advance that follows it."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from fireworks import Firework, Workflow

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fireworks import FiretaskBase

    from fireworks_specs.steps import Step

CATEGORIES = {
    "train": "train",
    "generate": "train",
    "predictor": "train",
    "mlip": "mlip",
    "dft": "dft",
    "close": "mlip",
}
"""Step -> FireWorks category, by which workers choose (GPU nodes: train and mlip; CPU nodes: dft)."""


MAX_IDS = 150
"""Ids in one spec: what a spec weighs is read and written at each of a firework's many state changes."""
_BY_IDS = ("mlip", "dft")


def step_workflows(step: Step, *, rounds: int, key: str | None = None) -> list[Workflow]:
    """Return the workflows of a step, one per item; specs carry ids, never structures or credentials.

    An item of more than :data:`MAX_IDS` ids becomes several. ``key`` is the claim under which they are added, the
    step's own by default; their metadata name it.
    """
    items = _parts(step.items) if step.name in _BY_IDS else list(step.items)
    sizes = [len(item) if step.name in _BY_IDS else 1 for item in items]
    before = [0, *accumulate(sizes)]
    key = key or step.key  # a hash of all items: made once
    return [
        _item_workflow(step, item, rounds, key, number=f"{n + 1}/{len(items)}", share=(before[n], before[-1]))
        for n, item in enumerate(items)
    ]


def _parts(items: Iterable[Sequence[str]]) -> list[Sequence[str]]:
    """Return lists of ids, none longer than a spec may hold."""
    return [item[start : start + MAX_IDS] for item in items for start in range(0, len(item), MAX_IDS)]


def _item_workflow(step: Step, item: Any, rounds: int, key: str, *, number: str, share: tuple[int, int]) -> Workflow:
    from fireworks_specs.firetasks.advance import AdvanceTask

    name = f"{step.campaign} round {step.round} {step.name} {number}"
    where = {"campaign": step.campaign, "round": step.round}
    work = Firework([_task(step, item, share)], spec=_spec(step, "work"), name=name)
    after = Firework(
        [AdvanceTask(**where, rounds=rounds)],
        # one failed piece of work never stops a campaign: the advance runs after a fizzled parent too; FireWorks would
        # copy that parent with its trace into a spec that has no such list
        spec=_spec(step, "advance") | {"_allow_fizzled_parents": True, "_fizzled_parents": []},
        name=f"{name} advance",
        parents=[work],
    )
    return Workflow([work, after], name=name, metadata=where | {"step": step.name, "key": key})


def _spec(step: Step, role: str) -> dict[str, Any]:
    return {
        "_add_launchpad_and_fw_id": True,
        "_category": CATEGORIES[step.name],
        "campaign": step.campaign,
        "round": step.round,
        "step": step.name,
        "role": role,
    }


def _task(step: Step, item: Any, share: tuple[int, int]) -> FiretaskBase:
    from fireworks_specs.firetasks.close import CloseTask
    from fireworks_specs.firetasks.dft import DftTask
    from fireworks_specs.firetasks.elastic import ElasticTask
    from fireworks_specs.firetasks.generate import GenerateTask
    from fireworks_specs.firetasks.predict import PredictTask
    from fireworks_specs.firetasks.train import TrainTask

    where = {"campaign": step.campaign, "round": step.round}
    progress = {"before": share[0], "total": share[1]}  # ids of the step before this item, and in all
    match step.name:
        case "train":
            return TrainTask(**where, kind=item)
        case "generate":
            return GenerateTask(**where, chunk=item)
        case "predictor":
            return PredictTask(**where)
        case "mlip":
            return ElasticTask(**where, structure_ids=list(item), **progress)
        case "dft":
            return DftTask(**where, structure_ids=list(item), **progress)
        case "close":
            return CloseTask(**where)
        case _:
            raise ValueError(f"no step {step.name!r}")
