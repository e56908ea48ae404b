"""A round in numbers (derived)."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import DictField, IntField, StringField

from stores.documents.record import Derived


class CampaignMetrics(Derived):
    """The funnel, hit rates and errors of one round of a campaign."""

    campaign = StringField(required=True)
    round = IntField(required=True)
    funnel = DictField()

    meta: ClassVar[dict[str, Any]] = {
        "collection": "campaign_metrics",
        "indexes": [{"fields": ["campaign", "round"], "unique": True}],
    }
