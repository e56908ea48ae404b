"""A structure's place in a campaign."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import DictField, FloatField, IntField, StringField

from stores.documents.record import Record


class Candidate(Record):
    """A generated structure in a campaign: by which model, under which condition, from which seed, in which place."""

    candidate_id = StringField(required=True)
    campaign = StringField(required=True)
    structure_id = StringField(required=True)
    round = IntField(required=True, min_value=0)
    generator_model_id = StringField()
    condition = DictField()
    seed = IntField(required=True)
    index = IntField(required=True, min_value=0)
    score = FloatField()

    meta: ClassVar[dict[str, Any]] = {
        "collection": "candidates",
        "indexes": [
            {"fields": ["candidate_id"], "unique": True},
            ("campaign", "round"),
            ("campaign", "structure_id"),
            "structure_id",
            "generator_model_id",
        ],
    }
