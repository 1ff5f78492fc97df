"""What `cmp_load` returns and the host hands back to every hook."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ._shim import Session


class LoadedModel(NamedTuple):
    """What the host hands back to every hook.

    Attributes:
        session: the model in Rust.
        path: of its file.
        threads: that it computes with.
    """

    session: Session
    path: str
    threads: int
