"""The statement as HTML, from its Markdown."""

from html import escape

from markdown_it import MarkdownIt

# For a file that somebody opens or prints; the pages of the node have a style of their own.
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; width: 100% }
th, td { border: 1px solid #999; padding: .3rem .5rem; text-align: left; vertical-align: top }
code { font-size: .9em }
@media print { body { margin: 0 } h2 { break-after: avoid } tr { break-inside: avoid } }
"""


def body(markdown: str) -> str:
    """Headings, paragraphs, lists and tables; what looks like HTML in the text is text."""
    return str(MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown))


def page(markdown: str) -> str:
    """A whole document, with nothing that is loaded from elsewhere."""
    title = markdown.partition("\n")[0].lstrip("# ")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body(markdown)}</body>\n</html>\n"
    )
