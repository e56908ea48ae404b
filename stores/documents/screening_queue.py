"""What a stage has to do next (derived)."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import FloatField, IntField, StringField

from stores.documents.record import Derived


class ScreeningQueueItem(Derived):
    """A candidate that lacks a stage's result; the highest ``priority`` first."""

    campaign = StringField(required=True)
    round = IntField()
    stage = StringField(required=True)
    candidate_id = StringField(required=True)
    structure_id = StringField()
    protocol_id = StringField()
    priority = FloatField()
    attempts = IntField()

    meta: ClassVar[dict[str, Any]] = {
        "collection": "screening_queue",
        "indexes": [
            {"fields": ["campaign", "stage", "candidate_id"], "unique": True},
            ("campaign", "round", "stage"),
            "candidate_id",
        ],
    }
