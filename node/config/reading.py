"""From the text of config.toml to its values; a mistake is one line, and all are shown at once."""

import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from sqlalchemy.engine import make_url

from inference.descriptions import READINGS
from inference.request import PRODUCTS, ModelSpec, Produces
from node.config.environment import override
from node.config.sections import (
    FINDING_OPTIONS,
    JUDGING_OPTIONS,
    MEASURES,
    SENDER,
    SLICE_OPTIONS,
    Condition,
    Config,
    Route,
    Section,
    near,
)
from node.errors import ConfigError

DEFAULT_PATH = Path("config.toml")
SHIPPED = Path(__file__).with_name("shipped.toml")  # the config.toml of the source
ONE_PACS = "# Your PACS: enter it, take the # away, and name it in destinations of the route.\n"
KINDS = get_type_hints(Config).items()
LISTS: Mapping[str, type[Section]] = {  # written [[name]]; in Config the plural
    name.removesuffix("s"): get_args(kind)[0] for name, kind in KINDS if get_origin(kind) is tuple
}
TABLES: Mapping[str, type[Section]] = {
    name: kind for name, kind in KINDS if isinstance(kind, type) and issubclass(kind, Section)
}
LONGEST_VALUE = 80  # characters of a wrong value that an error repeats


def load(path: Path = DEFAULT_PATH, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration in `path` and `environ`; raises ConfigError, a line for each mistake."""
    given = override(_read(path), environ, TABLES, LISTS)
    reader = _Reader(given.tables, path.resolve().parent)
    config = reader.config(path.resolve())
    problems = [*reader.problems, *contradictions(config, given.tables)]
    placed = [f"{_source(problem, given.variables) or path}: {problem}" for problem in problems]
    if placed or given.problems:
        raise ConfigError(*given.problems, *placed)
    return config.model_copy(update={"environment": given.variables})


def _source(problem: str, variables: Mapping[str, str]) -> str:
    """The variable that has set the key of which a problem speaks; none where the file has."""
    by_key = (it for key, it in variables.items() if re.match(rf"{re.escape(key)}\b", problem))
    return next(by_key, "")


def first() -> str:
    """Write the text of the configuration of a first node: its results are kept, and sent nowhere.

    It is the shipped one, with a destination to fill in: one that nobody has is only in the way.
    """
    before, head, after = SHIPPED.read_text(encoding="utf-8").partition("[[destination]]\n")
    table, end, rest = after.partition("\n\n")
    lines = (head + table).splitlines()
    commented = "".join(f"{'' if line.startswith('#') else '# '}{line}\n" for line in lines)
    route = re.sub(r'^destinations = \["pacs"\]( *)', r"destinations = []\1", rest, flags=re.M)
    return f"{before}{ONE_PACS}{commented}\n{route}"


def defaults(folder: Path) -> Config:
    """The configuration of an empty config.toml in `folder`."""
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
        known = (*TABLES, *LISTS)
        self.problems = [_unknown("", name, known) for name in raw if name not in known]

    def config(self, path: Path) -> Config:
        """The whole file, as far as it can be used."""
        tables = {name: self._table(name, kind) for name, kind in TABLES.items()}
        lists = {f"{name}s": self._list(name, kind) for name, kind in LISTS.items()}
        return Config.model_validate({"path": path, **tables, **lists})

    def _table(self, name: str, kind: type[Section]) -> Section:
        """The values of `[name]`; a table that is absent has its defaults."""
        table = self._validated(name, kind, self._raw.get(name, {}))
        return table or kind.model_validate({}, context=self._context)

    def _list(self, name: str, kind: type[Section]) -> tuple[Section, ...]:
        """The values of each `[[name]]`, in their order."""
        given = self._raw.get(name, [])
        if not isinstance(given, list):
            self.problems.append(f"{name} = {_shown(given)}: tables, each written [[{name}]]")
            return ()
        entries = [self._validated(f"{name}[{i}]", kind, entry) for i, entry in enumerate(given)]
        return tuple(entry for entry in entries if entry is not None)

    def _validated(self, place: str, kind: type[Section], given: object) -> Section | None:
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
    inner = _table_within(kind, loc)
    if inner is not None:
        within: ErrorDetails = {**error, "loc": loc[1:]}
        return _line(f"{place}.{loc[0]}", inner, given, within)
    if error["type"] == "extra_forbidden":
        parent = Condition if len(loc) > 1 else kind
        return _unknown(_joined(place, loc[:-1]), str(loc[-1]), _keys(parent))
    if loc and loc[-1] == "[key]":  # of `match`
        return f"{_joined(place, loc[:-2])}: {_sentence(error)}"
    key, fields = str(loc[0]) if loc else "", kind.model_fields.items()
    allowed = next((f.description for name, f in fields if key in {name, f.alias}), None)
    if error["type"] == "missing":
        return f"{_joined(place, loc)}: missing; {allowed}"
    says = _sentence(error)
    if error["type"] != "value_error" and allowed and len(loc) < 3:
        says = allowed
    value = "..." if key in HIDING else error["input"]
    return f"{_joined(place, loc)} = {_shown(value)}: {says}"


def _table_within(kind: type[Section], loc: Sequence[int | str]) -> type[Section] | None:
    """The table in a table that a mistake lies in, as `commitment` of a destination."""
    field = kind.model_fields.get(str(loc[0])) if len(loc) > 1 else None
    kinds = get_args(field.annotation) if field is not None else ()
    return next((it for it in kinds if isinstance(it, type) and issubclass(it, Section)), None)


def _sentence(error: ErrorDetails) -> str:
    raised = error.get("ctx", {}).get("error")
    return str(raised) if raised is not None else error["msg"].removeprefix("Input should be ")


def _unknown(place: str, key: str, allowed: Sequence[str]) -> str:
    words = f"unknown key '{key}'; allowed: {', '.join(sorted(allowed))}{near(key, allowed)}"
    return f"{place}: {words}" if place else words


def _keys(kind: type[Section]) -> list[str]:
    keys = [field.alias or name for name, field in kind.model_fields.items()]
    return [key for key in keys if key != "*"]


def _joined(place: str, loc: Sequence[int | str]) -> str:
    """The place as a person would write it; what follows a union's branch is left out."""
    for part in loc:
        if part in {"*", "str", "int", "float"}:
            break
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    return place


def _shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def contradictions(config: Config, raw: Mapping[str, object]) -> list[str]:
    """One line for each mistake between tables.

    `config` lacks the entries that were wrong by themselves; `raw` still has their names, so
    that a mistake in a destination does not make every route to it wrong.
    """
    return [
        *_repeated(raw, "destination"),
        *_repeated(raw, "route"),
        *_repeated(raw, "model"),
        *_repeated(raw, "sender", "ae_title"),
        *_selftest(config, raw),
        *_asked_peer(config, raw),
        *_web(config),
        *_tls(config),
        *_models(raw),
        *_routes(config, raw),
        *_senders(config),
    ]


def shipped_models() -> Mapping[str, ModelSpec]:
    """The models that come with the product, by name."""
    from inference.registry import REGISTERED

    return {entry.name: entry.spec for entry in REGISTERED}


def product_of(config: Config, name: str) -> Produces:
    """The family of a model; of one that is unknown, which another line says, slices."""
    by_name = {**shipped_models(), **{entry.name: entry.spec for entry in config.models}}
    return by_name[name].produces if name in by_name else "slices"


def _repeated(raw: Mapping[str, object], table: str, key: str = "name") -> Iterator[str]:
    for name, count in Counter(_names(raw, table, key)).items():
        if count > 1:
            yield f'{table}.{key} = "{name}": different for each {table}, but {count} have it'


def _selftest(config: Config, raw: Mapping[str, object]) -> Iterator[str]:
    destinations, models = _names(raw, "destination"), [*shipped_models(), *_names(raw, "model")]
    wanted, model = config.selftest.destination, config.selftest.model
    if wanted and wanted not in destinations:
        yield f'selftest.destination = "{wanted}": {_one_of(wanted, destinations)}'
    if model not in models:
        yield f'selftest.model = "{model}": {_one_of(model, models)}'
    elif product_of(config, model) != "slices":
        yield f'selftest.model = "{model}": a model that makes slices'


def _asked_peer(config: Config, raw: Mapping[str, object]) -> Iterator[str]:
    wanted, destinations = config.completion.ask, _names(raw, "destination")
    if wanted and wanted not in destinations:
        yield f'completion.ask = "{wanted}": {_one_of(wanted, destinations)}'
    if any(it.name == wanted and it.kind != "dimse" for it in config.destinations):
        yield f'completion.ask = "{wanted}": a destination of kind "dimse", which answers C-FIND'


def _web(config: Config) -> Iterator[str]:
    for key in ("user_header", "role_header"):
        if getattr(config.web, key) and not config.web.trusted_proxies:
            yield f"web.{key}: anybody may write a header; name the web.trusted_proxies too"
    if config.node.port and config.node.port == config.web.port:
        yield f"web.port = {config.web.port}: another port than node.port"


def _tls(config: Config) -> Iterator[str]:
    taken = {config.node.port: "node.port", config.web.port: "web.port"}
    tls = config.tls
    if tls.certificate is not None and tls.port and tls.port in taken:
        yield f"tls.port = {tls.port}: another port than {taken[tls.port]}"
    for place, of_peer in config.tls_of_peers.items():
        if of_peer.authorities is None and not of_peer.fingerprint:
            needed = (
                "tls.authorities, authorities of its own, or the fingerprint of its certificate"
            )
            yield f"{place}: by what is it known? give {needed}"


def _names(raw: Mapping[str, object], table: str, key: str = "name") -> list[str]:
    entries = raw.get(table, [])
    if not isinstance(entries, list):
        return []
    names = [entry.get(key) for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str)]


def _models(raw: Mapping[str, object]) -> Iterator[str]:
    for name in _names(raw, "model"):
        if name in shipped_models():
            yield f'model.name = "{name}": another name; a model of the product has this one'


def _routes(config: Config, raw: Mapping[str, object]) -> Iterator[str]:
    destinations = [*_names(raw, "destination"), SENDER]
    models = [*shipped_models(), *_names(raw, "model")]
    for place, route in _placed(config.routes, raw):
        yield from _asked(place, route, product_of(config, route.model))
        yield from _targets(place, route, destinations)
        if route.model not in models:
            yield f'{place}.model = "{route.model}": {_one_of(route.model, models)}'
        for key, condition in route.match.items():
            if key in MEASURES and not _is_numeric(condition):
                yield f"{place}.match.{key}: a number, a list of numbers, or a table of min, max"
            if key in READINGS and not _is_one_of(condition, READINGS[key][1]):
                words = ", ".join(READINGS[key][1])
                yield f"{place}.match.{key}: one of {words}; a list of them, or a table of has"


def _targets(place: str, route: Route, destinations: list[str]) -> Iterator[str]:
    for name, count in Counter(route.destinations).items():
        if name not in destinations:
            allowed = _one_of(name, destinations)
            yield f'{place}.destinations: unknown destination "{name}"; allowed: {allowed}'
        elif count > 1:
            yield f'{place}.destinations: "{name}" is named {count} times'


def _placed(routes: Iterable[Route], raw: Mapping[str, object]) -> Iterator[tuple[str, Route]]:
    entries = raw.get("route", [])
    places = enumerate(entries if isinstance(entries, list) else [])
    for route in routes:  # in the order of the file, without the wrong ones
        for place, entry in places:
            if isinstance(entry, dict) and entry.get("name") == route.name:
                yield f"route[{place}]", route
                break


def _asked(place: str, route: Route, produces: Produces) -> Iterator[str]:
    """Faults of a density of slices, which models of slices need, and of options of others."""
    if produces == "slices":
        yield from _one_density(place, route)
    options = {
        "slices": SLICE_OPTIONS if produces != "slices" else (),
        "scores or findings": JUDGING_OPTIONS if produces in ("slices", "mask") else (),
        "findings": FINDING_OPTIONS if produces != "findings" else (),
    }
    for makes, names in options.items():
        for name in names:
            if name in route.model_fields_set:
                yield (
                    f"{place}.{name}: only for a model that makes {makes}; {route.model} makes "
                    f"{PRODUCTS[produces]}"
                )


def _one_density(place: str, route: Route) -> Iterator[str]:
    if route.factor is not None and route.target_spacing_mm is not None:
        yield f"{place}: factor and target_spacing_mm exclude each other; give one of them"
    if route.factor is None and route.target_spacing_mm is None:
        yield f"{place}: missing factor or target_spacing_mm; give one of them"


def _one_of(name: str, names: list[str]) -> str:
    return f"{', '.join(sorted(set(names)))}{near(name, names)}"


def _is_numeric(condition: Condition) -> bool:
    texts = [value for value in condition.values if isinstance(value, str)]
    return not texts and condition.regex is None and condition.has is None


def _is_one_of(condition: Condition, allowed: Sequence[str]) -> bool:
    wanted = [*condition.values, *([] if condition.has is None else [condition.has])]
    others = (condition.regex, condition.min, condition.max)
    return set(wanted) <= set(allowed) and not any(other is not None for other in others)


def _senders(config: Config) -> Iterator[str]:
    """ "sender" must mean one destination for each calling AE title."""
    if not any(SENDER in route.destinations for route in config.routes):
        return
    titles = Counter(
        title
        for destination in config.destinations
        for title in {destination.ae_title, *destination.sends_as}
    )
    for title, count in titles.items():
        if count > 1:
            yield (
                f'destination: {count} destinations have the AE title "{title}", so that '
                f'"{SENDER}" could mean each of them; keep it for one of them'
            )


# The values of these keys may hold a password: no message repeats them.
HIDING = ("database", "webhooks", "key_password")


def to_values(config: Config) -> dict[str, object]:
    """The configuration as JSON for pages, without passwords and keys in addresses."""
    values = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    url = config.storage.database
    if url:
        shown = make_url(url).set(query={})
        values["storage"]["database"] = shown.render_as_string(hide_password=True)
    values["notify"]["webhooks"] = [_place_of(url) for url in config.notify.webhooks]
    return values


def from_values(values: Mapping[str, object]) -> Config:
    """The configuration again, as far as `to_values` has told it."""
    given = {**values, "path": Path(str(values["path"]))}
    return Config.model_validate(_with_tuples(given), context={"folder": Path("/")})


def _with_tuples(value: object) -> object:
    """JSON has lists where frozen values have tuples."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def _place_of(url: str) -> str:
    """The host of a webhook: the rest of its address is often its key, or a password."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = f":{parts.port}" if parts.port is not None else ""
    return f"{parts.scheme}://{host}{port}/..."
