"""Build a campaign's derived collections in this process, in the order in which they follow from each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from builders.base import CampaignBuilder
    from stores.connection import Connection


def build_campaign(
    campaign: str | None = None,
    connection: Connection | None = None,
    *,
    protocols: Mapping[str, str | None] | None = None,
    from_scratch: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
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
    progress
        Called with (items processed, items in all, the collection).

    Raises
    ------
    ValueError
        If the campaign is not in the database or its configuration is not valid.
    """
    builders = campaign_builders(campaign, protocols=protocols, from_scratch=from_scratch)
    return {builder.target_key()[0]: builder.build(connection, progress=progress) for builder in builders}


def campaign_builders(
    campaign: str | None = None,
    *,
    protocols: Mapping[str, str | None] | None = None,
    from_scratch: bool = False,
) -> list[CampaignBuilder]:
    """Return the builders of a campaign's derived collections, in the order in which they are to run."""
    from builders.campaign_metrics import CampaignMetricsBuilder
    from builders.candidates import CandidateBuilder
    from builders.screening_queue import ScreeningQueueBuilder

    chosen = None if protocols is None else dict(protocols)
    return [
        CandidateBuilder(campaign, chosen, from_scratch=from_scratch),
        ScreeningQueueBuilder(campaign, chosen, from_scratch=from_scratch),
        CampaignMetricsBuilder(campaign, from_scratch=from_scratch),
    ]


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
