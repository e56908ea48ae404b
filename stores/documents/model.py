"""Trained weights."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import DictField, IntField, ObjectIdField, StringField

from stores.documents.record import Record

KINDS = ("predictor", "generator", "mlip")


class Model(Record):
    """A trained model: what it learned from, how, how well, and where its weights are (a GridFS file)."""

    model_id = StringField(required=True)
    kind = StringField(required=True, choices=KINDS)
    name = StringField(required=True)
    property = StringField()
    training_set_id = StringField()
    parent_model_id = StringField()
    campaign = StringField()
    round = IntField()
    seed = IntField()
    hyperparameters = DictField()
    metrics = DictField()
    artifact = ObjectIdField()
    sha256 = StringField(required=True)
    size = IntField()

    meta: ClassVar[dict[str, Any]] = {
        "collection": "models",
        "indexes": [
            {"fields": ["model_id"], "unique": True},
            ("campaign", "kind", "round"),
            "training_set_id",
            "parent_model_id",
            "sha256",
            "provenance.inputs",
        ],
    }

    def load(self) -> bytes:
        """Return the weights' bytes, their SHA-256 verified."""
        from stores.artifacts import get

        return get(self.sha256)
