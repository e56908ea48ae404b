"""The records: documents, connections, provenance, artifacts and named queries."""
