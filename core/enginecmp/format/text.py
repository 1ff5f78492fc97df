"""Foreign text made safe to show: words of engines, servers, files and models on one line of a terminal or a log."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec


def plain(text: str, limit: int = 200) -> str:
    r"""Return foreign text as one printable line, control and bidirectional characters as escapes.

    White space, line breaks among it, becomes one space. What a terminal would act on instead of showing it (ESC, BEL,
    bidirectional overrides, invisible characters, lone surrogates) is written as Python writes it: `\x1b`, `\u202e`.
    The cost is bounded by `limit`, however long the text is. Secrets must be taken out before: a cut could leave half
    of one.

    Args:
        text: what came.
        limit: most characters of the result; a longer one ends in "…".
    """
    words = " ".join(text[: 4 * limit + 1].split())
    shown = words if words.isprintable() else "".join(map(_shown, words[: limit + 1]))
    if len(shown) <= limit and len(text) <= 4 * limit + 1:
        return shown
    return f"{shown[: max(0, limit - 1)].rstrip()}…"


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def visible(line: str, limit: int = 8000) -> str:
    r"""Return one line for a terminal as it is laid out, control and bidirectional characters as escapes.

    Unlike `plain` it keeps spaces; a line break becomes `\n`, so that no text forges another line.

    Args:
        line: what is to be printed.
        limit: most characters of the result; a longer one ends in "…".
    """
    if len(line) > limit:
        line = f"{line[: limit - 1]}…"
    return line if line.isprintable() else "".join(map(_shown, line))


def listed(text: str) -> Iterator[str]:
    """Yield the items of an option's value like "a, b,c", without the space around them; empty ones are left out."""
    return filter(None, (item.strip() for item in text.split(",")))


def command_line(words: Iterable[str]) -> str:
    r"""Return words as one line that a shell splits into the same words again, printable as it is.

    A word that a terminal would act on, or with bytes that are no UTF-8, is quoted as bash and zsh read it: `$'a\x1b'`.

    Args:
        words: the command and its arguments.
    """
    return " ".join(map(_quoted, words))


def operand(path: object) -> str:
    """Return a path as a command line names it where an option could stand: one that begins with "-" gets "./"."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    return f"$'{''.join(map(_in_ansi_c_quotes, word))}'"


def _in_ansi_c_quotes(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    # Three octal digits, so that a digit that follows is none of them.
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))


def to_json(content: Any, indent: int = -1) -> bytes:
    """Return JSON that can be read back, whatever text is in it: lone surrogates become escapes.

    Args:
        content: structs, builtins, paths.
        indent: spaces a level; -1 writes one line.
    """
    try:
        text = msgspec.json.encode(content, enc_hook=str)
    except UnicodeEncodeError:  # a path with bytes that are no UTF-8
        text = msgspec.json.encode(_encodable(msgspec.to_builtins(content, enc_hook=str, str_keys=True)))
    return text if indent < 0 else msgspec.json.format(text, indent=indent)


def _encodable(content: Any) -> Any:
    if isinstance(content, str):
        return content.encode("utf-8", "backslashreplace").decode()
    if isinstance(content, dict):
        return {_encodable(key): _encodable(value) for key, value in content.items()}
    return [_encodable(item) for item in content] if isinstance(content, list | tuple) else content
