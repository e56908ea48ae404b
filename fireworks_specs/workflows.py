"""Workflows: a step of a round as small workflows, each one piece of work and the advance that follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fireworks import Firework, Workflow

if TYPE_CHECKING:
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


def step_workflows(step: Step, *, rounds: int, key: str | None = None) -> list[Workflow]:
    """Return one workflow per item of a step; specs carry ids, never structures or credentials.

    ``key`` is the claim under which they are added, the step's own by default; their metadata name it.
    """
    return [_item_workflow(step, item, number, rounds, key or step.key) for number, item in enumerate(step.items)]


def _item_workflow(step: Step, item: Any, number: int, rounds: int, key: str) -> Workflow:
    from fireworks_specs.firetasks.advance import AdvanceTask

    name = f"{step.campaign} round {step.round} {step.name} {number + 1}/{len(step.items)}"
    where = {"campaign": step.campaign, "round": step.round}
    work = Firework([_task(step, item, number)], spec=_spec(step, "work"), name=name)
    after = Firework(
        [AdvanceTask(**where, rounds=rounds)],
        # one failed piece of work never stops a campaign: the advance runs after a fizzled parent too
        spec=_spec(step, "advance") | {"_allow_fizzled_parents": True},
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


def _task(step: Step, item: Any, number: int) -> FiretaskBase:
    from fireworks_specs.firetasks.close import CloseTask
    from fireworks_specs.firetasks.dft import DftTask
    from fireworks_specs.firetasks.elastic import ElasticTask
    from fireworks_specs.firetasks.generate import GenerateTask
    from fireworks_specs.firetasks.predict import PredictTask
    from fireworks_specs.firetasks.train import TrainTask

    where = {"campaign": step.campaign, "round": step.round}
    match step.name:
        case "train":
            return TrainTask(**where, kind=item)
        case "generate":
            return GenerateTask(**where, chunk=item)
        case "predictor":
            return PredictTask(**where)
        case "mlip":
            return ElasticTask(**where, structure_ids=list(item), **_share(step, number))
        case "dft":
            return DftTask(**where, structure_ids=list(item), **_share(step, number))
        case "close":
            return CloseTask(**where)
        case _:
            raise ValueError(f"no step {step.name!r}")


def _share(step: Step, number: int) -> dict[str, int]:
    """Return where an item stands in its step, for progress: ids before it, ids in all."""
    return {"before": sum(len(item) for item in step.items[:number]), "total": sum(len(item) for item in step.items)}
