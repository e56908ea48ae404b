"""Archives of an older schema: brought to the present one by the migrations that databases have."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from stores.archive import Archive
from stores.archive_check import ArchiveCheck

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stores.exchange import Progress


@contextmanager
def upgraded(archive: Archive, version: int, progress: Progress | None = None) -> Iterator[Archive]:
    """Give an archive of schema ``version`` as one of the present schema, in a temporary folder.

    Raises
    ------
    ValueError
        If it is damaged, or its records cannot be migrated.
    """
    from stores.connection import connect
    from stores.exchange import Arrival, export_archive
    from stores.migrations.runner import migrate
    from stores.schema import stamp, unchecked

    ArchiveCheck(archive, progress=progress).run(content=False)  # what a record must be is the old schema's to say
    with TemporaryDirectory(prefix="inv-design-import-") as folder:
        path = Path(folder) / "present.zip"
        with unchecked(), connect(f"embedded:{folder}/older.sqlite", alias="older") as older:
            stamp(older, version, note=f"import of {archive.path.name}")
            try:
                Arrival(older, progress=progress).take(archive)
                migrate(older)
            except (ValueError, KeyError, TypeError) as error:
                raise archive.damage(f"migration from schema {version}", error) from None
            export_archive(older, path, campaigns=None, progress=progress)
        with Archive(path) as present:
            present.path = archive.path  # messages name the file that was given
            yield present
