"""A bucket, through obstore: the few requests that keeping and reading runs takes, and errors in a user's words.

Credentials, region and endpoint come from the environment alone (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, or the role of the machine), and stay there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

from enginecmp.errors import ObjectStoreError, UsageError
from enginecmp.format.text import plain
from enginecmp.objects.address import Address

WRITABLE = ".enginecmp"
"""Object that proves that a place can be written, before anything is measured."""

_SECRET = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


class Found(NamedTuple):
    """An object.

    Attributes:
        content: all of it.
        etag: what the server calls this version of it; "" where it does not.
    """

    content: bytes
    etag: str


class Bucket:
    """The bucket of an address.

    Args:
        address: of what is read or written; keys below are whole keys of its bucket.

    Raises:
        UsageError: obstore is not installed.
    """

    def __init__(self, address: Address) -> None:
        try:
            from obstore.store import S3Store
        except ImportError as error:
            msg = f"{address}: needs obstore, which is not installed; run: pip install 'enginecmp[s3]'"
            raise UsageError(msg) from error
        self.address = address
        http = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        with self._told():
            self._store = S3Store(
                address.bucket,
                client_options={"allow_http": http, "connect_timeout": "5s", "timeout": "60s"},
                retry_config={
                    "max_retries": 2,
                    "retry_timeout": timedelta(seconds=20),
                    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=2), "base": 2},
                },
            )

    def check(self) -> None:
        """Write a small object, so that a wrong name or key is refused before hours of measuring.

        Raises:
            ObjectStoreError: it cannot be written.
        """
        self.put(self.address.below(WRITABLE).prefix, b"runs of enginecmp\n")

    def put(self, key: str, content: bytes) -> None:
        """Write an object, in one piece.

        Raises:
            ObjectStoreError: it cannot be written.
        """
        import obstore

        with self._told():
            obstore.put(self._store, key, content, use_multipart=False)

    def get(self, key: str, known: str = "") -> Found | None:
        """Return an object; None where it is still the version that is known.

        Args:
            key: of the object.
            known: its etag when it was read last.

        Raises:
            KeyError: there is none.
            ObjectStoreError: it cannot be read.
        """
        import obstore
        from obstore.exceptions import NotFoundError, NotModifiedError

        with self._told():
            try:
                found = obstore.get(self._store, key, options={"if_none_match": known} if known else None)
                return Found(bytes(found.bytes()), found.meta["e_tag"] or "")
            except NotModifiedError:
                return None
            except (NotFoundError, FileNotFoundError) as error:
                if "NoSuchBucket" in str(error):
                    raise
                raise KeyError(key) from error

    def folders(self, prefix: str) -> list[str]:
        """Return the names right below a prefix that have something below them, sorted.

        Raises:
            ObjectStoreError: it cannot be listed.
        """
        import obstore

        with self._told():
            found = obstore.list_with_delimiter(self._store, prefix or None)
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found["common_prefixes"])

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what obstore raises inside into one line without secrets."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError, PermissionError, ValueError) as error:
            msg = f"{self.address}: {_reason(str(error))}"
            raise ObjectStoreError(msg) from None


def _reason(text: str) -> str:
    """Return what went wrong, and what to do."""
    for name in _SECRET:
        if value := os.environ.get(name):
            text = text.replace(value, f"${name}")
    text = plain(" ".join(text.split("\n\nDebug source")[0].split()), 300)
    for sign, advice in (
        ("NoSuchBucket", "there is no such bucket; create it, or name another"),
        (("InvalidAccessKeyId"), "the access key is not known there; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"),
        ("SignatureDoesNotMatch", "the secret key is wrong; check AWS_SECRET_ACCESS_KEY"),
        ("AccessDenied", "access is denied; check AWS_ACCESS_KEY_ID and what it may do in this bucket"),
        ("403", "access is denied; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do there"),
        ("169.254.169.254", "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ):
        if sign in text:
            return advice
    return f"{text}; check AWS_ENDPOINT_URL, AWS_REGION and the network"
