"""The configuration as JSON and back, for those who only see the database: without passwords."""

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.engine import make_url

from node.config.sections import Config


def to_values(config: Config) -> dict[str, object]:
    """What a page may show: the password of the database is left out."""
    values = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    url = config.storage.database
    if url:
        values["storage"]["database"] = make_url(url).render_as_string(hide_password=True)
    values["notify"]["webhooks"] = [_without_path(url) for url in config.notify.webhooks]
    return values


def from_values(values: Mapping[str, object]) -> Config:
    """The configuration again, as far as `to_values` has told it."""
    given = {**values, "path": Path(str(values["path"]))}
    return Config.model_validate(_with_tuples(given), context={"folder": Path("/")})


def _with_tuples(value: object) -> object:
    """JSON has lists where frozen values have tuples."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(one) for key, one in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def _without_path(url: str) -> str:
    """The address of a webhook is often its key."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/..."
