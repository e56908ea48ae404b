"""A lock on a file that dies with its process and says who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from stores.workers import has_ended

if TYPE_CHECKING:
    from pathlib import Path


PATIENCE = 10.0  # s for a fork of a killed holder to let go, which it does as soon as it runs


class FileLock:
    """An advisory lock on ``<path>.lock`` that dies with its process and says who holds it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConnectionError(
                f"{path} cannot be written ({error.strerror}): no right to write in its folder, or no such folder; "
                "copy the database, or only read it with status, query and the like"
            ) from None
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                holder = self._holder()
                if _is_dead(holder) and time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                os.close(self._descriptor)
                raise ConnectionError(
                    f"{path} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}, "
                    f"since {holder.get('since', '?')}; one process writes at a time: wait until it ends, open it "
                    "read-only (connect(..., read_only=True); status, query and the like do), or move to a server "
                    "for many: inv-design db move --to mongodb://HOST/NAME"
                ) from error
        text = json.dumps(
            {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%FT%TZ", time.gmtime())}
        )
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)
        os.register_at_fork(after_in_child=self._close)

    def _holder(self) -> dict[str, Any]:
        try:
            return json.loads(os.pread(self._descriptor, 4096, 0))
        except ValueError:  # taken this very moment
            return {}

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def release(self) -> None:
        """Release the lock; the file stays, as removing it would race with the next holder."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
        self._close()


def _is_dead(holder: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    return has_ended(holder["pid"])
