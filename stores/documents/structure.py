"""A crystal, known by its content."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import DictField, FloatField, IntField, ListField, StringField

from stores.documents.record import Record


class Structure(Record):
    """A crystal.

    ``structure`` is pymatgen's ``as_dict()``; ``volume`` is in Å^3 per cell, ``density`` in g/cm^3; ``spacegroup`` has
    ``number``, ``symbol`` and the ``symprec`` (Å) they were found with; ``fingerprint`` is the cheap key of the bucket
    in which likeness is searched. ``sources`` says how the crystal first came here; later meetings with the same
    crystal are the candidates and calculations that refer to it.
    """

    structure_id = StringField(required=True)
    structure = DictField(required=True)
    formula = StringField(required=True)
    chemsys = StringField(required=True)
    elements = ListField(StringField(), required=True)
    nsites = IntField(required=True, min_value=1)
    volume = FloatField(required=True)
    density = FloatField(required=True)
    spacegroup = DictField(required=True)
    fingerprint = StringField(required=True)
    sources = ListField(DictField())

    meta: ClassVar[dict[str, Any]] = {
        "collection": "structures",
        "indexes": [
            {"fields": ["structure_id"], "unique": True},
            "fingerprint",
            "formula",
            "chemsys",
            "elements",
            "sources.id",
        ],
    }

    def to_pymatgen(self) -> Any:
        """Return the pymatgen ``Structure``."""
        from pymatgen.core import Structure as PymatgenStructure

        return PymatgenStructure.from_dict(self.to_mongo()["structure"])
