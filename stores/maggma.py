"""A maggma store on a collection of the campaign's database, without credentials in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maggma.stores import MongoStore

if TYPE_CHECKING:
    from stores.connection import Connection


class CampaignStore(MongoStore):
    """A MongoStore that knows only its collection's name and key, so that its JSON form holds no credentials.

    Parameters
    ----------
    collection_name
        The collection.
    key
        The field that identifies a document.
    last_updated_field
        The field with the time of the last change.

    It connects through this process's connection, or through ``$INV_DESIGN_DATABASE`` when there is none yet, so that
    builders in files work with ``mrun``.
    """

    def __init__(
        self, collection_name: str, key: str = "candidate_id", last_updated_field: str = "last_updated", **kwargs: Any
    ) -> None:
        super().__init__("inv_design", collection_name, key=key, last_updated_field=last_updated_field, **kwargs)

    @property
    def name(self) -> str:
        """The store's name in logs."""
        return f"campaign://{self.collection_name}"

    def connect(self, force_reset: bool = False) -> None:
        """Connect through the process's connection."""
        if self._coll is not None and not force_reset:
            return
        from stores.connection import connect, current

        try:
            connection = current()
        except ConnectionError:
            connection = connect()
        self.bind(connection)

    def bind(self, connection: Connection) -> None:
        """Use a given connection."""
        self.database = connection.db.name
        self._coll = connection.db[self.collection_name]

    def close(self) -> None:
        """Let go of the collection; the client belongs to the connection."""
        self._coll = None
