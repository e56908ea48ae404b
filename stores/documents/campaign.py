"""A goal and its settings."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import DictField, StringField

from stores.documents.record import Record


class Campaign(Record):
    """A campaign: its validated configuration as written, and the targets (property -> target with unit)."""

    name = StringField(required=True)
    config = DictField(required=True)
    targets = DictField()
    created_by = StringField()
    state = StringField(default="active")

    meta: ClassVar[dict[str, Any]] = {
        "collection": "campaigns",
        "indexes": [{"fields": ["name"], "unique": True}],
    }
