"""Download a weights file over HTTP: resumed where it stopped, checked by hash, all or nothing.

An unfinished download stays as `NAME.part` beside its target, so an interrupted one goes on where it was.
"""

from __future__ import annotations

import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from enginecmp.errors import ModelError
from enginecmp.models.fetch import require_hash
from enginecmp.models.info import sha256_of

ATTEMPTS = 5
"""Connections in a row that may end without a new byte."""

TIMEOUT_SECONDS = 30.0
READ_BYTES = 2**18

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the total where the server told it."""


def download(
    url: str, target: Path, sha256: str | None, progress: Progress | None = None, pause_seconds: float = 0.5
) -> None:
    """Download a file, resuming what an earlier attempt left.

    Args:
        url: http or https.
        target: where the file appears once it is whole and its hash is right.
        sha256: what it must hash to; unchecked when None.
        progress: told about every piece.
        pause_seconds: before the second attempt; doubles with every further one.

    Raises:
        ModelError: the server refuses or keeps breaking off (the part stays), the hash is wrong or the disk is
            full (the part is removed), or the folder cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fill(url, part, progress, pause_seconds)
        if sha256 is not None:
            try:
                require_hash(sha256_of(part), sha256, url)
            except ModelError:
                _remove(part)
                raise
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
        _etag_file(part).unlink(missing_ok=True)
    except _Full as error:
        _remove(part)
        msg = f"{target}: expected room for the download, came: {error}; free some or set ENGINECMP_CACHE"
        raise ModelError(msg) from error
    except OSError as error:
        msg = f"{target}: expected to write the file, came: {error.strerror or error}"
        raise ModelError(msg) from error


class _Full(Exception):
    """The disk, quota or file size limit is reached."""


def _fill(url: str, part: Path, progress: Progress | None, pause_seconds: float) -> None:
    """Append to the part until it is whole."""
    fruitless = 0
    while True:
        before = _size(part)
        try:
            if _attempt(url, part, progress):
                return
            reason = "the connection ended early"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                msg = f"{url}: expected the file, came: HTTP {error.code} {error.reason}"
                raise ModelError(msg) from error
            reason = str(getattr(error, "reason", "")) or str(error) or type(error).__name__
        fruitless = 0 if _size(part) > before else fruitless + 1
        if fruitless >= ATTEMPTS:
            msg = f"{url}: expected the file, came: {reason} ({ATTEMPTS} times); the same command resumes it"
            raise ModelError(msg)
        time.sleep(min(pause_seconds * 2**fruitless, 10.0))


def _attempt(url: str, part: Path, progress: Progress | None) -> bool:
    """Make one request and append what comes; True when the file is whole."""
    have = _size(part)
    # No compression: ranges count the bytes of the file itself.
    headers = {"Accept-Encoding": "identity", "User-Agent": "enginecmp"}
    etag = _etag_file(part).read_text() if _etag_file(part).exists() else ""
    if have:
        headers["Range"] = f"bytes={have}-"
        if etag:
            headers["If-Range"] = etag
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        # 416: nothing after what is here. Either it is whole, or it is not a part of this file.
        if error.code == 416 and have:
            if error.headers.get("Content-Range", "").removeprefix("bytes */") == str(have):
                return True
            _remove(part)
            return False
        raise
    with response:
        resumed = response.status == 206 and _range_start(response) == have
        length = response.headers.get("Content-Length")
        start = have if resumed else 0
        total = start + int(length) if length and length.isdigit() else None
        if total is not None and shutil.disk_usage(part.parent).free < total - start:
            reason = f"{shutil.disk_usage(part.parent).free} bytes free for {total - start}"
            raise _Full(reason)
        strong = response.headers.get("ETag", "")
        _etag_file(part).write_text(strong if not strong.startswith("W/") else "")
        # A server without ranges sends the file from its start: so does the part begin anew.
        with part.open("ab" if resumed else "wb") as file:
            done = _copy(response, file, start, total, progress)
    return done == total or total is None


def _copy(
    response: http.client.HTTPResponse, file: IO[bytes], done: int, total: int | None, progress: Progress | None
) -> int:
    """Append the response to the file and return the bytes there are."""
    # read1: what has arrived is kept, even when the connection breaks before a whole piece is here.
    while piece := response.read1(READ_BYTES):
        try:
            file.write(piece)
            file.flush()
        except OSError as error:
            raise _Full(error.strerror or str(error)) from error
        done += len(piece)
        if progress is not None:
            progress(done, total)
    return done


def _range_start(response: http.client.HTTPResponse) -> int | None:
    """Return the first byte of a partial answer: "bytes 100-199/200" gives 100."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None


def _size(part: Path) -> int:
    """Return the size of a file, 0 where there is none."""
    return part.stat().st_size if part.exists() else 0


def _etag_file(part: Path) -> Path:
    """Return where the part's entity tag is kept."""
    return part.with_name(f"{part.name}.etag")


def _remove(part: Path) -> None:
    """Remove a part and what belongs to it."""
    part.unlink(missing_ok=True)
    _etag_file(part).unlink(missing_ok=True)
