"""How far a long computation is (operational: neither a record nor derived, gone when the work is done)."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import BinaryField, DateTimeField, Document, IntField, StringField


class Checkpoint(Document):
    """One part of what a computation saved; those of one ``version`` in the order of ``part`` are its bytes.

    ``key`` is the claim's of the result that is being computed; ``identity`` says everything that determines that
    result: what was saved of another one is of no use.
    """

    key = StringField(required=True)
    identity = StringField(required=True)
    version = StringField(required=True)
    part = IntField(required=True)
    parts = IntField(required=True)
    size = IntField(required=True)
    sha256 = StringField(required=True)
    data = BinaryField(required=True)
    saved_at = DateTimeField(required=True)

    meta: ClassVar[dict[str, Any]] = {
        "collection": "checkpoints",
        "auto_create_index": False,
        "strict": False,
        "indexes": ["key", "saved_at"],
    }
