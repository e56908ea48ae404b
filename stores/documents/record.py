"""What every document has in common: strict fields, where it came from, and who may write it."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from mongoengine import DictField, Document, DynamicDocument, ListField, QuerySet


class InsertOnly(QuerySet):
    """Queries on authoritative documents: everything but changing them."""

    def update(self, *_arguments: Any, **_options: Any) -> NoReturn:
        """Refuse: raise PermissionError."""
        name = self._document._meta["collection"]
        raise PermissionError(f"{name} are authoritative and never rewritten; insert a document that supersedes it")

    update_one = upsert_one = modify = update


class Record(Document):
    """An authoritative document: inserted once, never rewritten; fields that are not declared are refused.

    ``spilled`` lists the parts that were too large for a document, ``{"path", "sha256", "size"}`` each, which
    :func:`stores.artifacts.unspill` puts back.
    """

    provenance = DictField(required=True)
    spilled = ListField(DictField())

    meta: ClassVar[dict[str, Any]] = {
        "abstract": True,
        "auto_create_index": False,
        "strict": True,
        "queryset_class": InsertOnly,
    }

    def save(self, *arguments: Any, **options: Any) -> Any:
        """Insert the document; NotUniqueError if it is there already."""
        return super().save(*arguments, **{**options, "force_insert": True})

    def complete(self) -> dict[str, Any]:
        """Return the document as a dictionary, with the parts that were spilled to GridFS back in it."""
        from stores.artifacts import unspill

        return unspill(self.to_mongo().to_dict())


class Derived(DynamicDocument):
    """A document that a builder owns and may replace at any time; it may carry more fields than are declared."""

    provenance = DictField()

    meta: ClassVar[dict[str, Any]] = {"abstract": True, "auto_create_index": False}
