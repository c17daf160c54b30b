"""The DICOM conformance statement of a node, written from its configuration and its own tables.

It follows the outline of PS3.2 Annex N. What the code decides stands in the code: the tables are
made from the very tables that the code reads, so that the statement cannot say anything else.
"""

from pathlib import Path

from node.config import Config
from node.conformance import html as markup
from node.conformance import network, objects, services

__all__ = ["html", "page", "statement"]


def statement(config: Config) -> str:
    """The whole statement, as Markdown."""
    parts = [
        *services.overview(config),
        *services.model(config),
        *network.application_entities(config),
        *network.services(),
        *objects.created(),
        *objects.used(),
        *services.configuration(config),
        *services.character_sets(),
        *services.security(config),
        *services.limitations(),
        _cases(),
    ]
    return "\n\n".join(parts) + "\n"


def html(config: Config) -> str:
    """The statement as the body of a page."""
    return markup.body(statement(config))


def page(config: Config) -> str:
    """The statement as an HTML file."""
    return markup.page(statement(config))


def _cases() -> str:
    """The table of cases, which tests hold to what the code does, one level of headings lower."""
    text = Path(__file__).with_name("cases.md").read_text(encoding="utf-8").strip()
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines())
