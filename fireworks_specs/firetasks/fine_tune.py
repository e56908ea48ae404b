"""Fine-tune: the stage-II potential of a round, from the labels of the rounds before, if the campaign wants it."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fireworks_specs.progress import report
from fireworks_specs.seeds import derive_seed

if TYPE_CHECKING:
    from builders.mlip_training_set import CampaignFrames
    from fireworks_specs.firetasks.base import CampaignTask
    from inv_design.calculators.finetune import FinetuneSettings
    from inv_design.config import CampaignConfig, DftConfig
    from stores.documents.model import Model

LOG = logging.getLogger("inv_design")
KIND = "mlip"


def fine_tune_round(task: CampaignTask) -> None:
    """Insert the potential of a round: fine-tuned, or the one of the round before with the reason why it stays.

    It learns from all labels of the campaign so far and begins with the configured potential each time, so that what is
    forgotten does not add up. A training that fails is a reason to stay, never one to stop.
    """
    from pymongo.errors import PyMongoError

    from builders.mlip_training_set import campaign_frames
    from fireworks_specs.protocols import round_calculator
    from fireworks_specs.steps import model_of_round

    campaign, number, config = task["campaign"], task["round"], task.config
    before = model_of_round(campaign, number - 1, KIND)
    learned = int(before.hyperparameters.get("frames_learned") or 0) if before is not None else 0
    found = campaign_frames(campaign)
    new, needed = len(found.frames) - learned, config.stages.mlip.fine_tune.min_frames
    reason = None
    if new < needed:
        reason = f"{new} new frames of {needed} that are needed (stages.mlip.fine_tune.min_frames)"
    else:
        try:
            _insert_trained(task, found, _train(task, found))
        except PyMongoError:  # an outage: the firework waits for its end
            raise
        except Exception as error:
            reason = f"fine-tuning failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if reason is not None:
        calculator = round_calculator(campaign, config, number - 1)
        LOG.warning("round %d: the potential stays %s: %s", number, calculator, reason)
        _insert_kept(task, before, calculator, learned, reason)


def training_settings(config: CampaignConfig, number: int, n_frames: int) -> FinetuneSettings:
    """Return how the potential of a round is trained: so many passes over the frames, and every replayed one once."""
    from inv_design.calculators.finetune import FinetuneSettings

    section = config.stages.mlip.fine_tune
    batch = FinetuneSettings.batch
    steps = max(section.epochs * math.ceil(n_frames / batch), math.ceil(section.replay / batch))
    seed = derive_seed(config.seed, number, "fine_tune")
    return FinetuneSettings(steps=steps, replay=section.replay, rate=section.rate, seed=seed)


def _train(task: CampaignTask, found: CampaignFrames) -> Model:
    from fireworks_specs.firetasks.train_mlip import TrainingData, train_mlip

    number, config = task["round"], task.config
    trained = train_mlip(
        TrainingData(found.frames, task["campaign"], found.calculation_ids, left_out=found.left_out),
        training_settings(config, number, len(found.frames)),
        parent=config.stages.mlip.calculator,
        name=f"{Path(config.stages.mlip.calculator).stem}-{task['campaign']}-{number}",
        progress=lambda done, total, _: report(f"round {number}: fine-tune potential", done, total),
        provenance=task.provenance,
    )
    return trained.model


def _insert_trained(task: CampaignTask, found: CampaignFrames, model: Model) -> None:
    """Insert the round's document: it names the trained model, whose id is the calculator's name."""
    _insert(
        task,
        model.load(),
        name=model.name,
        parent=model.model_id,
        seed=model.seed,
        hyperparameters={"calculator": model.model_id, "frames_learned": len(found.frames)},
        metrics=dict(model.metrics),
    )


def _insert_kept(task: CampaignTask, before: Model | None, calculator: str, learned: int, reason: str) -> None:
    from fireworks_specs.firetasks.train_mlip import find_parent

    _insert(
        task,
        find_parent(calculator)[0],
        name=before.name if before is not None else Path(calculator).name,
        parent=before.model_id if before is not None else None,
        seed=before.seed if before is not None else None,
        hyperparameters={"calculator": calculator, "frames_learned": learned, "kept": reason},
        metrics={},
    )


def _insert(task: CampaignTask, blob: bytes, *, parent: str | None, **fields: Any) -> None:
    from stores.records import insert_model

    insert_model(
        blob,
        kind=KIND,
        campaign=task["campaign"],
        round=task["round"],
        parent_model_id=parent,
        provenance=task.provenance([parent] if parent else []),
        **fields,
    )


def judge_as_before(task: CampaignTask) -> None:
    """Compute with the configured potential what a fine-tuned one judged in this round and stage III has labelled.

    Those labels came after the training, so that both potentials are compared on crystals that neither has learned.
    What fails is a record, and no comparison ever stops a round.
    """
    from fireworks_specs.firetasks.elastic import insert_result, to_compute
    from fireworks_specs.pool import map_structures
    from fireworks_specs.protocols import mlip_protocol, round_calculator
    from inv_design.mechanics.stages import measure_elasticities
    from stores.claims import Claims
    from stores.queries import structures_by_id

    campaign, number, config = task["campaign"], task["round"], task.config
    stage = config.stages.mlip
    if round_calculator(campaign, config, number) == stage.calculator:
        return
    where: dict[str, Any] = {"kind": "elastic", "method": "mlip", "protocol": mlip_protocol(config)}
    with Claims(campaign=campaign, stage="compare") as claims:
        for todo in to_compute(
            claims, labelled_structures(campaign, number, config.stages.dft), "elastic", where["protocol"]
        ):
            structures = structures_by_id(todo)
            ids = [i for i in todo if i in structures]
            records = map_structures(
                measure_elasticities,
                [structures[i] for i in ids],
                calculator=stage.calculator,
                fmax=stage.fmax,
                max_steps=stage.max_steps,
                keep_structure=stage.keep_structure,
            )
            for done, (index, record) in enumerate(records, start=1):
                provenance = task.provenance([ids[index]])
                insert_result(record, ids[index], **where, provenance=provenance, claims=claims)
                report(f"round {number}: compare with {stage.calculator}", done, len(ids))


def labelled_structures(campaign: str, number: int, stage: DftConfig) -> list[str]:
    """Return the structure ids of a round's candidates that have a label of the campaign's stage III."""
    from builders.labels import is_label, label_kind
    from stores.documents.calculation import Calculation
    from stores.queries import candidates_of

    ids = list(dict.fromkeys(candidate["structure_id"] for candidate in candidates_of(campaign, number)))
    by = {"kind": label_kind(stage), "method": stage.backend}
    found = Calculation.objects(structure_id__in=ids, state="completed", **by).only("structure_id", "protocol")
    known = {document.structure_id for document in found if is_label(by, document.protocol, stage)}
    return [i for i in ids if i in known]
