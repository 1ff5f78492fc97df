"""run.json in object storage: which parts make which file of a run (schema "enginecmp-objects/1")."""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from enginecmp.errors import ObjectStoreError
from enginecmp.format.streams import MOST_FILE_BYTES
from enginecmp.objects.address import Address
from enginecmp.objects.bucket import Bucket

INDEX = "run.json"
SCHEMA: Final = "enginecmp-objects/1"

PART_BYTES = 32 * 2**20
"""Most of a part: what is in memory at a time."""

_FILE = re.compile(r"(logs/)?[A-Za-z0-9_-][A-Za-z0-9._+-]{0,200}")
_HASH = re.compile(r"[0-9a-f]{64}")


class ObjectPart(msgspec.Struct, frozen=True):
    """A piece of a file.

    Attributes:
        sha256: of it; its key is `key_of` that.
        bytes: how many.
    """

    sha256: str
    bytes: int


class RunObjects(msgspec.Struct, kw_only=True):
    """run.json.

    Attributes:
        schema: "enginecmp-objects/1".
        run_id: name of the run's folder.
        files: name inside the folder to its parts, in their order.
    """

    schema: Literal["enginecmp-objects/1"] = SCHEMA
    run_id: str
    files: dict[str, list[ObjectPart]] = {}


def key_of(place: Address, sha256: str) -> str:
    """Return the key of a run's part."""
    return place.below("parts").below(sha256).prefix


def read_index(bucket: Bucket, place: Address, known: str = "") -> tuple[RunObjects, str] | None:
    """Return a run's index and its etag; None where it is still the version that is known.

    Raises:
        KeyError: no run is there.
        ObjectStoreError: it cannot be read, or is not what it should be.
    """
    found = bucket.get(place.below(INDEX).prefix, known)
    if found is None:
        return None
    try:
        index = msgspec.json.decode(found.content, type=RunObjects)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        msg = f"{place}/{INDEX}: not an index of '{SCHEMA}': {error}"
        raise ObjectStoreError(msg) from error
    for name, parts in index.files.items():
        if not _FILE.fullmatch(name) or not all(
            _HASH.fullmatch(p.sha256) and 0 <= p.bytes <= PART_BYTES for p in parts
        ):
            msg = f"{place}/{INDEX}: expected names of a run's files and SHA-256 of parts, got '{name[:80]}'"
            raise ObjectStoreError(msg)
        if sum(part.bytes for part in parts) > MOST_FILE_BYTES:
            msg = f"{place}/{INDEX}: {name}: expected at most {MOST_FILE_BYTES} bytes"
            raise ObjectStoreError(msg)
    return index, found.etag
