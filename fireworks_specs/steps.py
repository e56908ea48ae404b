"""What a campaign has to do next: read from its records, never from a counter."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inv_design.config import CampaignConfig

STEP_NAMES = ("train", "generate", "predictor", "mlip", "dft", "close")


@dataclass(frozen=True)
class Step:
    """One step of a round.

    Attributes
    ----------
    campaign, round
        Where it belongs.
    name
        One of :data:`STEP_NAMES`.
    items
        What it has to do, one entry per firework: lists of ids, chunk numbers or model kinds.
    attempts
        How often its items were computed before and failed: a retry is another piece of work.
    """

    campaign: str
    round: int
    name: str
    items: tuple[Any, ...]
    attempts: int = 0

    @property
    def key(self) -> str:
        """Unique name of this piece of work, the same on every worker that derives it."""
        work = repr(self.items) + (f" after {self.attempts}" if self.attempts else "")
        digest = hashlib.sha256(work.encode()).hexdigest()[:12]
        return f"{self.campaign}/{self.round}/{self.name}/{digest}"


def next_step(campaign: str, config: CampaignConfig, *, rounds: int) -> Step | None:
    """Return the first step that lacks a result, or ``None`` when all rounds are closed.

    Builds the derived collections first where it needs them (screening verdicts decide what the next stage gets).
    """
    for number in range(rounds + 1):
        if not round_closed(campaign, number):
            return _step_of_round(campaign, config, number)
    return None


def round_closed(campaign: str, number: int) -> bool:
    """Return whether a round has its closing evaluations: of every target of its campaign's stored configuration.

    A server that is killed while they are written may have kept some of them. A campaign that is not stored has no
    targets: any evaluation closes its rounds.
    """
    from inv_design.config import EvaluationConfig
    from stores.documents.campaign import Campaign
    from stores.documents.evaluation import Evaluation

    if Evaluation.objects(campaign=campaign, round=number).first() is None:
        return False
    stored = Campaign.objects(name=campaign).scalar("config").first()
    wanted = EvaluationConfig.model_validate(stored.get("evaluation") or {}).targets if stored else []
    return not missing_targets(campaign, number, [target for target in wanted if target > 0])


def missing_targets(campaign: str, number: int, targets: Iterable[float]) -> list[float]:
    """Return which targets of a round lack an evaluation; those are told apart as in its id."""
    from stores.documents.evaluation import Evaluation

    found = Evaluation.objects(campaign=campaign, round=number).scalar("target")
    known = {f"{target:g}" for target in found if target is not None}
    return [target for target in targets if f"{target:g}" not in known]


def _step_of_round(campaign: str, config: CampaignConfig, number: int) -> Step:
    from fireworks_specs.backends import get_backend

    kinds = ["predictor", "generator"]
    if number > 0 and config.stages.mlip.fine_tune.enabled:
        kinds.append("mlip")
    missing_models = [kind for kind in kinds if model_of_round(campaign, number, kind) is None]
    if missing_models:
        return Step(campaign, number, "train", tuple(missing_models))
    chunks = missing_chunks(campaign, config, number)
    if chunks:
        return Step(campaign, number, "generate", tuple(chunks))
    unpredicted = candidates_without_prediction(campaign, number)
    if unpredicted:
        return Step(campaign, number, "predictor", ("all",))
    for stage, size in (("mlip", config.stages.mlip.chunk), ("dft", get_backend(config.stages.dft.backend).batch)):
        queue = queued(campaign, number, stage)
        if queue:
            parts = [tuple(queue[start : start + size]) for start in range(0, len(queue), size)]
            return Step(campaign, number, stage, tuple(parts), failed_attempts(campaign, number, stage))
    return Step(campaign, number, "close", ("all",))


def model_of_round(campaign: str, number: int, kind: str) -> Any:
    """Return the ``models`` document that a round uses, or ``None`` if it has not been trained.

    Of several, it is the one that was inserted first: what arrives later must not unmake the results of the first.
    """
    from stores.documents.model import Model

    return Model.objects(campaign=campaign, round=number, kind=kind).order_by("id").first()


def missing_chunks(campaign: str, config: CampaignConfig, number: int) -> list[int]:
    """Return the numbers of the generation chunks that are not finished."""
    from stores.steps import step_exists

    total = -(-config.generator.samples_per_round // config.generator.chunk)
    return [chunk for chunk in range(total) if not step_exists(chunk_key(campaign, number, chunk))]


def chunk_key(campaign: str, number: int, chunk: int) -> str:
    """Return the key under which a finished generation chunk is recorded."""
    return f"{campaign}/{number}/generate/chunk-{chunk}/done"


def firework_key(fw_id: int, launch_id: int) -> str:
    """Return the key that a worker claims while it works on a firework; a launch that follows has another."""
    return f"firework/{fw_id}/{launch_id}"


def candidates_without_prediction(campaign: str, number: int) -> list[str]:
    """Return the structure ids of a round's candidates that the round's predictor has not seen."""
    from fireworks_specs.protocols import predictor_protocol
    from stores.documents.candidate import Candidate
    from stores.documents.prediction import Prediction

    model = model_of_round(campaign, number, "predictor")
    ids = list(
        dict.fromkeys(
            Candidate.objects(campaign=campaign, round=number).order_by("candidate_id").scalar("structure_id")
        )
    )
    known = set(
        Prediction.objects(protocol_id=predictor_protocol(model.model_id), structure_id__in=ids).scalar("structure_id")
    )
    return [i for i in ids if i not in known]


def failed_attempts(campaign: str, number: int, stage: str) -> int:
    """Return how many attempts at what a stage has to compute have failed, all in all, as the built queue says."""
    from stores.documents.screening_queue import ScreeningQueueItem

    items = ScreeningQueueItem.objects(campaign=campaign, round=number, stage=stage)
    return sum(item.to_mongo().get("attempts") or 0 for item in items)


def queued(campaign: str, number: int, stage: str) -> list[str]:
    """Return the structure ids that a stage has to compute, best first, after building the queue."""
    from builders.run import build_campaign
    from stores.documents.screening_queue import ScreeningQueueItem

    build_campaign(campaign)
    items = ScreeningQueueItem.objects(campaign=campaign, round=number, stage=stage).order_by(
        "-priority", "candidate_id"
    )
    return list(dict.fromkeys(items.scalar("structure_id")))
