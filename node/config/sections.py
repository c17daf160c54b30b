"""The tables of config.toml as frozen values, complete with their defaults."""

import difflib
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import datetime, time, tzinfo
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from inference.descriptions import READINGS
from inference.request import (
    AcrossMissing,
    ModelSpec,
    ObjectKind,
    Output,
    Parameters,
    Produces,
    ReportForm,
    SliceThickness,
    Undersampled,
)
from node.errors import UsageError

SENDER = "sender"  # the destination whose AE title is the one that brought the series
MEASURES = ("gap_mm", "instances", "tilt_degrees")  # of a stack
READ = tuple(READINGS)  # from the words of several attributes; other `match` keys are keywords
# Values of these representations are no text and no number: a route cannot test them.
UNTESTABLE = frozenset({"SQ", "OB", "OD", "OF", "OL", "OV", "OW", "UN"})

AE_TITLE = "1-16 ASCII characters without backslash or control characters"
WHERE_IT_STANDS = '"file:PATH" or "env:VARIABLE", where the password stands, or ""'
NETWORK = 'a network as "10.1.0.0/16"'
CONDITION = "a value, a list of values, or a table of min, max, regex, has"

ADDRESS = 'an address as "https://chat.example.org/hook"'
MAIL_ADDRESS = 'a mail address as "pacs@example.org"'
URL = r"https?://[^\s/:?#][^\s/?#]*([/?]\S*)?"
SYSLOG = r"(udp|tls)://[^\s/:?#@]+(:\d{1,5})?"
# A placeholder for a UID stands in it, so that a link of a page is never any other address.
VIEWER = r"^(https?://[^\s{}\"'<>]+\{study_uid\}([^\s{}\"'<>]|\{series_uid\})*)?$"
VIEWER_ADDRESS = (
    'an address with {study_uid}, as "https://ohif/viewer?StudyInstanceUIDs={study_uid}"'
)
ORIGIN = r"https?://[^\s/?#@*]+"
ORIGIN_ADDRESS = 'an origin as "https://ohif.example.org", without a path'
WEB_ADDRESS = 'as "https://pacs.example.org/dicom-web"'
SYSLOG_ADDRESS = 'an address as "tls://audit.example.org:6514" or "udp://10.1.2.3:514"'
MAIL = r"[^@\s<>,]+@[^@\s<>,]+"
# In clear only on this machine, for a test.
PROVIDER = r"(https://[^\s/?#@]+|http://(localhost|127\.0\.0\.1)(:\d+)?)(/[^\s?#]*)?"
PROVIDER_ADDRESS = 'an address as "https://sso.example.org/realms/hospital"'
OIDC_CALLBACK = "/login/oidc/callback"
RoleName = Literal["viewer", "operator", "administrator"]
ROLE_NAMES = ", ".join(get_args(RoleName))
CLOCK = r"([01]\d|2[0-3]):[0-5]\d"

Network: TypeAlias = IPv4Network | IPv6Network
Scalar: TypeAlias = str | int | float

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)
COMMITMENT = "a table of ae_title, host, port, give_up_hours, wait_seconds; { } = all as they are"
REPORT_ADDRESS = "a table of ae_title, host, port, tls"
HOURS = 'two times as "07:00-18:00"; "" = day and night'
Event = Literal[
    "job_held",
    "job_failed",
    "delivery_held",
    "delivery_unconfirmed",
    "result_superseded",
    "destination_down",
    "destination_up",
    "sender_silent",
    "selftest_failed",
    "disk_low",
    "certificate_expires",
]
EVENTS: tuple[Event, ...] = get_args(Event)

LEAST_FACTOR, MOST_FACTOR = 2, 10
# Tables, and keys of [node], that a running node takes over when it reads the file again.
RELOADABLE = ("destinations", "routes", "completion", "delivery", "senders", "notify", "selftest")
RELOADABLE_NODE = ("allowed_ae_titles", "allowed_networks")
RELOADABLE_TLS = ("required", "ae_titles")
ABOUT_THE_FILE = ("path", "environment")  # no tables of it


def near(word: str, words: Iterable[str]) -> str:
    """The end of a sentence that proposes the word that was probably meant."""
    matches = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


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


def _key_password(text: str, info: ValidationInfo) -> str:
    """The place of a password, with an absolute path; in the file itself none may stand."""
    kind, _, place = text.partition(":")
    if kind == "file" and place:
        return f"file:{_path(place, info)}"
    if text == "" or (kind == "env" and re.fullmatch(r"\w+", place, re.ASCII)):
        return text
    raise ValueError(WHERE_IT_STANDS)


def _folder(info: ValidationInfo) -> Path:
    """The folder of the file that is read."""
    assert info.context is not None
    folder: Path = info.context["folder"]
    return folder


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


@cache
def _timezones() -> set[str]:
    return available_timezones()  # reads every file in the system's folder of them


def _timezone(name: str) -> str:
    if name and name not in _timezones():
        meant = near(name, _timezones())
        raise ValueError(f'a time zone as "Europe/Berlin", or "" for the system\'s{meant}')
    return name


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"a regular expression; {error}") from None
    return pattern


def _match_key(key: str) -> str:
    if key in (*MEASURES, *READ):
        return key
    from pydicom.datadict import dictionary_VR, keyword_dict  # 0.3 s, for routes alone

    if key not in keyword_dict:
        own = (*MEASURES, *READ)
        raise ValueError(
            f"unknown keyword '{key}'; allowed: a keyword of the DICOM dictionary, {', '.join(own)}"
            + near(key, [*keyword_dict, *own])
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


def _tls_of_destination(given: object) -> object:
    """`true` is a table without a key, `false` none."""
    if isinstance(given, bool):
        return {} if given else None
    return given


def _matching(pattern: str, sentence: str) -> AfterValidator:
    """Refuse a text that is not of this form; the sentence says the form."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(sentence)
        return text

    return AfterValidator(check)


# A type of the file: what it allows, and the sentence that says so where a value does not fit.
AboveZero = Annotated[float, Field(gt=0, description="a number above 0")]
ZeroOrMore = Annotated[float, Field(ge=0, description="a number, 0 or more")]
Share = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
CountOrZero = Annotated[int, Field(ge=0, description="a whole number, or 0 for no limit")]
Flag = Annotated[bool, Field(description="true or false")]
Port = Annotated[int, Field(ge=1, le=65535, description="integer 1-65535")]
AnyPort = Annotated[int, Field(ge=0, le=65535, description="integer 0-65535")]
Name = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="1-64 letters, digits, dots, hyphens or underscores",
    ),
]
NodeName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9._-]{0,40}$", description="1-40 letters, digits and . - _"),
]
DestinationName = Annotated[Name, AfterValidator(_name_of_destination)]
Host = Annotated[str, Field(pattern=r"^[^\s/]{1,253}$", description="a host name or an address")]
AeTitle = Annotated[str, AfterValidator(_ae_title), Field(description=AE_TITLE)]
AeTitleOrEmpty = Annotated[
    str,
    AfterValidator(lambda text: _ae_title(text) if text else ""),
    Field(description=AE_TITLE),
]
AeTitles = Annotated[tuple[AeTitle, ...], Field(strict=False, description="a list of AE titles")]
ObjectKinds = Annotated[
    tuple[ObjectKind, ...],
    Field(
        strict=False, description=f"a list of kinds of objects: {', '.join(get_args(ObjectKind))}"
    ),
]
SomeNetwork = Annotated[Network, BeforeValidator(_network, json_schema_input_type=str)]
Networks = Annotated[tuple[SomeNetwork, ...], Field(strict=False, description=NETWORK)]
FolderPath = Annotated[
    Path, BeforeValidator(_path, json_schema_input_type=str), Field(description="a path")
]
OptionalPath = Annotated[
    Path | None,
    BeforeValidator(
        lambda text, info: None if text == "" else _path(text, info), json_schema_input_type=str
    ),
    Field(description='a path, or ""'),
]
KeyPassword = Annotated[str, AfterValidator(_key_password), Field(description=WHERE_IT_STANDS)]
DatabaseUrl = Annotated[
    str, AfterValidator(_database), Field(description='an SQLAlchemy URL, or ""')
]
TimezoneName = Annotated[
    str, AfterValidator(_timezone), Field(description='a time zone as "Europe/Berlin", or ""')
]
RisingSeconds = Annotated[
    tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]],
    AfterValidator(_rising),
    Field(strict=False, description="[first, longest], two numbers above 0"),
]
CERTIFICATES = "a list of names in certificates, or SHA-256 fingerprints of them"
CertificateName = Annotated[
    str, Field(pattern=r"^\S(.{0,253}\S)?$", description="a name in a certificate")
]
CertificateNames = Annotated[tuple[CertificateName, ...], Field(strict=False)]
Regex = Annotated[str, AfterValidator(_regex)]
MatchKey = Annotated[str, AfterValidator(_match_key)]
Url = Annotated[str, _matching(URL, ADDRESS)]
UrlOrEmpty = Annotated[str, _matching(f"({URL})?", ADDRESS)]
Origin = Annotated[str, _matching(ORIGIN, ORIGIN_ADDRESS)]
Mail = Annotated[str, _matching(MAIL, MAIL_ADDRESS)]
MailOrEmpty = Annotated[str, _matching(f"({MAIL})?", MAIL_ADDRESS)]
HoursOrEmpty = Annotated[str, _matching(f"({CLOCK}-{CLOCK})?", HOURS)]
Header = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9-]{0,64}$", description="the name of an HTTP header, or empty"),
]


class Section(BaseModel):
    """One table of the file. A field's description says what is allowed; errors quote it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


class Node(Section):
    """Names and ports of the node, and peers that it lets in."""

    ae_title: AeTitle = "MIDSLICE"
    name: NodeName = ""
    host: Host = "0.0.0.0"  # noqa: S104 - its peers are other machines
    port: AnyPort = 11112
    allowed_ae_titles: AeTitles = ()
    allowed_networks: Networks = ()
    max_associations: int = Field(50, ge=1, le=1000, description="integer 1-1000")
    max_associations_per_peer: int = Field(
        0, ge=0, le=1000, description="integer 0-1000; 0 is half of max_associations"
    )
    idle_seconds: AboveZero = 900.0
    message_seconds: AboveZero = 30.0
    direct_receive: bool = True
    shutdown_seconds: ZeroOrMore = 30.0
    lost_seconds: float = Field(60.0, ge=2.0, le=100.0, description="number 2-100")
    timezone: TimezoneName = ""

    @property
    def zone(self) -> tzinfo | None:
        """The zone of the times that people and results see; None is the system's own."""
        return ZoneInfo(self.timezone) if self.timezone else None

    @property
    def lets_anybody_in(self) -> bool:
        """True where any AE title from any network may send: whoever reaches the port."""
        is_everywhere = self.host in ("0.0.0.0", "::")  # noqa: S104 - it asks, and binds nothing
        return is_everywhere and not (self.allowed_ae_titles or self.allowed_networks)


class Storage(Section):
    """Places of files and rows, and how long they stay."""

    # Defaults of paths are text as in a file, and validated as that is.
    folder: FolderPath = "var"  # type: ignore[assignment]
    database: DatabaseUrl = ""
    secret_file: OptionalPath = ""  # type: ignore[assignment]
    min_free_gb: ZeroOrMore = 5.0
    keep_days: ZeroOrMore = 7.0
    keep_unrouted_days: ZeroOrMore = 1.0
    purge_early: bool = True
    keep_audit_days: ZeroOrMore = 0.0
    scrub_days: ZeroOrMore = 30.0

    @property
    def min_free_bytes(self) -> int:
        return int(self.min_free_gb * 1e9)


class Completion(Section):
    """Limits after which an arrival is complete, and of what may come of arrivals in a day."""

    quiet_seconds: AboveZero = 30.0
    open_association_seconds: ZeroOrMore = 120.0
    ask: str = Field("", description='the name of a destination, or ""')
    ask_seconds: ZeroOrMore = 300.0
    results_per_study: CountOrZero = 100
    reruns: CountOrZero = 20


class Inference(Section):
    """The device of the models, and what they may take of it."""

    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description='"auto", "cpu", "cuda" or "cuda:1"'
    )
    workers: int = Field(1, ge=1, le=64, description="integer 1-64")
    job_minutes: AboveZero = 30.0
    memory_gb: ZeroOrMore = 0.0
    overtaking: bool = True
    ahead_gb: ZeroOrMore = 1.0
    executor: Literal["process", "ray"] = "process"
    address: str = Field(
        "auto", pattern=r"^(auto|[^\s:/]+:\d+)$", description='"auto" or "host:port" of a Ray head'
    )
    worker_cpus: float = Field(1.0, gt=0, le=1024, description="number above 0")
    worker_gpus: float = Field(0.0, ge=0, le=64, description="number from 0")
    shared_folder: bool = True


class Tls(Section):
    """The port for DICOM over TLS; there is one where a certificate is named."""

    port: AnyPort = 2762
    certificate: OptionalPath = ""  # type: ignore[assignment]
    key: OptionalPath = ""  # type: ignore[assignment]
    key_password: KeyPassword = ""
    authorities: OptionalPath = ""  # type: ignore[assignment]
    crl: OptionalPath = ""  # type: ignore[assignment]
    verify_clients: Flag = True
    required: Flag = False
    ae_titles: Mapping[AeTitle, CertificateNames] = Field(
        default_factory=dict, description=f"AE titles, each with {CERTIFICATES}"
    )

    @model_validator(mode="after")
    def _complete(self) -> "Tls":
        if self.certificate is None and (self.required or self.ae_titles):
            raise ValueError("required and ae_titles need a certificate")
        if self.crl is not None and self.authorities is None:
            raise ValueError("crl needs the authorities whose revocation lists it holds")
        if self.certificate is not None and self.verify_clients and self.authorities is None:
            raise ValueError("authorities is missing: the file by which peers are verified")
        if self.ae_titles and not self.verify_clients:
            raise ValueError("ae_titles needs verify_clients = true")
        return self


class DestinationTls(Section):
    """TLS towards a destination; what is empty is that of [tls]."""

    certificate: OptionalPath = ""  # type: ignore[assignment]
    key: OptionalPath = ""  # type: ignore[assignment]
    key_password: KeyPassword = ""
    authorities: OptionalPath = ""  # type: ignore[assignment]
    crl: OptionalPath = ""  # type: ignore[assignment]
    server_name: str = Field(
        "", pattern=r"^[^\s/]{0,253}$", description='the name in its certificate, or ""'
    )
    fingerprint: str = Field(
        "",
        pattern=r"^(([0-9A-Fa-f]{2}:?){32})?$",
        description='the SHA-256 fingerprint of its certificate, or ""',
    )

    def completed(self, tls: Tls) -> "DestinationTls":
        """This, with the files of [tls] where it names none."""
        update: dict[str, object] = {}
        if self.certificate is None:
            update |= {"certificate": tls.certificate, "key": tls.key}
            update["key_password"] = tls.key_password
        if self.authorities is None and not self.fingerprint:
            update |= {"authorities": tls.authorities, "crl": self.crl or tls.crl}
        return self.model_copy(update=update)


TLS_OF_PEER = "true, or a table of what differs from [tls]"
TlsOfPeer = Annotated[
    DestinationTls | None,
    BeforeValidator(_tls_of_destination, json_schema_input_type=bool | DestinationTls),
]


class DeliverySettings(Section):
    """Times at which a destination that does not answer is tried again."""

    retry_seconds: RisingSeconds = (30.0, 600.0)
    give_up_hours: AboveZero = 24.0
    echo_minutes: ZeroOrMore = 5.0


class Oidc(Section):
    """The OpenID Connect provider at which people log in; its claims say which role they have."""

    issuer: Annotated[str, _matching(PROVIDER, PROVIDER_ADDRESS)]
    client_id: str = Field(min_length=1, description="the name of this client at the provider")
    client_secret_file: OptionalPath = ""  # type: ignore[assignment]
    public_url: Url
    roles: Mapping[str, RoleName] = Field(
        min_length=1, description=f"a table of values of the claim, each with one of {ROLE_NAMES}"
    )
    roles_claim: str = Field("realm_access.roles", min_length=1, description="a claim")
    name_claim: str = Field("preferred_username", min_length=1, description="a claim")
    scopes: tuple[str, ...] = Field(
        ("openid", "profile"), strict=False, description='a list of scopes with "openid"'
    )
    button: str = Field(
        "Log in with single sign-on", pattern=r"^[^\x00-\x1f]{1,60}$", description="1-60 characters"
    )
    authorities: OptionalPath = ""  # type: ignore[assignment]
    crl: OptionalPath = ""  # type: ignore[assignment]
    local_login: Flag = True

    @model_validator(mode="after")
    def _complete(self) -> "Oidc":
        if "openid" not in self.scopes:
            raise ValueError('scopes: "openid" is missing')
        return self

    @property
    def redirect_uri(self) -> str:
        """The address to which the provider sends the browser back."""
        return f"{self.public_url.rstrip('/')}{OIDC_CALLBACK}"


class Web(Section):
    """Address of the pages and of the REST API, and how long somebody stays logged in."""

    host: Host = "127.0.0.1"
    port: AnyPort = 8080
    session_hours: AboveZero = 12.0
    idle_minutes: AboveZero = 60.0
    certificate: OptionalPath = ""  # type: ignore[assignment]
    key: OptionalPath = ""  # type: ignore[assignment]
    key_password: KeyPassword = ""
    trusted_proxies: Networks = ()
    user_header: Header = ""
    role_header: Header = ""
    viewer_url: str = Field("", pattern=VIEWER, description=VIEWER_ADDRESS)
    dicomweb_origins: tuple[Origin, ...] = Field(
        (), strict=False, description="a list of origins of viewers"
    )
    oidc: Oidc | None = Field(None, description="a table, written [web.oidc]")

    @property
    def takes_passwords(self) -> bool:
        """True where people of the node's own may log in."""
        return self.oidc is None or self.oidc.local_login

    @model_validator(mode="after")
    def _complete(self) -> "Web":
        if self.key is not None and self.certificate is None:
            raise ValueError("certificate is missing: the pages are served with TLS by both")
        return self


class Notify(Section):
    """Notices through webhooks and by mail, never with a patient attribute."""

    events: tuple[Event, ...] = Field(
        EVENTS, strict=False, description=f"a list of {', '.join(EVENTS)}"
    )
    webhooks: tuple[Url, ...] = Field((), strict=False, description="a list of addresses")
    mail_to: tuple[Mail, ...] = Field((), strict=False, description="a list of mail addresses")
    mail_from: MailOrEmpty = Field("", description="a mail address")
    smtp_host: str = Field(
        "", pattern=r"^[^\s/]{0,253}$", description='a host name or an address, or ""'
    )
    smtp_port: Port = 25
    smtp_security: Literal["none", "starttls", "tls"] = Field(
        "starttls", description='"none", "starttls" or "tls"'
    )
    smtp_user: str = Field("", description='a name, or ""')
    smtp_password_file: OptionalPath = ""  # type: ignore[assignment]
    link: UrlOrEmpty = Field("", description='the address of the pages, or ""')
    retry_seconds: RisingSeconds = (30.0, 900.0)
    give_up_hours: AboveZero = 24.0
    disk_days: ZeroOrMore = 3.0

    @model_validator(mode="after")
    def _complete(self) -> "Notify":
        if self.mail_to and not (self.smtp_host and self.mail_from):
            raise ValueError("mail_to needs smtp_host and mail_from")
        return self


class Selftest(Section):
    """A made series on the whole way, by itself every so often."""

    every_hours: ZeroOrMore = 0.0
    destination: str = Field("", description='the name of a destination, or ""')
    model: str = Field("midslice", description="the name of a model")
    minutes: AboveZero = 10.0


class ReportAddress(Section):
    """The address to which a sender's reports of storage commitment go."""

    ae_title: AeTitleOrEmpty = ""  # empty = the sender's
    host: Host
    port: Port
    tls: TlsOfPeer = Field(None, description=TLS_OF_PEER)

    def completed(self, tls: Tls) -> "ReportAddress":
        """This, with the files of [tls] where its own TLS names none."""
        return self.model_copy(update={"tls": self.tls.completed(tls)}) if self.tls else self


class ExpectedSender(Section):
    """A peer that is expected to send, or that may ask the node for storage commitment."""

    ae_title: AeTitle
    hours: HoursOrEmpty = Field("", description=HOURS)
    days: tuple[Day, ...] = Field(DAYS, strict=False, description=f"a list of {', '.join(DAYS)}")
    silent_hours: ZeroOrMore = 2.0  # 0: it may be silent for ever
    commitment: ReportAddress | None = Field(None, description=REPORT_ADDRESS)

    def is_open(self, moment: datetime) -> bool:
        """True where the peer is expected to send at this local time."""
        if not self.hours:
            return DAYS[moment.weekday()] in self.days
        first, last = (time.fromisoformat(part) for part in self.hours.split("-"))
        now = moment.time().replace(tzinfo=None)
        if first <= last:
            return DAYS[moment.weekday()] in self.days and first <= now < last
        # Over midnight: the morning belongs to the day before.
        before = DAYS[(moment.weekday() - 1) % 7]
        return (DAYS[moment.weekday()] in self.days and now >= first) or (
            before in self.days and now < last
        )


class Commitment(Section):
    """The AE that a destination is asked for storage commitment at; its own where it is empty."""

    ae_title: AeTitleOrEmpty = ""
    host: Host | None = Field(None, description="a host name or an address")
    port: Port | None = Field(None, description="integer 1-65535")
    give_up_hours: AboveZero = 24.0  # then C-FIND has to prove it
    wait_seconds: ZeroOrMore = 10.0  # the association stays open so long for the report


# What a DICOMweb destination needs in place of an address for DIMSE.
OF_DIMSE, OF_WEB = ("ae_title", "host", "port"), ("kind", "url")
WEB_ONLY = ("url", "token_file", "user", "password_file")


def _required_by_kind(schema: dict[str, Any]) -> None:
    """In the JSON schema: an address for DIMSE, or kind and url."""
    schema["required"] = [name for name in schema["required"] if name not in OF_DIMSE]
    web = {"properties": {"kind": {"const": "dicomweb"}}, "required": [*OF_WEB]}
    schema["anyOf"] = [{"required": [*OF_DIMSE]}, web]


class Destination(Section):
    """A peer that gets results: an AE, or with kind "dicomweb" a web service that takes STOW-RS."""

    model_config = ConfigDict(json_schema_extra=_required_by_kind)

    name: DestinationName
    kind: Literal["dimse", "dicomweb"] = Field("dimse", description='"dimse" or "dicomweb"')
    ae_title: AeTitle
    host: Host
    port: Port
    url: UrlOrEmpty = ""
    token_file: OptionalPath = ""  # type: ignore[assignment]
    user: str = Field("", description='a name, or ""')
    password_file: OptionalPath = ""  # type: ignore[assignment]
    sends_as: AeTitles = ()
    calling_ae_title: AeTitleOrEmpty = ""
    answer_seconds: AboveZero = 60.0
    associations: int = Field(1, ge=1, le=16, description="integer 1-16")
    leave_out: ObjectKinds = ()  # what it is never offered of a result
    tls: TlsOfPeer = Field(None, description=TLS_OF_PEER)
    commitment: Commitment | None = Field(None, description=COMMITMENT)

    @model_validator(mode="before")
    @classmethod
    def _address_of_url(cls, given: Any) -> Any:
        """Host and port of a web service are those of its URL; its AE title is one it sends as."""
        if not isinstance(given, dict) or given.get("kind") != "dicomweb":
            return given
        url = given.get("url")
        if not isinstance(url, str) or not re.fullmatch(URL, url):
            raise ValueError(f'kind "dicomweb" needs a url, {WEB_ADDRESS}')
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise ValueError(f"url: {WEB_ADDRESS}") from None
        if "@" in parts.netloc:
            raise ValueError("url: without user and password; they have keys of their own")
        title = str(given.get("name", "")).upper()[:16]
        return {"ae_title": title, "host": parts.hostname or "", "port": port, **given}

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "Destination":
        if self.kind == "dimse":
            if wrong := [name for name in WEB_ONLY if getattr(self, name)]:
                raise ValueError(f'{wrong[0]} is for kind = "dicomweb"')
            return self
        if self.commitment is not None:
            raise ValueError("commitment is for DIMSE; a web service is not asked for it")
        if self.token_file is not None and self.user:
            raise ValueError("token_file or user, one of them")
        if bool(self.user) != (self.password_file is not None):
            raise ValueError("user and password_file belong together")
        if self.tls is not None and not self.url.startswith("https:"):
            raise ValueError("tls needs a url that begins with https")
        return self

    def address(self, ae_title: str) -> tuple[str, str, int, str, DestinationTls | None]:
        """AE title, host and port; what a node of that AE title calls itself there; and TLS."""
        return self.ae_title, self.host, self.port, self.calling_ae_title or ae_title, self.tls

    def commitment_address(self, ae_title: str) -> tuple[str, str, int, str, DestinationTls | None]:
        """The same of the AE that is asked for storage commitment."""
        own = self.address(ae_title)
        if self.commitment is None:
            return own
        title, host, port = self.commitment.ae_title, self.commitment.host, self.commitment.port
        return title or own[0], host or own[1], port or own[2], *own[3:]

    @property
    def place(self) -> str:
        """Where it is, for a person."""
        return self.url or f"{self.ae_title} at {self.host}:{self.port}"

    @property
    def reporting_ae_titles(self) -> frozenset[str]:
        """The calling AE titles under which it may report; none where it is not asked."""
        if self.commitment is None:
            return frozenset()
        titles = (self.ae_title, *self.sends_as, self.commitment.ae_title)
        return frozenset(title for title in titles if title)


class Condition(Section):
    """A test of one attribute or measure; everything that is set must hold."""

    values: tuple[Scalar, ...] = Field((), alias="*")  # any of; written as a value or a list
    min: float | None = None
    max: float | None = None
    regex: Regex | None = None
    has: Scalar | None = None

    @model_validator(mode="before")
    @classmethod
    def _written_short(cls, given: Any) -> Any:
        if isinstance(given, cls):
            return given
        if isinstance(given, dict):
            if not given:
                raise ValueError(CONDITION)
            return given
        values = given if isinstance(given, list) else [given]
        # TOML's booleans and dates are no text and no number.
        if not values or not {type(value) for value in values} <= {str, int, float}:
            raise ValueError(CONDITION)
        return {"*": tuple(values)}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """As a person may write it: a value, a list of them, or the table."""
        table = handler.resolve_ref_schema(handler(core))
        values = table["properties"].pop("*")["items"]
        several = {"type": "array", "items": values, "minItems": 1}
        return {"description": CONDITION, "anyOf": [values, several, {**table, "minProperties": 1}]}

    @model_validator(mode="after")
    def _in_order(self) -> "Condition":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("a table whose min is at most its max")
        return self


class Route(Section):
    """A rule from an arrival to a model and to destinations."""

    name: Name
    called_ae_title: AeTitleOrEmpty = ""
    calling_ae_title: AeTitleOrEmpty = ""
    match: Mapping[MatchKey, Condition] = Field(
        default_factory=dict, description="a table of attribute keywords"
    )
    model: str = Field(description="the name of a model")
    factor: int | None = Field(
        Parameters.factor, ge=LEAST_FACTOR, le=MOST_FACTOR, description="integer 2-10"
    )
    target_spacing_mm: float | None = Field(
        Parameters.target_spacing_mm, gt=0, description="a number above 0"
    )
    include_received: Flag = Output.include_received
    accept_derived: Flag = Output.accept_derived
    despite_thin: Flag = False
    slice_thickness: SliceThickness = Field(
        Output.slice_thickness, description='"source" or "spacing"'
    )
    across_missing: AcrossMissing = Field(Output.across_missing, description='"hold" or "leave"')
    most_gap_mm: AboveZero = Output.most_gap_mm
    undersampled: Undersampled = Field(Output.undersampled, description='"process" or "hold"')
    classical_below: Share = Output.classical_below
    hold_below: Share = Output.hold_below
    overlay: Flag = Output.overlay
    presentation_state: Flag = Output.presentation_state
    error_map: Flag = Output.error_map
    accept_children: Flag = Output.accept_children
    max_findings: int = Field(Output.max_findings, ge=1, le=100, description="integer 1-100")
    report: ReportForm = Field(Output.report, description='"3d" or "2d"')
    priority: int = Field(5, ge=1, le=9, description="integer 1-9")
    destinations: tuple[str, ...] = Field(
        strict=False, description="a list of names of destinations; [] is shadow mode"
    )

    @property
    def makes_slices(self) -> bool:
        """True where it says how many slices its model makes; other models make none."""
        return self.factor is not None or self.target_spacing_mm is not None

    @property
    def parameters(self) -> Parameters:
        """The slices that the model is asked for."""
        return Parameters(**self._of(Parameters))

    @property
    def output(self) -> Output:
        """The form of the derived series; its label is the stack's."""
        return Output(**self._of(Output))

    @property
    def options(self) -> dict[str, object]:
        """Everything that a job keeps of its route; what else a job keeps is its stack's."""
        return {**self._of(Parameters), **self._of(Output)}

    def _of(self, kind: type[Parameters] | type[Output]) -> dict[str, Any]:
        names = (field.name for field in fields(kind) if field.name in Route.model_fields)
        return {name: getattr(self, name) for name in names}


# What a route says to a model that makes slices, and to no other.
SLICE_OPTIONS = (
    *("factor", "target_spacing_mm", "include_received", "accept_derived", "despite_thin"),
    *("slice_thickness", "across_missing", "most_gap_mm", "undersampled", "classical_below"),
    *("hold_below", "overlay", "presentation_state", "error_map"),
)
# What it says to a model that judges what it sees.
JUDGING_OPTIONS = ("accept_children",)
# What it says to a model of findings alone.
FINDING_OPTIONS = ("max_findings", "report")


class ModelEntry(Section):
    """A site's own model: an importable class, its weights by path and SHA-256."""

    name: Name
    class_path: str = Field(
        alias="class",
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description='an importable class as "package.module:Class"',
    )
    weights: OptionalPath = ""  # type: ignore[assignment]
    weights_sha256: str = Field(
        "", pattern=r"^([0-9a-f]{64})?$", description="64 hexadecimal digits, lower case"
    )
    produces: Produces = Field("slices", description='"slices", "mask", "scores" or "findings"')

    @property
    def spec(self) -> ModelSpec:
        """The name, class and weights by which a request asks for it."""
        return ModelSpec(
            self.name, self.class_path, self.weights, self.weights_sha256, self.produces
        )


class Audit(Section):
    """The audit record repository that DICOM audit messages go to; none where it is empty."""

    syslog: Annotated[str, _matching(f"({SYSLOG})?", SYSLOG_ADDRESS)] = ""
    authorities: OptionalPath = ""  # type: ignore[assignment]
    crl: OptionalPath = ""  # type: ignore[assignment]
    certificate: OptionalPath = ""  # type: ignore[assignment]
    key: OptionalPath = ""  # type: ignore[assignment]
    key_password: KeyPassword = ""


class Config(Section):
    """The whole file. Relative paths in it have become absolute."""

    path: Path
    environment: Mapping[str, str] = Field(default_factory=dict)  # variable by key that it sets
    node: Node
    tls: Tls
    storage: Storage
    completion: Completion
    inference: Inference
    delivery: DeliverySettings
    web: Web
    notify: Notify
    audit: Audit
    selftest: Selftest
    senders: tuple[ExpectedSender, ...] = ()
    destinations: tuple[Destination, ...] = ()
    routes: tuple[Route, ...] = ()
    models: tuple[ModelEntry, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> "Config":
        destinations = tuple(
            entry.model_copy(update={"tls": entry.tls.completed(self.tls)}) if entry.tls else entry
            for entry in self.destinations
        )
        senders = tuple(
            entry.model_copy(update={"commitment": entry.commitment.completed(self.tls)})
            if entry.commitment
            else entry
            for entry in self.senders
        )
        object.__setattr__(self, "destinations", destinations)  # frozen from here on
        object.__setattr__(self, "senders", senders)
        return self

    @property
    def tls_of_peers(self) -> Mapping[str, DestinationTls]:
        """TLS towards each peer that the node calls with it, by the place of its table."""
        named = {f'destination "{entry.name}".tls': entry.tls for entry in self.destinations}
        for entry in self.senders:
            if entry.commitment:
                named[f'sender "{entry.ae_title}".commitment.tls'] = entry.commitment.tls
        return {place: tls for place, tls in named.items() if tls is not None}

    @property
    def folder(self) -> Path:
        return self.storage.folder

    @property
    def node_id(self) -> str:
        """The name by which other nodes on the same storage know this one."""
        return f"{self.node.name or socket.gethostname()[:40]}/{self.node.ae_title}"

    @property
    def called_ae_titles(self) -> tuple[str, ...]:
        """Every AE title that the node answers to, its own first."""
        titles = [self.node.ae_title, *(route.called_ae_title for route in self.routes)]
        return tuple(dict.fromkeys(title for title in titles if title))

    def destination(self, name: str) -> Destination:
        for destination in self.destinations:
            if destination.name == name:
                return destination
        names = ", ".join(entry.name for entry in self.destinations) or "none is configured"
        raise UsageError(f"unknown destination '{name}'; there are: {names}")

    def route(self, name: str) -> Route:
        for route in self.routes:
            if route.name == name:
                return route
        names = ", ".join(entry.name for entry in self.routes) or "none is configured"
        raise UsageError(f"unknown route '{name}'; there are: {names}")

    def reloaded(self, read: "Config") -> "Config":
        """This configuration with everything of `read` that may change at run time."""
        changes: dict[str, object] = {name: getattr(read, name) for name in RELOADABLE}
        node = {name: getattr(read.node, name) for name in RELOADABLE_NODE}
        tls = {name: getattr(read.tls, name) for name in RELOADABLE_TLS}
        changes |= {
            "node": self.node.model_copy(update=node),
            "tls": self.tls.model_copy(update=tls),
        }
        return self.model_copy(update=changes)

    def needs_restart(self, read: "Config") -> Iterator[str]:
        """Key paths that differ in `read` and that only a restart can apply, as `node.port`."""
        would_be = self.reloaded(read)
        for table in (name for name in Config.model_fields if name not in ABOUT_THE_FILE):
            running, wanted = getattr(would_be, table), getattr(read, table)
            if isinstance(running, tuple):
                yield from [table] if running != wanted else []
                continue
            for key in type(running).model_fields:
                if getattr(running, key) != getattr(wanted, key):
                    yield f"{table}.{key}"
