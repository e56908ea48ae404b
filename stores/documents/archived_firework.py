"""What is kept of a firework that has left the launchpad (operational: who ran what, when, how it ended)."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import DateTimeField, DictField, Document, FloatField, IntField, ListField, StringField


class ArchivedFirework(Document):
    """A firework that is no longer on the launchpad: what the ``fw_id`` of a record's provenance means.

    ``worker``, ``host``, ``job``, ``started``, ``ended`` (UTC) and ``seconds`` are its last launch's; ``error`` is the
    last line of its trace; ``lost`` is what ``inv-design doctor`` noted of its reruns.
    """

    fw_id = IntField(required=True)
    workflow = IntField(required=True)
    name = StringField()
    campaign = StringField()
    round = IntField()
    step = StringField()
    role = StringField()
    task = StringField()
    state = StringField()
    worker = StringField()
    host = StringField()
    job = StringField()
    started = DateTimeField()
    ended = DateTimeField()
    seconds = FloatField()
    launches = IntField()
    error = StringField()
    lost = ListField(DictField())
    archived_at = DateTimeField()

    meta: ClassVar[dict[str, Any]] = {
        "collection": "archived_fireworks",
        "auto_create_index": False,
        "strict": False,
        "indexes": [{"fields": ["fw_id"], "unique": True}, ("campaign", "round")],
    }
