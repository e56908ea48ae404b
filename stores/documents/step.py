"""A workflow step that was put on the launchpad."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import DictField, StringField

from stores.documents.record import Record


class Step(Record):
    """A claim: whoever inserts the key first adds the step's workflow, everybody else leaves it alone."""

    key = StringField(required=True)
    campaign = StringField()
    payload = DictField()

    meta: ClassVar[dict[str, Any]] = {
        "collection": "steps",
        "indexes": [{"fields": ["key"], "unique": True}, "campaign"],
    }
