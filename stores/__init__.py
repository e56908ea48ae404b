"""The records: documents, connections, provenance, artifacts and named queries."""

from stores.connection import connect, current

__all__ = ["connect", "current"]
