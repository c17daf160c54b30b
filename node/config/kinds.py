"""The kinds of values that config.toml holds, and what each says when it is something else."""

import difflib
import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, TypeAlias
from zoneinfo import available_timezones

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationInfo

SENDER = "sender"  # the destination whose AE title is the one that brought the series
MEASURES = ("gap_mm", "instances", "tilt_degrees")  # of a stack; other `match` keys are keywords
# Values of these representations are no text and no number: a route cannot test them.
UNTESTABLE = frozenset({"SQ", "OB", "OD", "OF", "OL", "OV", "OW", "UN"})

ABOVE_ZERO = "a number above 0"
ZERO_OR_MORE = "a number, 0 or more"
AE_TITLE = "1-16 ASCII characters without backslash or control characters"
AE_TITLES = "a list of AE titles"
HOST = "a host name or an address"
NAME = "1-64 letters, digits, dots, hyphens or underscores"
NETWORK = 'a network as "10.1.0.0/16"'
CONDITION = "a value, a list of values, or a table of min, max, regex, has"

Network: TypeAlias = IPv4Network | IPv6Network
Scalar: TypeAlias = str | int | float


def is_scalar(value: object) -> bool:
    """A text or a number; TOML's booleans and dates are neither."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def near(word: str, words: Iterable[str]) -> str:
    """The end of a sentence that proposes the word that was probably meant."""
    found = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _ae_title(text: str) -> str:
    # PS3.5 6.2: leading and trailing spaces of an AE do not count.
    title = text.strip(" ")
    fits = 1 <= len(title) <= 16 and title.isascii() and title.isprintable()
    if not fits or "\\" in title:
        raise ValueError(AE_TITLE)
    return title


def _network(text: object) -> Network:
    try:
        if isinstance(text, str):
            return ip_network(text)
    except ValueError:
        pass
    try:
        meant = ip_network(str(text), strict=False)
    except ValueError:
        raise ValueError(NETWORK) from None
    raise ValueError(f'a network without host bits, as "{meant}"')


def _path(text: object, info: ValidationInfo) -> Path:
    if not isinstance(text, str) or not text:
        raise ValueError("a path")
    return (_folder(info) / Path(text).expanduser()).resolve()


def _folder(info: ValidationInfo) -> Path:
    """The folder of the file that is read."""
    assert info.context is not None
    folder: Path = info.context["folder"]
    return folder


def _path_or_none(text: object, info: ValidationInfo) -> Path | None:
    return None if text == "" else _path(text, info)


def _database(url: str, info: ValidationInfo) -> str:
    """A relative SQLite path is relative to the file, like every other path of it."""
    prefix = "sqlite:///"
    name = url.removeprefix(prefix)
    if url.startswith(prefix) and name and not name.startswith((":", "file:", "/")):
        return f"{prefix}{_folder(info) / name}"
    if url and not re.match(r"^(sqlite|postgresql)(\+\w+)?://", url):
        raise ValueError(
            'an SQLAlchemy URL of SQLite or PostgreSQL, or "" for SQLite in the folder'
        )
    return url


def _timezone(name: str) -> str:
    if name and name not in available_timezones():
        raise ValueError(
            'a time zone as "Europe/Berlin", or "" for the system\'s'
            + near(name, available_timezones())
        )
    return name


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"a regular expression; {error}") from None
    return pattern


def _match_key(key: str) -> str:
    if key in MEASURES:
        return key
    from pydicom.datadict import dictionary_VR, keyword_dict  # 0.3 s, for routes alone

    if key not in keyword_dict:
        measures = ", ".join(MEASURES)
        raise ValueError(
            f"unknown keyword '{key}'; allowed: a keyword of the DICOM dictionary, {measures}"
            + near(key, [*keyword_dict, *MEASURES])
        )
    if dictionary_VR(keyword_dict[key])[:2] in UNTESTABLE:
        raise ValueError(f"'{key}' holds no text or number that could be tested")
    return key


def _rising(seconds: tuple[float, float]) -> tuple[float, float]:
    if seconds[0] > seconds[1]:
        raise ValueError("[first, longest], the first at most the longest")
    return seconds


def _name_of_destination(name: str) -> str:
    if name == SENDER:
        raise ValueError(f"any name but '{SENDER}', which means the AE that sent the series")
    return name


def not_yet(_: object) -> None:
    """The validator of a key that a later release will take."""
    raise ValueError("not yet supported")


AeTitle = Annotated[str, AfterValidator(_ae_title)]
AeTitleOrEmpty = Annotated[str, AfterValidator(lambda text: _ae_title(text) if text else "")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
DestinationName = Annotated[Name, AfterValidator(_name_of_destination)]
Host = Annotated[str, StringConstraints(pattern=r"^[^\s/]{1,253}$")]
SomeNetwork = Annotated[Network, BeforeValidator(_network)]
FolderPath = Annotated[Path, BeforeValidator(_path)]
OptionalPath = Annotated[Path | None, BeforeValidator(_path_or_none)]
DatabaseUrl = Annotated[str, AfterValidator(_database)]
TimezoneName = Annotated[str, AfterValidator(_timezone)]
Regex = Annotated[str, AfterValidator(_regex)]
MatchKey = Annotated[str, AfterValidator(_match_key)]
Positive = Annotated[float, Field(gt=0)]
RisingSeconds = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]
