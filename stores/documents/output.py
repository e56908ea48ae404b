"""What jobflow keeps of a job (operational: raw outputs; what counts of them becomes a calculation)."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import DictField, DynamicDocument, IntField, StringField


class Output(DynamicDocument):
    """The output of one job of a flow, as jobflow's JobStore writes it; large objects lie in ``outputs_blobs``.

    ``metadata`` has ``structure_id``, ``protocol_id`` and ``campaign``, for whom it ran, and ``work``, the hash of what
    the job computed from what: a job that is done is not run again.
    """

    uuid = StringField(required=True)
    index = IntField(required=True)
    name = StringField()
    metadata = DictField()

    meta: ClassVar[dict[str, Any]] = {
        "collection": "outputs",
        "auto_create_index": False,
        "strict": False,
        "indexes": [
            {"fields": ["uuid", "index"], "unique": True},
            ("name", "metadata.structure_id"),
            "metadata.work",
            "hosts",
        ],
    }
