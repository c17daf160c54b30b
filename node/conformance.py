"""The DICOM conformance statement of a node: a template, with tables made from the code.

The text is `conformance.md.jinja`, in the outline of PS3.2 Annex N. Its tables are filled from the
configuration and from the very tables that the code reads, so that they cannot say anything else.
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.tag import Tag
from pydicom.uid import UID

from inference import errors, geometry, header, kinds, release, scope, stacks, volume
from inference.request import PRODUCTS
from inference.results import derived
from node.config import Condition, Config, Route, product_of
from node.dicom import commitment, contexts, negotiation, query_retrieve, status, tls
from node.dicom.scp import ScpSettings
from node.dicom.scu import TIMEOUTS
from node.rules.reasons import REASONS
from storage import enqueue

TEMPLATE = "conformance.md.jinja"
RESULTS = {status.PERMANENT: "rejected permanent", status.TRANSIENT: "rejected transient"}
SOURCES = {
    status.USER: "service user",
    status.PROVIDER_ACSE: "service provider (ACSE)",
    status.PROVIDER_PRESENTATION: "service provider (presentation)",
}
NO_SLICE = "refused, `DERIVED_INPUT`"
WORD_VERDICTS = dict.fromkeys(kinds.NO_SLICES, NO_SLICE) | {
    kinds.Meaning.REFORMAT: "axial: processed where the route has `accept_derived`, the value "
    f"kept in the result; in another plane {NO_SLICE}",
    kinds.Meaning.LOCALIZER: "set aside, `NOT_A_CT_SLICE`",
}
# The tables of the code under the names that the template uses.
TABLES = {
    "identity": release,
    "contexts": contexts,
    "status": status,
    "commitment": commitment,
    "query_retrieve": query_retrieve,
    "results": RESULTS,
    "sources": SOURCES,
    "derived": derived,
    "kinds": kinds,
    "word_verdicts": WORD_VERDICTS,
    "volume": volume,
    "scope": scope,
    "header": header,
    "geometry": geometry,
    "stacks": stacks,
    "enqueue": enqueue,
    "errors": errors,
    "verdicts": [REASONS[code] for code in errors.Reason],
    "decoders": len(contexts.DECODER_PACKAGES),
}
# For a file that somebody opens or prints; the pages of the node have a style of their own.
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; width: 100% }
th, td { border: 1px solid #999; padding: .3rem .5rem; text-align: left; vertical-align: top }
code { font-size: .9em; overflow-wrap: anywhere }
nav ul { list-style: none; padding-left: 0 } nav ul ul { padding-left: 1.5rem }
@media print { body { margin: 0 } h2 { break-after: avoid } tr { break-inside: avoid } }
"""


def statement(config: Config) -> str:
    """The whole statement, as Markdown."""
    node, template = config.node, _environment().get_template(TEMPLATE)
    scp = ScpSettings(node.ae_title, node.host, node.port)
    values = {"config": config, "node": node, "node_tls": config.tls, "scp": scp, "scu": TIMEOUTS}
    return template.render(**values, negotiation=negotiation, tls=tls)


def html(config: Config) -> str:
    """The statement as the body of a page."""
    return body(statement(config))


def page(config: Config) -> str:
    """The statement as an HTML file, with nothing that is loaded from elsewhere."""
    text = statement(config)
    title = text.partition("\n")[0].lstrip("# ")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body(text)}</body>\n</html>\n"
    )


def body(markdown: str) -> str:
    """Markdown as HTML, with a table of contents; what looks like HTML in the text is text."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(markdown)
    openings = [at for at, token in enumerate(tokens) if token.type == "heading_open"]
    headings = [at for at in openings if tokens[at].tag in ("h2", "h3")]
    for number, at in enumerate(headings, start=1):
        tokens[at].attrSet("id", f"part-{number}")
    start = headings[0] if headings else len(tokens)
    opening = reader.renderer.render(tokens[:start], reader.options, {})
    rest = reader.renderer.render(tokens[start:], reader.options, {})
    return f"{opening}{_contents(tokens, headings)}{rest}"


def _contents(tokens: Sequence[Token], headings: Sequence[int]) -> str:
    """Links to the chapters, each with its sections under it."""
    chapters: list[tuple[str, list[str]]] = []
    for at in headings:
        link = f'<a href="#{tokens[at].attrGet("id")}">{escape(tokens[at + 1].content)}</a>'
        if tokens[at].tag == "h2" or not chapters:
            chapters.append((link, []))
        else:
            chapters[-1][1].append(f"<li>{link}</li>")
    items = [
        f"<li>{link}{'<ul>' + ''.join(sections) + '</ul>' if sections else ''}</li>\n"
        for link, sections in chapters
    ]
    return f'<nav aria-label="Contents">\n<ul>\n{"".join(items)}</ul>\n</nav>\n' if items else ""


def _environment() -> Environment:
    """The template's functions and tables; a name that is missing is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701 - Markdown; `body` makes HTML of it, where HTML is text
        undefined=StrictUndefined,
        finalize=_cell,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {
        **TABLES,
        "listed": _listed,
        "seconds": "{:g} s".format,
        "number": "{:g}".format,
        "name": lambda uid: UID(uid).name,
        "named": _named,
        "attribute": dictionary_description,
        "tag": _tag,
        "codes": _codes,
        "codes_of": lambda codes: ", ".join(map(_codes, sorted(codes))),
        "minutes": lambda seconds: ", ".join(f"{it / 60:g}" for it in seconds),
        "match": _match,
        "made": _made,
    }
    return environment


def _cell(value: object) -> str:
    """A value on one line whose bars do not end a cell of a table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _listed(values: Iterable[object], empty: str) -> str:
    return ", ".join(f"`{value}`" for value in values) or empty


def _named(syntax: str) -> str:
    return f"{UID(syntax).name} (`{syntax}`)"


def _tag(keyword: str) -> str:
    number = tag_for_keyword(keyword)
    assert number is not None, keyword
    tag = Tag(number)
    return f"({tag.group:04X},{tag.element:04X})"


def _codes(first: int, last: int | None = None) -> str:
    """A status, or a range of them, in the standard's hexadecimal form."""
    if (first, last) == (0x0000, 0xFFFF):
        return "any other"
    return f"{first:04X}" if last in (None, first) else f"{first:04X}-{last:04X}"


def _made(route: Route, config: Config) -> str:
    """What a route asks its model for."""
    if route.target_spacing_mm is not None:
        return f"every {route.target_spacing_mm:g} mm"
    made = PRODUCTS[product_of(config, route.model)]
    return made if route.factor is None else f"factor {route.factor}"


def _match(route: Route) -> str:
    conditions = (f"{key} {_condition(value)}" for key, value in route.match.items())
    return "; ".join(conditions) or "everything"


def _condition(condition: Condition) -> str:
    parts = []
    if condition.values:
        parts.append("= " + " or ".join(f"`{value}`" for value in condition.values))
    if condition.has is not None:
        parts.append(f"has `{condition.has}`")
    if condition.regex is not None:
        parts.append(f"matches `{condition.regex}`")
    if condition.min is not None:
        parts.append(f"at least {condition.min:g}")
    if condition.max is not None:
        parts.append(f"at most {condition.max:g}")
    return " and ".join(parts)
