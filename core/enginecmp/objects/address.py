"""Addresses of runs in object storage: s3://BUCKET/PREFIX."""

from __future__ import annotations

import re
from typing import NamedTuple

from enginecmp.errors import UsageError

SCHEME = "s3://"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"(?!\.{1,2}(/|$))[A-Za-z0-9._=+@:-]+(/(?!\.{1,2}(/|$))[A-Za-z0-9._=+@:-]+)*")


class Address(NamedTuple):
    """A place in a bucket.

    Attributes:
        bucket: its name.
        prefix: what keys there begin with, without slashes at its ends; "" is the whole bucket.
    """

    bucket: str
    prefix: str

    def below(self, name: str) -> Address:
        """Return the place of that name below this one."""
        return Address(self.bucket, f"{self.prefix}/{name}".lstrip("/"))

    def __str__(self) -> str:
        """Return the address as a user writes it."""
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")


def is_address(text: object) -> bool:
    """Return whether a word means object storage and no path."""
    return str(text).startswith(SCHEME)


def parse_address(text: str) -> Address:
    """Return the place that an address names.

    Raises:
        UsageError: it is none, or holds credentials, which are not shown again.
    """
    bucket, _, prefix = text.removeprefix(SCHEME).partition("/")
    if "@" in bucket:
        msg = "s3://…: expected a bucket, got credentials in the address; put them into AWS_ACCESS_KEY_ID and " + (
            "AWS_SECRET_ACCESS_KEY, and write s3://BUCKET/PREFIX"
        )
        raise UsageError(msg)
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket) or (prefix and not _PREFIX.fullmatch(prefix)):
        msg = f"{text}: expected s3://BUCKET/PREFIX of letters, digits and ._=+@:-, got something else"
        raise UsageError(msg)
    return Address(bucket, prefix)
