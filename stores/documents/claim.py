"""Who is at work on what (operational: neither a record nor derived, gone when the work is done)."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import DateTimeField, DictField, Document, StringField


class Claim(Document):
    """A worker's claim of one result that is yet to be computed; the unique ``key`` is the result's.

    It holds until ``expires_at``, in UTC on the server's clock; the ``holder`` renews it while it works. ``worker`` has
    ``host`` and ``pid``.
    """

    key = StringField(required=True)
    holder = StringField(required=True)
    worker = DictField()
    campaign = StringField()
    stage = StringField()
    claimed_at = DateTimeField()
    expires_at = DateTimeField(required=True)

    meta: ClassVar[dict[str, Any]] = {
        "collection": "claims",
        "auto_create_index": False,
        "strict": False,
        "indexes": [{"fields": ["key"], "unique": True}, "holder"],
    }
