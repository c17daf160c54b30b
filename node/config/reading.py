"""From the text of config.toml to its values; a mistake is one line, and all are shown at once."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from node.config.around import Notify, Selftest, Sender, Web
from node.config.base import Section
from node.config.crosscheck import contradictions
from node.config.kinds import near
from node.config.sections import (
    Completion,
    Condition,
    Config,
    Delivery,
    Destination,
    Inference,
    ModelEntry,
    Node,
    Route,
    Storage,
)
from node.errors import ConfigError

DEFAULT_PATH = Path("config.toml")
TABLES = (
    "node",
    "storage",
    "completion",
    "inference",
    "delivery",
    "web",
    "notify",
    "selftest",
)
LISTS = ("destination", "route", "sender", "model")
LONGEST_VALUE = 80  # characters of a wrong value that an error repeats

S = TypeVar("S", bound=Section)


def load(path: Path = DEFAULT_PATH) -> Config:
    """The configuration in `path`; raises ConfigError with one line for each mistake."""
    raw = _read(path)
    reader = _Reader(raw, path.resolve().parent)
    config = reader.config(path.resolve())
    problems = [*reader.problems, *contradictions(config, raw)]
    if problems:
        raise ConfigError(*(f"{path}: {problem}" for problem in problems))
    return config


def defaults(folder: Path) -> Config:
    """What an empty config.toml in `folder` would say."""
    return _Reader({}, folder.resolve()).config(folder.resolve() / DEFAULT_PATH.name)


def _read(path: Path) -> Mapping[str, object]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; name one with --config FILE") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text, at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error


class _Reader:
    """Validates each table for itself, so that a mistake in one hides none in another.

    A table with a mistake is replaced by its defaults, or left out of its list: that result is
    used for further checks only, since `problems` is not empty then.
    """

    def __init__(self, raw: Mapping[str, object], folder: Path) -> None:
        self._raw = raw
        self._context = {"folder": folder}
        self.problems = [
            _unknown("", name, (*TABLES, *LISTS)) for name in raw if name not in TABLES + LISTS
        ]

    def config(self, path: Path) -> Config:
        """The whole file, as far as it can be used."""
        return Config(
            path=path,
            node=self.table("node", Node),
            storage=self.table("storage", Storage),
            completion=self.table("completion", Completion),
            inference=self.table("inference", Inference),
            delivery=self.table("delivery", Delivery),
            web=self.table("web", Web),
            notify=self.table("notify", Notify),
            selftest=self.table("selftest", Selftest),
            senders=self.tables("sender", Sender),
            destinations=self.tables("destination", Destination),
            routes=self.tables("route", Route),
            models=self.tables("model", ModelEntry),
        )

    def table(self, name: str, kind: type[S]) -> S:
        """The values of `[name]`; a table that is absent has its defaults."""
        found = self._one(name, kind, self._raw.get(name, {}))
        return found or kind.model_validate({}, context=self._context)

    def tables(self, name: str, kind: type[S]) -> tuple[S, ...]:
        """The values of each `[[name]]`, in their order."""
        given = self._raw.get(name, [])
        if not isinstance(given, list):
            self.problems.append(f"{name} = {_shown(given)}: tables, each written [[{name}]]")
            return ()
        found = [self._one(f"{name}[{i}]", kind, entry) for i, entry in enumerate(given)]
        return tuple(entry for entry in found if entry is not None)

    def _one(self, place: str, kind: type[S], given: object) -> S | None:
        if not isinstance(given, dict):
            self.problems.append(f"{place} = {_shown(given)}: a table, written [{place}]")
            return None
        try:
            return kind.model_validate(given, context=self._context)
        except ValidationError as error:
            details = error.errors(include_url=False)
            lines = [_line(place, kind, given, detail) for detail in details]
            self.problems += dict.fromkeys(lines)  # a union complains once for each of its members
            return None


def _line(place: str, kind: type[Section], given: Mapping[str, object], error: ErrorDetails) -> str:
    """One mistake as `destination[2].port = "x": integer 1-65535`."""
    loc = error["loc"]
    if error["type"] == "extra_forbidden":
        parent = Condition if len(loc) > 1 else kind
        return _unknown(_joined(place, loc[:-1]), str(loc[-1]), _keys(parent))
    if loc and loc[-1] == "[key]":  # of `match`
        return f"{_joined(place, loc[:-2])}: {_sentence(error)}"
    allowed = _field(kind, str(loc[0])).description if loc else None
    if error["type"] == "missing":
        return f"{_joined(place, loc)}: missing; {allowed}"
    says = _sentence(error)
    if error["type"] != "value_error" and allowed and len(loc) < 3:
        says = allowed
    return f"{_joined(place, loc)} = {_shown(_secretless(loc, error['input']))}: {says}"


def _sentence(error: ErrorDetails) -> str:
    raised = error.get("ctx", {}).get("error")
    return str(raised) if raised is not None else error["msg"].removeprefix("Input should be ")


def _unknown(place: str, key: str, allowed: Sequence[str]) -> str:
    words = f"unknown key '{key}'; allowed: {', '.join(sorted(allowed))}{near(key, allowed)}"
    return f"{place}: {words}" if place else words


def _keys(kind: type[Section]) -> list[str]:
    keys = [field.alias or name for name, field in kind.model_fields.items()]
    return [key for key in keys if key not in {"*", "commitment"}]


def _field(kind: type[Section], key: str) -> FieldInfo:
    fields = kind.model_fields
    return next(field for name, field in fields.items() if key in {name, field.alias})


def _joined(place: str, loc: Sequence[int | str]) -> str:
    """The place as a person would write it; what follows a union's branch is left out."""
    for part in loc:
        if part in {"*", "str", "int", "float"}:
            break
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    return place


def _secretless(loc: Sequence[int | str], value: object) -> object:
    return "..." if loc and loc[0] == "database" else value  # may hold a password


def _shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
