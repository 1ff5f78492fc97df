"""A run's folder to object storage: new parts first, then run.json, at the end of each block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from enginecmp.errors import ObjectStoreError
from enginecmp.format.files import LOGS, MANIFEST
from enginecmp.format.text import to_json
from enginecmp.objects.address import Address
from enginecmp.objects.bucket import Bucket
from enginecmp.objects.index import INDEX, PART_BYTES, ObjectPart, RunObjects, key_of, read_index


class Mirror:
    """Keeps a run in object storage as far as its blocks are finished.

    Args:
        folder: of the run, here.
        runs: where runs are kept; this one goes below, under its folder's name.
        say: told what a user must know, one line at a time, while no engine is being measured.

    Raises:
        UsageError: obstore is not installed.
    """

    def __init__(self, folder: Path, runs: Address, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.place = runs.below(folder.name)
        self._bucket = Bucket(self.place)
        self._say = say
        self._index: RunObjects | None = None
        self._lost = False

    def block_over(self) -> None:
        """Upload what came of the block that just ended; a server that is gone is told once, and left alone then."""
        if self._lost:
            return
        try:
            self._commit([path.name for path in _files(self.folder)])
        except ObjectStoreError as error:
            self._lost = True
            self._say(f"{error}: the run goes on and is kept in {self.folder}; it is uploaded at its end")

    def interrupted(self) -> None:
        """Upload how the run ended, after the blocks that were finished; the rest is finished by --resume."""
        if self._lost:
            return
        try:
            if self._known().files:
                self._commit([MANIFEST])
        except ObjectStoreError as error:
            self._say(str(error))

    def finish(self) -> None:
        """Upload everything, logs too.

        Raises:
            ObjectStoreError: it cannot be written.
        """
        logs = [f"{LOGS}/{path.name}" for path in _files(self.folder / LOGS)]
        self._commit([*(path.name for path in _files(self.folder)), *logs])
        self._say(f"uploaded: {self.place}")

    def _known(self) -> RunObjects:
        """Return the index as it is there, an empty one of a run that is not."""
        if self._index is None:
            try:
                found = read_index(self._bucket, self.place)
                self._index = found[0] if found else None
            except KeyError:
                pass
        return self._index or RunObjects(run_id=self.folder.name)

    def _commit(self, names: list[str]) -> None:
        known = self._known()
        files = known.files | {name: list(self._parts(name, known.files.get(name, []))) for name in names}
        if files == known.files:
            return
        index = RunObjects(run_id=self.folder.name, files=files)
        # Last, and in one piece: parts that no index names are no part of any run.
        self._bucket.put(self.place.below(INDEX).prefix, to_json(index))
        self._index = index

    def _parts(self, name: str, known: list[ObjectPart]) -> Iterator[ObjectPart]:
        """Yield the parts of a file: those that are there already, then those that are uploaded now."""
        with (self.folder / name).open("rb") as file:
            for part in known:
                at = file.tell()
                if hashlib.sha256(file.read(part.bytes)).hexdigest() != part.sha256:
                    file.seek(at)  # the file was replaced: from here on it is another one
                    break
                yield part
            while content := _whole_lines(file.read(PART_BYTES), name):
                # After a part that ends inside of lines, the rest of them is read again.
                sha256 = hashlib.sha256(content).hexdigest()
                self._bucket.put(key_of(self.place, sha256), content)
                yield ObjectPart(sha256, len(content))
                if len(content) < PART_BYTES:
                    break


def _files(folder: Path) -> list[Path]:
    """Return the regular files right in a folder that belong to a run."""
    if not folder.is_dir():
        return []
    hidden = (".", "~")
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.is_symlink() and not path.name.startswith(hidden) and path.suffix != ".tmp"
    )


def _whole_lines(content: bytes, name: str) -> bytes:
    """Return content that ends a file, without a line that is being written."""
    if not name.endswith(".jsonl") or len(content) == PART_BYTES:
        return content
    return content[: content.rfind(b"\n") + 1]
