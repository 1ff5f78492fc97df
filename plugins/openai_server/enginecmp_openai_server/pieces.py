"""A key that comes in pieces: over chunks, events or words, with what frames them in between."""

from __future__ import annotations

from typing import NamedTuple

_LEAST = 3
"""Characters of a piece; shorter ones are in every text."""
_ENOUGH = 12
"""Characters of the key that pieces in its order must hold together before they are no chance."""
_FARTHEST = 200
"""Characters between two pieces: a chunk of a completion has so many around its text."""


class _Chain(NamedTuple):
    """Pieces in the order of the key: where in the key they begin, and where in the text each of them stands."""

    begin: int
    spans: tuple[tuple[int, int], ...]


class Pieces:
    """Finds a key in pieces.

    Args:
        key: letters and digits, small.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._places: dict[str, list[int]] = {}
        for at in range(len(key) - _LEAST + 1):
            self._places.setdefault(key[at : at + _LEAST], []).append(at)

    def find(self, letters: str) -> list[tuple[int, int]]:
        """Return where pieces of the key stand in a text of small letters and digits; nothing where chance would do."""
        found: set[tuple[int, int]] = set()
        ends: dict[int, _Chain] = {}  # by how far in the key they have come
        for at in range(len(letters) - _LEAST + 1):
            for place in self._places.get(letters[at : at + _LEAST], ()):
                length = self._same(place, letters, at)
                end, span = place + length, (at, at + length)
                # A frame may begin with the letter that goes on in the key: the next piece then has it again.
                before = [ends[each] for each in (place, place + 1, place + 2) if each in ends]
                near = [chain for chain in before if 0 <= at - chain.spans[-1][1] <= _FARTHEST]
                chain = min(near, key=lambda chain: chain.begin, default=None)
                mine = _Chain(place, (span,)) if chain is None else _Chain(chain.begin, (*chain.spans, span))
                if end not in ends or mine.begin <= ends[end].begin or at - ends[end].spans[-1][1] > _FARTHEST:
                    ends[end] = mine
                if end - mine.begin >= min(_ENOUGH, len(self._key)):
                    found.update(mine.spans)
        return sorted(found)

    def _same(self, place: int, letters: str, at: int) -> int:
        """Return how many characters of the key from `place` on are those of the text from `at` on."""
        length = _LEAST
        while place + length < len(self._key) and letters[at + length : at + length + 1] == self._key[place + length]:
            length += 1
        return length
