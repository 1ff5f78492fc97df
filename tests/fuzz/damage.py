"""Ways to damage bytes, drawn from a seeded generator; shared by the targets of binary and text formats."""

from __future__ import annotations

import random
import struct

EDGES = (0, 1, 2, 7, 8, 2**7, 2**8 - 1, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
"""Counts, lengths and offsets at which readers go wrong."""


def damaged(content: bytes, draw: random.Random, most: int | None = None) -> bytes:
    """Return the content with one to six faults in its first `most` bytes."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        end = min(len(changed), most or len(changed))
        at = draw.randrange(end + 1)
        match draw.randrange(7):
            case 0 if changed:
                at = min(at, len(changed) - 1)
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                edge = struct.pack("<Q", draw.choice(EDGES))[: draw.choice((1, 2, 4, 8))]
                changed[at : at + len(edge)] = edge
            case 2:
                noise = draw.randbytes(draw.randint(1, 12))
                changed[at : at + len(noise)] = noise
            case 3:
                changed[at:at] = draw.randbytes(draw.randint(1, 12))
            case 4:
                del changed[at : at + draw.randint(1, 40)]
            case 5:
                other = draw.randrange(end + 1)
                changed[at:at] = changed[other : other + draw.randint(1, 200)]
            case _ if draw.random() < 0.2:
                del changed[at:]
    return bytes(changed)
