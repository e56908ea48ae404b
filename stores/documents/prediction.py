"""One number by one model."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import FloatField, StringField

from stores.documents.record import Record


class Prediction(Record):
    """A property of a structure as a model sees it; ``value`` and ``std`` in ``unit``, or an ``error``."""

    structure_id = StringField(required=True)
    property = StringField(required=True)
    value = FloatField()
    std = FloatField()
    unit = StringField()
    model_id = StringField()
    protocol_id = StringField(required=True)
    error = StringField()

    meta: ClassVar[dict[str, Any]] = {
        "collection": "predictions",
        "indexes": [
            {"fields": ["structure_id", "property", "protocol_id"], "unique": True},
            ("property", "protocol_id"),
            "model_id",
        ],
    }
