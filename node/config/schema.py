"""The JSON schema of config.toml, by which editors complete keys and mark mistakes."""

from typing import Any

from pydantic import Field, create_model

from node.config.reading import LISTS, TABLES
from node.config.sections import Section

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, object]:
    """Every table with its keys, what each allows and its default; no mistake between tables."""
    tables: dict[str, Any] = {name: (kind | None, None) for name, kind in TABLES.items()}
    lists: dict[str, Any] = {
        name: (list[kind], Field(default_factory=list))  # type: ignore[valid-type]
        for name, kind in LISTS.items()
    }
    file = create_model("Midslice", __base__=Section, **tables, **lists)
    return {"$schema": DIALECT, **file.model_json_schema(by_alias=True), "title": "config.toml"}
