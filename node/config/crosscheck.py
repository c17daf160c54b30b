"""What a table alone cannot tell: names that must exist, be different, or exclude each other."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from node.config.kinds import MEASURES, SENDER, near
from node.config.sections import Condition, Config, Route


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
        *_proxies(config),
        *_shared_ports(config),
        *_models(raw),
        *_routes(config, raw),
        *_senders(config),
    ]


def shipped_models() -> tuple[str, ...]:
    """The names of the models that come with the product."""
    from inference.registry import registered

    return tuple(entry.name for entry in registered())


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


def _proxies(config: Config) -> Iterator[str]:
    for key in ("user_header", "role_header"):
        if getattr(config.web, key) and not config.web.trusted_proxies:
            yield f"web.{key}: anybody may write a header; name the web.trusted_proxies too"


def _names(raw: Mapping[str, object], table: str, key: str = "name") -> list[str]:
    entries = raw.get(table, [])
    if not isinstance(entries, list):
        return []
    names = [entry.get(key) for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str)]


def _shared_ports(config: Config) -> Iterator[str]:
    if config.node.port and config.node.port == config.web.port:
        yield f"web.port = {config.web.port}: another port than node.port"


def _models(raw: Mapping[str, object]) -> Iterator[str]:
    for name in _names(raw, "model"):
        if name in shipped_models():
            yield f'model.name = "{name}": another name; a model of the product has this one'


def _routes(config: Config, raw: Mapping[str, object]) -> Iterator[str]:
    destinations = [*_names(raw, "destination"), SENDER]
    models = [*shipped_models(), *_names(raw, "model")]
    for place, route in _placed(config.routes, raw):
        yield from _one_density(place, route)
        yield from _targets(place, route, destinations)
        if route.model not in models:
            yield f'{place}.model = "{route.model}": {_one_of(route.model, models)}'
        for key, condition in route.match.items():
            if key in MEASURES and not _is_numeric(condition):
                yield f"{place}.match.{key}: a number, a list of numbers, or a table of min, max"


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
                f'"{SENDER}" could mean each of them; leave it to one'
            )
