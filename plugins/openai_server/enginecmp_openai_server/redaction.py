"""The API key is taken out of whatever leaves this plugin, in every form in which servers repeat what they were sent.

A text is compared as its letters and digits alone, once as it stands and again with its escapes undone (percent, JSON,
HTML, hex, quoted-printable, markup, up to three deep), with the key, backwards too, and with its encodings as a whole
(base64, also twice, base32, base85, hex, decimal bytes). Eight characters in a row that one of them has too are taken
out: a key that was cut, split over lines or spelled in capitals, or in the wide or ornate letters of Unicode, is found
like a whole one. So is one that comes in pieces, with the frames of chunks, events or words between them (`pieces`).
"""

from __future__ import annotations

import base64
import contextlib
import html
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from enginecmp import CmpError, EngineError, plain

from .pieces import Pieces

MASK = "***"
_RUN = 8
"""Characters in a row that give a key away. A shorter key is a placeholder; it is masked where it stands alone."""
_DEPTH = 3
_LONGEST_MESSAGE = 2000

_NO_LETTERS = re.compile(r"[^a-z0-9]+")
_NO_HEX = re.compile(r"[^0-9a-f]+", re.IGNORECASE)
_ESCAPE = re.compile(
    r"(?P<hex>%u[0-9a-f]{4}|\\U[0-9a-f]{8}|U\+[0-9a-f]{4}|(?:%|=|0x|\\x)[0-9a-f]{2}|\\u\{?[0-9a-f]{4}\}?)"
    r"|\\(?P<octal>[0-7]{3})|(?P<html>&#?[0-9a-z]{2,8};|&#x[0-9a-f]{2}|&#[0-9]{2,3})"
    r"|(?P<nothing>\\[nrtbfv]|\x1b\[[0-9;?]*[@-~]|(?:\\x1b|\\u001b)\[[0-9;?]*[@-~]|</?[a-z][^<>]{0,40}>)",
    re.IGNORECASE,
)


class _Character(NamedTuple):
    """One character of a text as it reads, and where it stands in the text as it came."""

    text: str
    start: int
    end: int


class Redaction:
    """Takes a secret out of texts.

    Args:
        secret: printable ASCII; empty where there is none.
    """

    def __init__(self, secret: str) -> None:
        self._short = ""
        self._whole = _letters(secret)
        self._runs: frozenset[str] = frozenset()
        self._pieces = Pieces(self._whole) if len(self._whole) >= _RUN else None
        forms = [_letters(form) for form in _forms(secret)]
        if secret and len(forms[0]) < _RUN:
            self._short = forms[0] or secret
            forms = [form for form in forms[2:] if len(form) >= 2 * _RUN]
        self._runs = frozenset(form[at : at + _RUN] for form in forms for at in range(len(form) - _RUN + 1))

    def __repr__(self) -> str:
        return "Redaction()"

    def __bool__(self) -> bool:
        """Say whether there is a secret at all."""
        return bool(self._short or self._runs)

    def clean(self, text: str) -> str:
        """Return a text with `MASK` where the secret was."""
        if not self._suspects(text):
            return text
        spans = sorted({span for view in _views(text) for span in self._found(text, view)})
        pieces: list[str] = []
        done = 0
        for start, end in spans:
            if start > done or not done:
                pieces += [text[done:start], MASK]
            done = max(done, end)
        return "".join([*pieces, text[done:]])

    def is_in(self, text: str) -> bool:
        """Say whether a text holds the whole secret, as it is or with escapes; a placeholder is no secret."""
        for _ in range(_DEPTH + 1 if len(self._whole) >= _RUN else 0):
            if self._whole in _letters(text):
                return True
            text = _ESCAPE.sub(_unescaped, text)
        return False

    def said(self, text: str | bytes, limit: int = 160) -> str:
        """Return foreign words for a message: the secret out, then on one printable line, then cut."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        # Long enough that a cut in front of the redaction is never among what is shown.
        return plain(self.clean(text[: 16 * limit + 1024]), limit)

    @contextlib.contextmanager
    def exits(self) -> Iterator[None]:
        """Let no exception out of a hook that repeats the secret, by its message, its cause or its notes.

        Raises:
            EngineError: instead of an exception that is none of the host's: nothing a server says is an internal error.
        """
        try:
            yield
        except MemoryError:
            raise
        except CmpError as error:
            error.args = (self._message(str(error)),)
            error.__cause__ = error.__context__ = None
            error.__suppress_context__ = True
            error.__dict__.pop("__notes__", None)
            raise
        except Exception as error:
            said = self.said(str(error))
            msg = (
                f"openai_server: expected an answer of the documented form, got one that led to {type(error).__name__} "
                f"({said}); see the launch's log, and report it"
            )
            raise EngineError(msg).with_traceback(error.__traceback__) from None

    def _message(self, text: str) -> str:
        return plain(self.clean(text), _LONGEST_MESSAGE)

    def _suspects(self, text: str) -> bool:
        """Say whether a text may hold the secret; quick, because whole logs come through here."""
        for _ in range(_DEPTH + 1 if self else 0):
            letters = _letters(text)
            if self._short and self._short in (letters if self._short.isalnum() else text):
                return True
            if not self._runs.isdisjoint(letters[at : at + _RUN] for at in range(len(letters) - _RUN + 1)):
                return True
            if self._pieces is not None and self._pieces.find(letters):
                return True
            text, undone = _ESCAPE.subn(_unescaped, text)
            if not undone:
                break
        return False

    def _found(self, text: str, view: list[_Character]) -> Iterator[tuple[int, int]]:
        """Yield where in a text a view of it has a run of the secret."""
        read = [each for each in view if len(_letters(each.text)) == 1]
        letters = "".join(_letters(each.text) for each in read)
        for at in range(len(letters) - _RUN + 1):
            if letters[at : at + _RUN] in self._runs:
                yield read[at].start, read[at + _RUN - 1].end
        for start, end in self._pieces.find(letters) if self._pieces is not None else ():
            yield read[start].start, read[end - 1].end
        if not self._short:
            return
        if not self._short.isalnum():
            yield from (match.span() for match in re.finditer(re.escape(self._short), text))
            return
        at = letters.find(self._short)
        while at >= 0:
            start, end = read[at].start, read[at + len(self._short) - 1].end
            if not (text[:start][-1:].isalnum() or text[end:][:1].isalnum()):
                yield start, end
            at = letters.find(self._short, at + 1)


def redaction_of(options: Mapping[str, str]) -> Redaction:
    """Return the redaction of the API key that these engine options name."""
    return Redaction(os.environ.get(options.get("api_key_env", ""), "").strip())


def _letters(text: str) -> str:
    return _NO_LETTERS.sub("", (text if text.isascii() else unicodedata.normalize("NFKD", text)).lower())


def _forms(secret: str) -> list[str]:
    """Return the secret and its encodings as a whole, wherever in an encoded text it begins."""
    forms = [secret, secret[::-1]]
    for spelled in dict.fromkeys((secret, secret.lower(), secret.upper())):
        content = spelled.encode()
        forms += [content.hex(), "".join(map(str, content))]
        forms += [base64.b85encode(content).decode(), base64.a85encode(content).decode()]
        twice = base64.b64encode(content)
        forms += [base64.b64encode(bytes(n) + twice).decode()[-(-n * 8 // 6) :] for n in range(3)]
        for encode, bits, block in ((base64.b64encode, 6, 3), (base64.b32encode, 5, 5)):
            for before in range(block):
                encoded = encode(bytes(before) + content).decode()
                # Characters that hold bits of the neighbours too are not the secret's own.
                forms.append(encoded[-(-before * 8 // bits) : (before + len(content)) * 8 // bits])
    return forms


def _views(text: str) -> Iterator[list[_Character]]:
    """Yield a text as it stands, then with its escapes undone, again and again while there are any."""
    view = [_Character(character, at, at + 1) for at, character in enumerate(text)]
    yield view
    for _ in range(_DEPTH):
        joined = "".join(each.text for each in view)
        undone: list[_Character] = []
        done = 0
        for match in _ESCAPE.finditer(joined):
            undone += view[done : match.start()]
            start, done = match.span()
            if character := _unescaped(match):
                undone.append(_Character(character, view[start].start, view[done - 1].end))
        if not done:
            return
        view = undone + view[done:]
        yield view


def _unescaped(match: re.Match[str]) -> str:
    """Return the character that an escape stands for; empty for one that shows nothing."""
    if digits := match["hex"]:
        return chr(int(_NO_HEX.sub("", digits[1:] if digits[0] == "0" else digits)[-4:], 16))
    if octal := match["octal"]:
        return chr(int(octal, 8) & 0xFF)
    if entity := match["html"]:
        return html.unescape(entity)[:1]
    return ""
