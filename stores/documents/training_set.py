"""An immutable snapshot of what a model learns from."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import DictField, IntField, ListField, StringField

from stores.documents.record import Record


class TrainingSet(Record):
    """A training set: members with labels and splits, known by the hash of its content.

    A member is ``{"structure_id", "labels": {property: {"value", "unit", "calculation_id", "method"}}, "chemsys",
    "split"}``. Large sets keep their members in GridFS; :meth:`load_members` returns them in either case.
    """

    training_set_id = StringField(required=True)
    campaign = StringField()
    round = IntField()
    members = ListField(DictField())
    size = IntField(required=True, min_value=0)
    labels_by_method = DictField()
    parent_training_set_id = StringField()
    excluded = ListField(DictField())

    meta: ClassVar[dict[str, Any]] = {
        "collection": "training_sets",
        "indexes": [
            {"fields": ["training_set_id"], "unique": True},
            ("campaign", "round"),
            "parent_training_set_id",
            "provenance.inputs",
        ],
    }

    def load_members(self) -> list[dict[str, Any]]:
        """Return the members, from the document or from GridFS."""
        return self.complete().get("members", [])
