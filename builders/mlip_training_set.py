"""What a machine-learned potential can learn from a campaign: its stage-III calculations as labelled frames."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builders.candidates import LABEL_KINDS, LABEL_METHODS
from builders.labels import is_label

if TYPE_CHECKING:
    from inv_design.calculators.frames import Frame


@dataclass(frozen=True)
class CampaignFrames:
    """Frames of a campaign, the calculations they come from, and one line for each calculation that is left out."""

    frames: list[Frame]
    calculation_ids: list[str]
    left_out: list[str]


def campaign_frames(campaign: str) -> CampaignFrames:
    """Return the frames of a campaign's completed labels (stage III), one calculation per candidate structure.

    Of several labels of a structure the newest one counts; distrusted and failed ones are left out, and what another
    backend or other settings computed. :func:`inv_design.calculators.frames.frames_of_calculation` says what a
    calculation holds.
    """
    from inv_design.calculators.frames import frames_of_calculation
    from stores.queries import structures_by_id

    records = _best(campaign)
    structures = structures_by_id(r.get("output_structure_id") or r["structure_id"] for r in records)
    frames: list[Frame] = []
    used, left_out = [], []
    for record in records:
        identity = record.get("output_structure_id") or record["structure_id"]
        reason = _unfit(record)
        if reason is None and identity not in structures:
            reason = f"structure {identity} is not in the database"
        if reason is None:
            try:
                frames += frames_of_calculation(record, structures[identity])
                used.append(record["calculation_id"])
            except (ValueError, KeyError, TypeError) as error:  # one bad record never stops a training
                reason = str(error)
        if reason is not None:
            left_out.append(f"{record['calculation_id']}: {reason}")
    return CampaignFrames(frames, used, left_out)


def _best(campaign: str) -> list[dict[str, Any]]:
    """Return one label per candidate structure: completed before failed, then the newest."""
    from inv_design.config import CampaignConfig
    from stores.documents import Calculation, Campaign
    from stores.queries import candidates_of

    registered = Campaign.objects(name=campaign).first()
    if registered is None:
        return []
    stage = CampaignConfig.model_validate(registered.config).stages.dft
    ids = list(dict.fromkeys(candidate["structure_id"] for candidate in candidates_of(campaign)))
    groups: dict[str, list[Any]] = defaultdict(list)
    for document in Calculation.objects(structure_id__in=ids, kind__in=LABEL_KINDS, method__in=LABEL_METHODS):
        if is_label({"kind": document.kind, "method": document.method}, document.protocol, stage):
            groups[document.structure_id].append(document)

    def rank(document: Any) -> tuple[bool, str]:
        return document.state == "completed", str(document.provenance.get("created_at"))

    chosen = [max(group, key=rank) for group in groups.values()]
    return sorted((document.complete() for document in chosen), key=lambda record: record["calculation_id"])


def _unfit(record: dict[str, Any]) -> str | None:
    """Return why a calculation must not be learned from, ``None`` if it may."""
    from inv_design.screening.quality import distrusted

    if record["state"] != "completed":
        return f"the calculation failed: {record.get('error') or 'no error recorded'}"
    flags = distrusted(record.get("flags") or ())
    return f"quality flags: {', '.join(flags)}" if flags else None
