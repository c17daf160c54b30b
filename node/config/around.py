"""The tables of config.toml around the work: who may look, who is told, what is tried by itself."""

import re
from datetime import datetime, time
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from node.config.base import Section
from node.config.kinds import (
    ABOVE_ZERO,
    AE_TITLE,
    HOST,
    NETWORK,
    ZERO_OR_MORE,
    AeTitle,
    Host,
    OptionalPath,
    RisingSeconds,
    SomeNetwork,
)

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)
HOURS = 'two times as "07:00-18:00"; "" = day and night'
HEADER = "the name of an HTTP header, or empty"
Event = Literal[
    "job_held",
    "job_failed",
    "delivery_held",
    "result_superseded",
    "destination_down",
    "destination_up",
    "sender_silent",
    "selftest_failed",
    "disk_low",
]
EVENTS: tuple[Event, ...] = get_args(Event)


def _hours(text: str) -> str:
    if text and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d", text):
        raise ValueError(HOURS)
    return text


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/:?#][^\s/?#]*([/?]\S*)?", text):
        raise ValueError('an address as "https://chat.example.org/hook"')
    return text


def _mail(text: str) -> str:
    if not re.fullmatch(r"[^@\s<>,]+@[^@\s<>,]+", text):
        raise ValueError('a mail address as "pacs@example.org"')
    return text


Url = Annotated[str, AfterValidator(_url)]
UrlOrEmpty = Annotated[str, AfterValidator(lambda text: _url(text) if text else "")]
Mail = Annotated[str, AfterValidator(_mail)]
MailOrEmpty = Annotated[str, AfterValidator(lambda text: _mail(text) if text else "")]
Header = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{0,64}$")]


class Web(Section):
    """Where the pages and the REST API listen, and how long somebody stays logged in."""

    host: Host = Field("127.0.0.1", description=HOST)
    port: int = Field(8080, ge=0, le=65535, description="integer 0-65535")
    session_hours: float = Field(12.0, gt=0, description=ABOVE_ZERO)
    idle_minutes: float = Field(60.0, gt=0, description=ABOVE_ZERO)
    trusted_proxies: tuple[SomeNetwork, ...] = Field((), strict=False, description=NETWORK)
    user_header: Header = Field("", description=HEADER)
    role_header: Header = Field("", description=HEADER)


class Sender(Section):
    """A peer that is expected to send, so that its silence means something."""

    ae_title: AeTitle = Field(description=AE_TITLE)
    hours: Annotated[str, AfterValidator(_hours)] = Field("", description=HOURS)
    days: tuple[Day, ...] = Field(DAYS, strict=False, description=f"a list of {', '.join(DAYS)}")
    silent_hours: float = Field(2.0, gt=0, description=ABOVE_ZERO)

    def is_open(self, moment: datetime) -> bool:
        """Whether the peer is expected to send at this local time."""
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


class Notify(Section):
    """Who is told of what: through webhooks and by mail, never with a patient attribute."""

    events: tuple[Event, ...] = Field(
        EVENTS, strict=False, description=f"a list of {', '.join(EVENTS)}"
    )
    webhooks: tuple[Url, ...] = Field((), strict=False, description="a list of addresses")
    mail_to: tuple[Mail, ...] = Field((), strict=False, description="a list of mail addresses")
    mail_from: MailOrEmpty = Field("", description="a mail address")
    smtp_host: Annotated[str, Field(pattern=r"^[^\s/]{0,253}$")] = Field(
        "", description='a host name or an address, or ""'
    )
    smtp_port: int = Field(25, ge=1, le=65535, description="integer 1-65535")
    smtp_security: Literal["none", "starttls", "tls"] = Field(
        "starttls", description='"none", "starttls" or "tls"'
    )
    smtp_user: str = Field("", description='a name, or ""')
    # Text as in a file, and validated as that is.
    smtp_password_file: OptionalPath = Field("", description='a path, or ""')  # type: ignore[assignment]
    link: UrlOrEmpty = Field("", description='the address of the pages, or ""')
    retry_seconds: RisingSeconds = Field(
        (30.0, 900.0), strict=False, description="[first, longest], two numbers above 0"
    )
    give_up_hours: float = Field(24.0, gt=0, description=ABOVE_ZERO)
    disk_days: float = Field(3.0, ge=0, description=ZERO_OR_MORE)

    @model_validator(mode="after")
    def _complete(self) -> "Notify":
        if self.mail_to and not (self.smtp_host and self.mail_from):
            raise ValueError("mail_to needs smtp_host and mail_from")
        return self


class Selftest(Section):
    """A made series on the whole way, by itself every so often."""

    every_hours: float = Field(0.0, ge=0, description=ZERO_OR_MORE)
    destination: str = Field("", description='the name of a destination, or ""')
    model: str = Field("midslice", description="the name of a model")
    minutes: float = Field(10.0, gt=0, description=ABOVE_ZERO)
