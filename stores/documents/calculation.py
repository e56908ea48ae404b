"""One relaxation, equation of state, elastic tensor or phonon run, or a reference value."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import DictField, ListField, StringField

from stores.documents.record import Record

KINDS = ("relax", "eos", "elastic", "phonon", "reference")
METHODS = ("mlip", "surrogate", "gpaw", "vasp", "reference")
STATES = ("completed", "failed")


class Calculation(Record):
    """A calculation on a structure; one per (structure_id, kind, protocol_id), failed ones with their ``error``.

    ``results`` maps standard names (``bulk_modulus_vrh`` in GPa, ``energy_per_atom`` in eV/atom, ...) to numbers and
    tensors, ``flags`` are the quality flags, ``output_structure_id`` is the structure a relaxation ended in.
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
    output_structure_id = StringField()

    meta: ClassVar[dict[str, Any]] = {
        "collection": "calculations",
        "indexes": [
            {"fields": ["calculation_id"], "unique": True},
            {"fields": ["structure_id", "kind", "protocol_id"], "unique": True},
            ("kind", "protocol_id", "state"),
            ("kind", "method", "state"),
            "output_structure_id",
            "provenance.inputs",
        ],
    }
