"""One relaxation, equation of state, elastic tensor or phonon run, or a reference value."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import DictField, IntField, ListField, StringField

from inv_design.screening.retries import FAILURES
from stores.documents.record import Record

KINDS = ("relax", "eos", "elastic", "phonon", "reference")
METHODS = ("mlip", "surrogate", "gpaw", "vasp", "reference")
STATES = ("completed", "failed")


class Calculation(Record):
    """A calculation on a structure; one per (structure_id, kind, protocol_id, attempt); failed ones have an ``error``.

    ``results`` maps standard names (``bulk_modulus_vrh`` in GPa, ``energy_per_atom`` in eV/atom, ...) to numbers and
    tensors, ``flags`` are the quality flags, ``output_structure_id`` is the structure a relaxation ended in.

    ``reason`` says of a failed one what kind of failure it was. After one that may pass there is another attempt:
    ``attempt`` counts from 2, the first one has none. The completed one counts, there is at most one.
    """

    calculation_id = StringField(required=True)
    structure_id = StringField(required=True)
    kind = StringField(required=True, choices=KINDS)
    method = StringField(required=True, choices=METHODS)
    protocol_id = StringField(required=True)
    protocol = DictField()
    state = StringField(required=True, choices=STATES)
    results = DictField()
    flags = ListField(StringField())
    error = StringField()
    reason = StringField(choices=FAILURES)
    attempt = IntField()
    output_structure_id = StringField()

    meta: ClassVar[dict[str, Any]] = {
        "collection": "calculations",
        "indexes": [
            {"fields": ["calculation_id"], "unique": True},
            {"fields": ["structure_id", "kind", "protocol_id", "attempt"], "unique": True},
            ("kind", "protocol_id", "state"),
            ("kind", "method", "state"),
            "output_structure_id",
            "provenance.inputs",
        ],
    }
