"""The guide as Markdown, and as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

from enginecmp.format.text import visible
from enginecmp_analysis.render.escape import for_html, for_markdown, markdown_table
from enginecmp_analysis.schema.guide import Guide, Section

TITLE = "Deployment guide"


def to_markdown(guide: Guide) -> str:
    """Return the guide as Markdown."""
    lines = [f"# {TITLE}: {for_markdown(guide.title)}", ""]
    for section in guide.sections:
        lines += [f"## {section.title}", ""]
        for text in section.text:
            lines += [for_markdown(text), ""]
        if section.table is not None:
            titles = [for_markdown(head) for head in section.table.heads]
            lines += [*markdown_table(titles, section.table.rows), ""]
        if section.notes:
            lines += [*(f"- {for_markdown(note)}" for note in section.notes), ""]
        if section.commands:
            # Longer than any run of backticks inside, so that nothing in a command ends the block.
            lines += [*_fenced(section.commands), ""]
    return "\n".join(lines).rstrip() + "\n"


def _fenced(commands: list[str]) -> Iterator[str]:
    fence = "```"
    while any(fence in command for command in commands):
        fence += "`"
    yield f"{fence}sh"
    yield from map(visible, commands)
    yield fence


def to_html(guide: Guide) -> str:
    """Return the guide as a page; its style is that of the report."""
    style = files("enginecmp_analysis.render.pictures").joinpath("page.css").read_text("utf-8")
    body = "\n".join(line for section in guide.sections for line in _html_section(section))
    contents = "".join(f'<li><a href="#{s.name}">{for_html(s.title)}</a></li>' for s in guide.sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{TITLE}: {for_html(guide.title)}</title>
<style>
{style}</style>
</head>
<body>
<header><p class="quiet">enginecmp</p><h1>{TITLE}: {for_html(guide.title)}</h1></header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
{body}
</body>
</html>
"""


def _html_section(section: Section) -> Iterator[str]:
    yield f'<section id="{section.name}"><h2>{for_html(section.title)}</h2>'
    kind = ' class="answer"' if section.name == "uses" else ""
    yield from (f"<p{kind}>{for_html(text)}</p>" for text in section.text)
    if section.table is not None:
        heads = "".join(f'<th scope="col">{for_html(head)}</th>' for head in section.table.heads)
        yield f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>'
        for row in section.table.rows:
            yield f"<tr>{''.join(f'<td>{for_html(cell)}</td>' for cell in row)}</tr>"
        yield "</tbody></table></div>"
    if section.notes:
        yield f'<ul class="notes">{"".join(f"<li>{for_html(note)}</li>" for note in section.notes)}</ul>'
    if section.commands:
        commands = "\n".join(for_html(command) for command in section.commands)
        yield f"<pre>{commands}</pre>"
    yield "</section>"
