"""The archive file: a zip of JSON lines and artifacts that knows every checksum of itself, its own included."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import struct
import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

FORMAT = "inv-design-archive"
VERSION = 1
MANIFEST = "manifest.json"
SEAL = b"sha256:"  # the zip's comment: this and the SHA-256 of all bytes of the file before the 64 digits
DIGITS = 64
MAX_LINE_BYTES = 1 << 26  # a record has 16 MB at most as BSON, its JSON a few times that
MAX_MANIFEST_BYTES = 1 << 28
MAX_RATIO = 500  # of a member's size to what it takes in the file; records compress ten to fifty times
PIECE = 1 << 20
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same records give the same bytes on any day
MEMBER = re.compile(r"[a-z_]+\.jsonl|artifacts/[0-9a-f]{64}")
UNREADABLE = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError, KeyError,
    TypeError, OverflowError, MemoryError, AttributeError, IndexError, struct.error,
)  # fmt: skip
"""What Python's zipfile and json raise on damaged bytes."""


def encode(record: Mapping[str, Any]) -> bytes:
    """Return a record's line: MongoDB Extended JSON (relaxed), its fields in their order, without the line's end."""
    from bson.json_util import RELAXED_JSON_OPTIONS, dumps

    text = dumps(record, json_options=RELAXED_JSON_OPTIONS, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def decode(line: bytes) -> dict[str, Any]:
    """Return the record of a line.

    Raises
    ------
    ValueError
        If the line is no record.
    """
    import bson
    from bson.errors import BSONError
    from bson.json_util import RELAXED_JSON_OPTIONS, loads

    try:
        record = loads(line.decode("utf-8"), json_options=RELAXED_JSON_OPTIONS)
        if not isinstance(record, dict):
            raise ValueError(f"holds {type(record).__name__}, not a record")
        bson.encode(record)  # what no database can hold is refused here, before anything is written
    except (*UNREADABLE, BSONError, RecursionError) as error:
        raise ValueError(f"is no record ({_said(error)})") from None
    return record


class ArchiveWriter:
    """An archive in the making: under another name until it is complete.

    Parameters
    ----------
    path
        The file; one that is there is replaced when the new one is complete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.members: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> ArchiveWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._zip = zipfile.ZipFile(self.partial, "w", zipfile.ZIP_DEFLATED, allowZip64=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._zip.close()
        except BaseException:  # a full disk: what was written must not keep it full
            self.partial.unlink(missing_ok=True)
            raise
        if kind is not None:
            self.partial.unlink(missing_ok=True)

    def records(self, collection: str, records: Iterable[Mapping[str, Any]]) -> int:
        """Write a collection's records, one a line, in the order given; return how many."""
        digest, size, checks = hashlib.sha256(), 0, bytearray()
        name = f"{collection}.jsonl"
        with self._open(name) as file:
            for record in records:
                line = encode(record) + b"\n"
                file.write(line)
                digest.update(line)
                size += len(line)
                checks += zlib.crc32(line).to_bytes(4, "big")
        self.members[name] = {
            "size": size,
            "sha256": digest.hexdigest(),
            "lines": len(checks) // 4,
            "line_crc32": base64.b64encode(checks).decode(),
        }
        return len(checks) // 4

    def artifact(self, sha256: str, blob: bytes) -> None:
        """Write an artifact; what hardly or all too well compresses is stored as it is."""
        name = f"artifacts/{sha256}"
        small = len(zlib.compress(blob, 1))
        packed = 0.9 * len(blob) > small > 10 * len(blob) / MAX_RATIO  # the zip's own level packs tighter than level 1
        with self._open(name, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
            file.write(blob)
        self.members[name] = {"size": len(blob), "sha256": sha256}

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, seal the file and give it its name."""
        complete = {"format": FORMAT, "version": VERSION, **manifest, "members": dict(sorted(self.members.items()))}
        with self._open(MANIFEST) as file:
            file.write(json.dumps(complete, ensure_ascii=False, indent=1).encode() + b"\n")
        self._zip.comment = SEAL + b"0" * DIGITS
        self._zip.close()
        with self.partial.open("r+b") as raw:
            seal = _digest_before_seal(raw, self.partial.stat().st_size)
            raw.seek(-DIGITS, os.SEEK_END)
            raw.write(seal.encode())
            raw.flush()
            os.fsync(raw.fileno())
        self.partial.replace(self.path)

    def _open(self, name: str, method: int = zipfile.ZIP_DEFLATED) -> Any:
        info = zipfile.ZipInfo(name, EPOCH)
        info.compress_type = method
        info.external_attr = 0o644 << 16
        return self._zip.open(info, "w", force_zip64=True)


class Archive:
    """An archive that is read: nothing in it is believed before its checksum was met, nothing is extracted by name.

    Raises
    ------
    ValueError
        If it is no archive, is damaged, or was written by a newer version; the message says where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.bytes = path.stat().st_size
            with path.open("rb") as raw:
                self.sealed = self.bytes > DIGITS and _digest_before_seal(raw, self.bytes) == _seal(raw, self.bytes)
        except IsADirectoryError:
            raise ValueError(f"{path} is a folder; give the archive's file") from None
        with self._place("the zip's directory"):
            if not zipfile.is_zipfile(path):
                raise ValueError(
                    f"no zip that is complete: it ends at byte {self.bytes} without a directory of members"
                )
            self._zip = zipfile.ZipFile(path)
        try:
            self.manifest = self._read_manifest()
            self._compare_members()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exc: object) -> None:
        self._zip.close()

    @property
    def members(self) -> dict[str, dict[str, Any]]:
        """Member name -> size, sha256 (and lines), as the manifest says."""
        members: dict[str, dict[str, Any]] = self.manifest["members"]
        return members

    @property
    def artifacts(self) -> list[str]:
        """The SHA-256 of the artifacts in it."""
        return [name.partition("/")[2] for name in self.members if name.startswith("artifacts/")]

    def count(self, collection: str) -> int:
        """Return how many records of a collection it has."""
        return int(self.members.get(f"{collection}.jsonl", {}).get("lines", 0))

    def damage(self, where: str, what: object) -> ValueError:
        """Return the error for damage at a place."""
        return ValueError(f"{self.path}: {where}: {what}; nothing was imported, get the archive again")

    def records(self, collection: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line number from 1, record); ValueError at the first line that is not the one that was written."""
        name = f"{collection}.jsonl"
        for number, line in self._lines(name):
            try:
                record = decode(line)
            except ValueError as error:
                raise self.damage(f"{name}, line {number}", error) from None
            yield number, record

    def artifact(self, sha256: str) -> bytes:
        """Return an artifact's bytes, verified."""
        return b"".join(self._pieces(f"artifacts/{sha256}"))

    def verify_artifacts(self) -> Iterator[str]:
        """Yield the artifacts one by one as they prove to be whole."""
        for sha256 in self.artifacts:
            for _ in self._pieces(f"artifacts/{sha256}"):
                pass
            yield sha256

    def verify_seal(self) -> None:
        """Raise ValueError if any byte of the file is not as it was written."""
        if not self.sealed:
            raise self.damage("between its members", "the file's own SHA-256 is not the one it ends with")

    # -- reading -------------------------------------------------------------------------------------------------------

    def _lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        member = self.members[name]
        checks = base64.b64decode(member["line_crc32"])
        digest, number = hashlib.sha256(), 0
        with self._place(f"{name}, line 1"), self._zip.open(name) as file:
            while True:
                where = f"{name}, line {number + 1}"
                with self._place(where):
                    line = file.readline(MAX_LINE_BYTES)
                if not line:
                    break
                number += 1
                if zlib.crc32(line).to_bytes(4, "big") != checks[4 * number - 4 : 4 * number]:
                    raise self.damage(where, "is not the line that was exported")
                digest.update(line)
                yield number, line
        if number != member["lines"] or digest.hexdigest() != member["sha256"]:
            raise self.damage(f"{name}, line {number}", f"ends here; the manifest says {member['lines']} lines")

    def _pieces(self, name: str) -> Iterator[bytes]:
        member = self.members[name]
        digest, size = hashlib.sha256(), 0
        with self._place(name), self._zip.open(name) as file:
            while size <= member["size"] and (piece := file.read(PIECE)):
                size += len(piece)
                digest.update(piece)
                yield piece
        if size != member["size"] or digest.hexdigest() != member["sha256"]:
            raise self.damage(name, f"has another SHA-256 than the manifest's {member['sha256']}")

    def _read_manifest(self) -> dict[str, Any]:
        with self._place(MANIFEST):
            info = self._zip.getinfo(MANIFEST) if MANIFEST in self._zip.namelist() else None
            if info is None:
                raise ValueError("is missing: this is no archive of `inv-design export`")
            if info.file_size > MAX_MANIFEST_BYTES:
                raise ValueError(f"says it has {info.file_size} bytes, more than any manifest")
            with self._zip.open(info) as file:
                manifest = json.loads(file.read(MAX_MANIFEST_BYTES))
            if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
                raise ValueError(f"does not say that the format is {FORMAT!r}")
            version = manifest.get("version")
            if not isinstance(version, int) or version > VERSION:
                raise ValueError(
                    f"is of format version {version!r}, this program reads up to {VERSION}: update inv_design"
                )
            _check_manifest(manifest)
        return manifest

    def _compare_members(self) -> None:
        """Compare the zip's directory with the manifest: same names, same sizes, no bombs."""
        with self._place("the zip's directory"):
            found = self._zip.infolist()
            names = [info.filename for info in found]
            expected = {*self.members, MANIFEST}
            for name in names:
                if name not in expected or names.count(name) > 1:
                    raise ValueError(f"holds {name!r}, which the manifest does not list once")
            for name in sorted(expected - set(names)):
                raise ValueError(f"lacks {name!r}, which the manifest lists")
            if sum(info.compress_size for info in found) > self.bytes:
                raise ValueError("its members overlap")
            for info in found:
                self._compare_member(info)

    def _compare_member(self, info: zipfile.ZipInfo) -> None:
        name, size = info.filename, info.file_size
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise ValueError(f"{name!r} is encrypted or packed in a way that archives are not")
        if name != MANIFEST and size != self.members[name]["size"]:
            raise ValueError(f"{name!r} has {size} bytes, the manifest says {self.members[name]['size']}")
        if size > PIECE and size > MAX_RATIO * info.compress_size:
            raise ValueError(f"{name!r} unpacks to more than {MAX_RATIO} times its size, which no archive of ours does")

    @contextmanager
    def _place(self, where: str) -> Iterator[None]:
        """Turn whatever damaged bytes raise into one error that says where they are."""
        try:
            yield
        except UNREADABLE as error:
            if str(error).startswith(f"{self.path}: "):
                raise
            raise self.damage(where, _said(error)) from None


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise ValueError if the parts that reading relies on are not there."""
    members = manifest.get("members")
    if not isinstance(members, dict):
        raise ValueError("lists no members")
    for name, member in members.items():
        if not MEMBER.fullmatch(name):
            raise ValueError(f"lists {name!r}, which is neither COLLECTION.jsonl nor artifacts/SHA256")
        if not isinstance(member, dict) or not isinstance(member.get("size"), int) or member["size"] < 0:
            raise ValueError(f"says no size of {name!r}")
        digest = member.get("sha256")
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"says no SHA-256 of {name!r}")
        if name.startswith("artifacts/") and digest != name.partition("/")[2]:
            raise ValueError(f"says another SHA-256 of {name!r}")
        if name.endswith(".jsonl"):
            checks = base64.b64decode(member.get("line_crc32", "-"), validate=True)
            if not isinstance(member.get("lines"), int) or len(checks) != 4 * member["lines"]:
                raise ValueError(f"has not one checksum per line of {name!r}")


def _digest_before_seal(raw: Any, size: int) -> str:
    """Return the SHA-256 of a file but for the digits it ends with."""
    digest, left = hashlib.sha256(), size - DIGITS
    raw.seek(0)
    while left > 0:
        piece = raw.read(min(PIECE, left))
        if not piece:
            break
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest()


def _seal(raw: Any, size: int) -> str:
    raw.seek(size - DIGITS)
    return str(raw.read(DIGITS).decode("ascii", "replace"))


def _said(error: BaseException) -> str:
    return f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
