"""Do two tokenizers read every text as the same ids? Held on texts that tell the known splitting rules apart."""

from __future__ import annotations

from enginecmp.models.isolated_tokenizer import IsolatedTokenizer

TEXTS = (
    "The quick brown fox can't jump over 13 lazy dogs; it's 2,147,483,647 o'clock, I'LL SAY!",
    "  two  spaces   three    four\tand\t\ttabs\n\nnew\r\nlines \n  indented\n",
    "def f(x: int) -> dict[str, list]:\n    return {'a': [x ** 2, 0xFF, 1e-5], \"b\": not x}  # no\n",
    "1 12 123 1234 12345 3.14159 10^100 v2.0.1 2024-02-29T12:34:56Z $5.00 €1.234,56 ½ ² Ⅷ",
    "Grüße, naïve café, Ångström, Πρόβλημα, Привет, мир! שלום עולם مرحبا بالعالم नमस्ते दुनिया",
    "日本語のテキスト、中文文本，한국어 텍스트。ไทย \u200b zero width \u00a0 no break",
    "👍🏽 👨‍👩‍👧‍👦 🇩🇪 ♥ … — “quotes” ‹x› «y»",
    "https://example.org/path?q=a%20b&c=d#e user@example.org C:\\dir\\file.txt /usr/bin/env",
    "don't DON'T we'll WE'LL they've THEY'VE you're YOU'RE he's HE'S I'm I'M she'd SHE'D",
    'camelCase snake_case SCREAMING_CASE kebab-case [INST] {"json": [true, null]} <p>html</p>',
    "a" * 40 + " " + "ab" * 20 + " " + "!?" * 10 + " " + "-" * 30 + "\n" * 5 + " " * 33 + "end",
    "x",
    " ",
    "\n",
)
"""All in Unicode's composed form (NFC): some tokenizers compose first, and GGUF has no word for that. No
special tokens: whether they take the blanks around them differs, and no prompt of `cmp` holds one."""


def first_difference(left: IsolatedTokenizer, right: IsolatedTokenizer) -> str:
    """Return what two tokenizers read differently, in a few words; empty where they agree on all `TEXTS`.

    Args:
        left: of a tokenizer.json.
        right: of a GGUF file.

    Raises:
        ModelError: one of them contradicts itself or takes too much.
    """
    if left.bos_id != right.bos_id:
        return f"begin-of-sequence id {left.bos_id} and {right.bos_id}"
    for text in TEXTS:
        a, b = left.encode(text), right.encode(text)
        if a != b:
            at = next((i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))
            return f"text {text[:30]!r}: ids {a[at : at + 3]} and {b[at : at + 3]} from position {at}"
        said, meant = left.decode(a), right.decode(b)
        if said != meant:
            return f"text {text[:30]!r}: its ids, the same, as {said[:30]!r} and {meant[:30]!r}"
    return ""
