"""Foreign text on one line of a terminal."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginecmp.format.text import command_line, listed, plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two  words\r\n\tand more\n", "two words and more"),
        ("žluťoučký 🦙", "žluťoučký 🦙"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("one\u2028two\x85three", "one two three"),
        ("\x9b2J\x00\x7f", r"\x9b2J\x00\x7f"),
        ("file\udcff", r"file\udcff"),
        ("", ""),
    ],
)
def test_what_a_terminal_would_act_on_is_shown_as_an_escape(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_a_long_text_is_cut_with_a_mark() -> None:
    assert plain("x" * 11, 10) == "x" * 9 + "…"
    assert plain("x" * 10, 10) == "x" * 10
    assert plain("\x1b" * 10, 10) == r"\x1b\x1b\…"
    assert plain("a" + " " * 1000 + "b", 10) == "a…"


@given(st.text(max_size=60), st.integers(1, 20))
def test_any_text_becomes_one_printable_line_within_the_limit(text: str, limit: int) -> None:
    shown = plain(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    shown.encode()


@pytest.mark.parametrize(
    "word", ["plain", "two  spaces", "it's", "a\nb", "\x1b]0;X\x07", "\u202e", "a\\b\x01'7", "\udcff1", ""]
)
def test_a_command_is_one_printable_line_that_a_shell_takes_apart_again(word: str) -> None:
    line = command_line(["printf", "%s|", word, "$(id)"])
    assert line.isprintable()
    told = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert told.stdout == os.fsencode(word) + b"|$(id)|"


def test_a_list_is_read_without_its_spaces_and_gaps() -> None:
    assert list(listed(" a, b=c d ,,e,")) == ["a", "b=c d", "e"]
    assert list(listed(" , ")) == []
