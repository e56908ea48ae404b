"""How well a generator meets its targets, judged by something that did not guide it."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import DictField, FloatField, IntField, ListField, StringField

from stores.documents.record import Record


class Evaluation(Record):
    """The generator of one round sampled at one target: what a judge measured on the samples.

    ``values`` are the judge's numbers (``unit``), one per sample that could be judged; ``mean_relative_error`` is
    mean |value - target| / target. Target 0 marks a round that was closed without an evaluation.
    """

    evaluation_id = StringField(required=True)
    campaign = StringField(required=True)
    round = IntField(required=True, min_value=0)
    generator_model_id = StringField(required=True)
    property = StringField(required=True)
    target = FloatField(required=True)
    judge = StringField(required=True)
    judge_protocol_id = StringField()
    unit = StringField(required=True)
    n = IntField(required=True)
    values = ListField(FloatField())
    median = FloatField()
    mean_relative_error = FloatField()
    statistics = DictField()

    meta: ClassVar[dict[str, Any]] = {
        "collection": "evaluations",
        "indexes": [
            {"fields": ["evaluation_id"], "unique": True},
            ("campaign", "round", "target"),
            "provenance.inputs",
        ],
    }
