"""Field values as bytes whose order is BSON's: what index entries, ``_id`` and sorts are made of.

``encode`` gives equal bytes for what MongoDB holds equal (1 and 1.0, missing and null), bytes in MongoDB's order for
what it orders, and never one value's bytes as the beginning of another's. So the entry of a compound index is its
fields' bytes one after the other, and a prefix, a range and an order are each one stretch of entries.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import bson
from bson import Binary, Decimal128, MaxKey, MinKey, ObjectId, Regex, Timestamp
from mongomock_ng import filtering, helpers
from pymongo.errors import DocumentTooLarge, DuplicateKeyError

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024  # MongoDB's limit, kept so that nothing works here that fails there

# the first byte of a value: its place in BSON's order of types
EMPTY_ARRAY = b"\x03"  # only in sorts, where an empty array is less than null
NULL = b"\x05"
NUMBER = b"\x0a"
STRING = b"\x0f"
OBJECT = b"\x14"
ARRAY = b"\x19"
BINARY = b"\x1e"
OBJECT_ID = b"\x23"
BOOLEAN = b"\x28"
DATE = b"\x2d"
TIMESTAMP = b"\x2f"
REGEX = b"\x32"
OTHER = b"\xe0"

NAN = NUMBER + bytes(10)  # less than every number
SMALLEST_NUMBER = NUMBER + bytes.fromhex("000fffffffffffff0000")  # minus infinity

_INVERTED = bytes(range(255, -1, -1))
_EPOCH = datetime(1970, 1, 1)
_MILLISECOND = timedelta(milliseconds=1)
_LARGEST_PLAIN_INT = 2**53
_pack_double = struct.Struct(">d").pack
_pack_number = struct.Struct(">QH").pack
_unpack_unsigned = struct.Struct(">Q").unpack
_SIGN = 1 << 63
_ALL = (1 << 64) - 1


def encode_document(document: Mapping[str, Any]) -> bytes:
    """Return a document's BSON; DocumentTooLarge above MongoDB's limit."""
    blob = bson.encode(document)
    if len(blob) > MAX_DOCUMENT_BYTES:
        raise DocumentTooLarge(f"document of {len(blob)} bytes is larger than MongoDB's {MAX_DOCUMENT_BYTES}")
    return blob


def encode(value: Any) -> bytes:  # noqa: PLR0911, PLR0912 (one branch per BSON type)
    """Return a value's bytes in BSON's order.

    A ``Decimal128`` is entered as the nearest double. Types without an order of their own come last.

    Raises
    ------
    bson.errors.InvalidDocument, ValueError, OverflowError
        If the value has no BSON form.
    """
    if isinstance(value, str):
        return STRING + _text(value)
    if isinstance(value, bool):
        return BOOLEAN + (b"\x01" if value else b"\x00")
    if isinstance(value, (float, int)):
        return _number(value)
    if value is None or value is filtering.NOTHING:
        return NULL
    if isinstance(value, ObjectId):
        return OBJECT_ID + value.binary
    if isinstance(value, (list, tuple)):
        return ARRAY + b"".join([encode(item) for item in value]) + b"\x00"
    if isinstance(value, datetime):
        return DATE + struct.pack(">Q", (value - _EPOCH) // _MILLISECOND + _SIGN)
    if isinstance(value, (Regex, re.Pattern)):
        return REGEX + _text(str(value.pattern)) + struct.pack(">I", int(value.flags))
    if isinstance(value, Mapping):
        fields = [encode(item)[:1] + _text(key) + encode(item) for key, item in value.items()]
        return OBJECT + b"".join(fields) + b"\x00"
    if isinstance(value, bytes):
        subtype = value.subtype if isinstance(value, Binary) else 0
        return BINARY + struct.pack(">IB", len(value), subtype) + value
    if isinstance(value, Decimal128):
        return _number(float(value.to_decimal()))
    if isinstance(value, Timestamp):
        return TIMESTAMP + struct.pack(">II", value.time, value.inc)
    if isinstance(value, (MinKey, MaxKey)):
        return b"\x01" if isinstance(value, MinKey) else b"\xf0"
    raw = bson.encode({"": value})
    return OTHER + struct.pack(">I", len(raw)) + raw


def _text(value: str) -> bytes:
    """Return UTF-8 that ends with a zero byte; the bytes 0 and 1 in it are escaped."""
    raw = value.encode()
    if b"\x00" in raw or b"\x01" in raw:
        raw = raw.replace(b"\x01", b"\x01\x02").replace(b"\x00", b"\x01\x01")
    return raw + b"\x00"


def _number(value: float) -> bytes:
    """Return the double at or below a number in an order-preserving form, and what an integer is above it."""
    double = float(value)
    above = 0
    if isinstance(value, int) and not -_LARGEST_PLAIN_INT <= value <= _LARGEST_PLAIN_INT:
        if not -_SIGN <= value < _SIGN:
            raise OverflowError("BSON holds integers of 8 bytes")
        if int(double) > value:
            double = math.nextafter(double, -math.inf)
        above = value - int(double)
    elif double != double:  # noqa: PLR0124 (NaN)
        return NAN
    bits = _unpack_unsigned(_pack_double(double + 0.0))[0]  # -0.0 is 0.0
    return NUMBER + _pack_number(bits ^ _ALL if bits & _SIGN else bits | _SIGN, above)


def inverted(key: bytes) -> bytes:
    """Return bytes in the opposite order, for the descending fields of an index."""
    return key.translate(_INVERTED)


def after(key: bytes) -> bytes:
    """Return the least bytes that are greater than all that begin with ``key``."""
    key = key.rstrip(b"\xff")
    return key[:-1] + bytes([key[-1] + 1])


def entry(value: Any) -> bytes:
    """Return the part of an index entry that a value makes: its bytes, of an array their hash.

    An array's elements have entries of their own, in order; the array itself is only looked up by equality.
    """
    if isinstance(value, (list, tuple)):
        return ARRAY + hashlib.blake2b(encode(value), digest_size=16).digest()
    return encode(value)


def values_of(document: Mapping[str, Any], field: str) -> list[Any]:
    """Return every value by which an equality filter could meet a field: itself, and an array's elements."""
    found = [document.get(field)] if "." not in field else filtering.iter_key_candidates(field, document)
    values: list[Any] = []
    for value in found:
        values.append(value)
        if isinstance(value, list):
            values.extend(value)
    return values or [None]


def sort_key(document: Mapping[str, Any], field: str, direction: int) -> bytes:
    """Return what a document is sorted by: of an array, its least element, or its greatest if descending."""
    found = [document.get(field)] if "." not in field else filtering.iter_key_candidates(field, document)
    keys: list[bytes] = []
    for value in found:
        if isinstance(value, list):
            keys += [encode(item) for item in value] or [EMPTY_ARRAY]
        else:
            keys.append(encode(value))
    if len(keys) == 1:
        return keys[0]
    return (max if direction < 0 else min)(keys, default=NULL)


def duplicate_key(collection: str, fields: list[str], document: Mapping[str, Any]) -> DuplicateKeyError:
    """Return the error that a taken key gives, worded and numbered as MongoDB's."""
    values = {field: helpers.get_value_by_dot(document, field) for field in fields}
    values = {field: None if value is filtering.NOTHING else value for field, value in values.items()}
    return DuplicateKeyError(
        f"E11000 duplicate key error collection: {collection} dup key: {values}",
        11000,
        {"keyPattern": dict.fromkeys(fields, 1), "keyValue": values, "errmsg": "E11000 duplicate key error"},
    )
