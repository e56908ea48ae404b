"""Build a campaign's derived collections in this process, in the order in which they follow from each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stores.connection import Connection


def build_campaign(
    campaign: str | None = None,
    connection: Connection | None = None,
    *,
    protocols: Mapping[str, str | None] | None = None,
    from_scratch: bool = False,
) -> dict[str, int]:
    """Build summaries, queue and metrics of a campaign; return collection -> documents written.

    What is up to date is left alone, so that building twice writes nothing the second time.

    Parameters
    ----------
    campaign
        Its name; ``None`` builds all campaigns of the database.
    connection
        The process's own by default.
    protocols
        Stage -> protocol id whose results count; the newest completed result where a stage is not named.
    from_scratch
        Build what is up to date too: the cure for derived documents that somebody edited.

    Raises
    ------
    ValueError
        If the campaign is not in the database or its configuration is not valid.
    """
    from builders.campaign_metrics import CampaignMetricsBuilder
    from builders.candidates import CandidateBuilder
    from builders.screening_queue import ScreeningQueueBuilder

    chosen = None if protocols is None else dict(protocols)
    return {
        "candidate_summaries": CandidateBuilder(campaign, chosen, from_scratch=from_scratch).build(connection),
        "screening_queue": ScreeningQueueBuilder(campaign, chosen, from_scratch=from_scratch).build(connection),
        "campaign_metrics": CampaignMetricsBuilder(campaign, from_scratch=from_scratch).build(connection),
    }


def build_training_set(campaign: str, round: int, connection: Connection | None = None) -> str:
    """Insert the training set of a campaign's round unless its content is there; return its id.

    It holds the reference labels that pass ``config.data`` and the trusted stage-III labels of rounds before ``round``.

    Raises
    ------
    ValueError
        If the campaign is not in the database, or there is no label at all.
    """
    from builders.training_set import TrainingSetBuilder

    builder = TrainingSetBuilder(campaign, round)
    builder.build(connection)
    return builder.inserted[-1]
