"""Where a server is: an http or https address, without anything secret in it."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from enginecmp import EngineError

EXAMPLE = "http://127.0.0.1:8000/v1"


class Address(NamedTuple):
    """A base address, e.g. http://127.0.0.1:8000/v1.

    Attributes:
        secure: TLS.
        host: name or number.
        port: of the server.
        base: path in front of every endpoint of the API, e.g. "/v1".
        root: path in front of the server's own endpoints: `base` without "/v1".
    """

    secure: bool
    host: str
    port: int
    base: str
    root: str

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"http{'s' if self.secure else ''}://{self.authority}{self.base}"


def read_address(url: str) -> Address:
    """Return what an address says.

    Raises:
        EngineError: no http address, or one that carries a secret; the message repeats no part of such a one.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # What is wrong is not repeated: the end of a password reads like a port.
        msg = f"openai_server: expected url={EXAMPLE}, got one that cannot be read; correct it"
        raise EngineError(msg) from None
    if "@" in url or parts.query or parts.fragment:
        msg = (
            f"openai_server: expected a plain address such as {EXAMPLE}, got one with a user, a query or a fragment; "
            "it would be written into the results: take it out, and name a variable with api_key_env"
        )
        raise EngineError(msg)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        msg = f"openai_server: expected an address such as url={EXAMPLE}, got '{url}'; pass -o LABEL.url={EXAMPLE}"
        raise EngineError(msg)
    secure = parts.scheme == "https"
    base = _base(parts)
    return Address(secure, parts.hostname, port or (443 if secure else 80), base, base.removesuffix("/v1"))


def _base(parts: SplitResult) -> str:
    """Return the base path; people paste the endpoint itself, too."""
    base = parts.path.rstrip("/")
    for endpoint in ("/chat/completions", "/completions", "/models"):
        base = base.removesuffix(endpoint)
    return base
