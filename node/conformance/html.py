"""The statement as HTML, from its Markdown: with a table of contents, for it is long."""

from collections.abc import Sequence
from html import escape

from markdown_it import MarkdownIt
from markdown_it.token import Token

# For a file that somebody opens or prints; the pages of the node have a style of their own.
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; width: 100% }
th, td { border: 1px solid #999; padding: .3rem .5rem; text-align: left; vertical-align: top }
code { font-size: .9em }
nav ul { list-style: none; padding-left: 0 } nav ul ul { padding-left: 1.5rem }
@media print { body { margin: 0 } h2 { break-after: avoid } tr { break-inside: avoid } }
"""
CHAPTER, SECTION = "h2", "h3"


def body(markdown: str) -> str:
    """Headings, paragraphs, lists and tables; what looks like HTML in the text is text."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(markdown)
    told = [at for at, each in enumerate(tokens) if each.type == "heading_open"]
    listed = [at for at in told if tokens[at].tag in (CHAPTER, SECTION)]
    for number, at in enumerate(listed, start=1):
        tokens[at].attrSet("id", f"part-{number}")
    before = listed[0] if listed else len(tokens)
    opening = reader.renderer.render(tokens[:before], reader.options, {})
    rest = reader.renderer.render(tokens[before:], reader.options, {})
    return f"{opening}{_contents(tokens, listed)}{rest}"


def _contents(tokens: Sequence[Token], listed: Sequence[int]) -> str:
    """Links to the chapters, each with its sections under it."""
    chapters: list[tuple[str, list[str]]] = []
    for at in listed:
        link = f'<a href="#{tokens[at].attrGet("id")}">{escape(tokens[at + 1].content)}</a>'
        if tokens[at].tag == CHAPTER or not chapters:
            chapters.append((link, []))
        else:
            chapters[-1][1].append(f"<li>{link}</li>")
    items = [
        f"<li>{link}{'<ul>' + ''.join(under) + '</ul>' if under else ''}</li>\n"
        for link, under in chapters
    ]
    return f'<nav aria-label="Contents">\n<ul>\n{"".join(items)}</ul>\n</nav>\n' if items else ""


def page(markdown: str) -> str:
    """A whole document, with nothing that is loaded from elsewhere."""
    title = markdown.partition("\n")[0].lstrip("# ")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body(markdown)}</body>\n</html>\n"
    )
