"""jobflow's JobStore on the campaign's database: made from the connection at run time, never from a file or a spec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maggma.stores import GridFSStore

from stores.maggma import CampaignStore

if TYPE_CHECKING:
    from jobflow import JobStore

    from stores.connection import Connection

OUTPUTS = "outputs"
BLOBS = "outputs_blobs"


def campaign_job_store(connection: Connection | None = None) -> JobStore:
    """Return the connected JobStore of a campaign's database, the process's own by default.

    Documents go to the collection ``outputs``, what a job declares as large to the GridFS ``outputs_blobs``. Neither
    store knows an address or a password: whatever is made of them in JSON has none.
    """
    from jobflow import JobStore

    from stores.connection import current

    connection = connection or current()
    blobs = CampaignFiles(BLOBS)
    blobs.bind(connection)
    documents = connection.maggma_store(OUTPUTS, key="uuid", last_updated_field="completed_at")
    return JobStore(documents, additional_stores={"data": blobs})


class CampaignFiles(GridFSStore):
    """A GridFSStore that knows only its collection's name; it connects as :class:`stores.maggma.CampaignStore` does."""

    def __init__(self, collection_name: str, **options: Any) -> None:
        super().__init__("inv_design", collection_name, **options)

    @property
    def name(self) -> str:
        """The store's name in logs."""
        return f"campaign-files://{self.collection_name}"

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
        self._coll = connection.gridfs(self.collection_name)
        self._files_collection = connection.db[f"{self.collection_name}.files"]
        self._chunks_collection = connection.db[f"{self.collection_name}.chunks"]
        files = CampaignStore(
            f"{self.collection_name}.files", key=self.key, last_updated_field=f"metadata.{self.last_updated_field}"
        )
        files.bind(connection)
        self._fs: Any = files

    def close(self) -> None:
        """Let go of the collections; the client belongs to the connection."""
        self._coll = None
        self._fs = None
