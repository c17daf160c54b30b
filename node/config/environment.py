"""Values of the environment that take the place of those of config.toml: MIDSLICE_SECTION__KEY."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from node.config.sections import Section, near

PREFIX = "MIDSLICE_"
DIVIDER = "__"
FROM_FILE = "_file"  # a key with this ending that is none itself: the value stands in that file
NAMING = {"sender": "ae_title"}  # the key that tells an entry of a list; of the others `name`

Tables = Mapping[str, type[Section]]


@dataclass
class Overridden:
    """The tables of the file with the values of the environment in them."""

    tables: dict[str, Any]
    variables: dict[str, str] = field(default_factory=dict)  # by the key that each has set
    problems: list[str] = field(default_factory=list)


class _Wrong(ValueError):
    """A variable that sets nothing; its sentence says why."""


def override(
    raw: Mapping[str, Any], environ: Mapping[str, str], tables: Tables, lists: Tables
) -> Overridden:
    """Set what the environment names; a variable without `__` is somebody else's.

    (Kubernetes gives a container MIDSLICE_PORT and more, where a service is called midslice.)
    """
    result = Overridden(_copied(raw))
    for variable in sorted(environ):
        parts = variable.removeprefix(PREFIX).lower().split(DIVIDER)
        if not variable.startswith(PREFIX) or len(parts) < 2:
            continue
        try:
            place, table, kind = _target(result.tables, parts, tables, lists)
            key, text = _key(kind, parts[-1], environ[variable])
            if (before := result.variables.get(f"{place}.{key}")) is not None:
                raise _Wrong(f"{before} sets {place}.{key} too; keep one of them")
            table[key] = _value(kind, key, text)
            result.variables[f"{place}.{key}"] = variable
        except _Wrong as error:
            result.problems.append(f"{variable}: {error}")
    return result


def _copied(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The tables again, two levels deep: what is set here does not change what was read."""
    return {
        name: dict(table)
        if isinstance(table, dict)
        else [dict(entry) if isinstance(entry, dict) else entry for entry in table]
        if isinstance(table, list)
        else table
        for name, table in raw.items()
    }


def _target(
    raw: dict[str, Any], parts: Sequence[str], tables: Tables, lists: Tables
) -> tuple[str, dict[str, Any], type[Section]]:
    """The place of a table, the table, and its kind."""
    section, further = parts[0], parts[1:-1]
    if section in tables:
        table = raw.setdefault(section, {})
        if not isinstance(table, dict):
            raise _Wrong(f"{section} is no table in the file")
        return _within((section, table, tables[section]), further)
    if section in lists and further:
        return _within((*_entry(raw, section, further[0]), lists[section]), further[1:])
    if section in lists:
        raise _Wrong(f"which {section}? write {PREFIX}{section.upper()}__NAME__KEY")
    known = [*tables, *lists]
    raise _Wrong(
        f"unknown section '{section}'; allowed: {', '.join(sorted(known))}{near(section, known)}"
    )


def _within(
    target: tuple[str, dict[str, Any], type[Section]], keys: Sequence[str]
) -> tuple[str, dict[str, Any], type[Section]]:
    """The table in a table that these keys lead to, as `tls` of a destination."""
    place, table, kind = target
    for key in keys:
        field = kind.model_fields.get(key)
        kinds = get_args(field.annotation) if field is not None else ()
        inner = next((it for it in kinds if isinstance(it, type) and issubclass(it, Section)), None)
        if inner is None:
            raise _Wrong(f"{place}.{key} is no table whose keys can be set one by one")
        given = table.get(key)
        table[key] = dict(given) if isinstance(given, dict) else {}  # `true` is one without keys
        place, table, kind = f"{place}.{key}", table[key], inner
    return place, table, kind


def _entry(raw: Mapping[str, Any], section: str, name: str) -> tuple[str, dict[str, Any]]:
    """The entry of a list that the file has under this name, written as a variable is."""
    entries, naming = raw.get(section, []), NAMING.get(section, "name")
    named = [
        (place, entry, str(entry.get(naming, "")))
        for place, entry in enumerate(entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
    ]
    matching = [(place, entry) for place, entry, it in named if _spelled(it) == _spelled(name)]
    if len(matching) == 1:
        place, entry = matching[0]
        return f"{section}[{place}]", entry
    names = ", ".join(it for _, _, it in named) or "none; a variable adds no entry"
    told = "more than one" if matching else "no"
    raise _Wrong(f"{told} {section} is called '{name}' in the file; there are: {names}")


def _spelled(name: str) -> str:
    """A name as a variable can have it."""
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def _key(kind: type[Section], name: str, text: str) -> tuple[str, str]:
    """The key, and the text that it is set to: the variable's, or that of the file it names."""
    keys = [field.alias or it for it, field in kind.model_fields.items()]
    stem = name.removesuffix(FROM_FILE)
    if name in keys:
        return name, text
    if stem == name or stem not in keys:
        known = ", ".join(sorted(keys))
        raise _Wrong(f"unknown key '{name}'; allowed: {known}{near(name, keys)}")
    try:
        return stem, Path(text).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it holds no text in UTF-8"
        raise _Wrong(f"{text}: {reason}; the value is read from this file") from None


def _value(kind: type[Section], key: str, text: str) -> object:
    """Text as it is where the key takes text alone; anything else as TOML writes it."""
    if "\n" in text or _takes_text(kind, key):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # of the wrong type: the error says what is allowed


def _takes_text(kind: type[Section], key: str) -> bool:
    """True where the schema of the key knows no other type than text."""
    schema = kind.model_json_schema(by_alias=True)["properties"][key]
    return set(_types(schema)) - {"null"} == {"string"}


def _types(schema: Mapping[str, Any]) -> Iterator[str]:
    if "anyOf" in schema:
        for part in schema["anyOf"]:
            yield from _types(part)
    else:
        yield schema.get("type", "object")
