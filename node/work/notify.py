"""Notices: what is worth telling, to whom, by which channel, again until it is given up."""

import http.client
import json
import logging
import random
import shutil
import smtplib
import ssl
import threading
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from itertools import groupby
from urllib.parse import unquote, urlsplit

from node import certificates
from node.config import Config, Notify
from node.rules import backoff
from storage.database import Database
from storage.records import DAY, Message, MessageState, NodeRequest
from storage.site import nodes, notices, peers
from storage.site.nodes import fact_or_set

logger = logging.getLogger(__name__)

SECONDS = 15.0
MAIL = "mail"
OF_HTTP = (OSError, http.client.HTTPException, ValueError)
OF_SMTP = (OSError, smtplib.SMTPException, ValueError)

# More than so many of one kind at once are one message: nobody reads two hundred mails.
TOGETHER = 5
ALWAYS = ("attention", "test")  # of no use to switch off

SAMPLE_SECONDS = 900.0
GIGA = 1e9
FULL = "Only {free:.0f} GB are free: below the reserve of {reserve:g} GB nothing is accepted."
FILLS = (
    "{free:.0f} GB are free; at the present rate the reserve of {reserve:g} GB is reached in "
    "{days:.1f} days. Make room, or lower storage.keep_days."
)


class NotSent(Exception):
    """It did not work; the text says why, without what a server has answered in words."""


class SentToSome(NotSent):
    """It reached some of those it was for: another try would reach these once more."""


def channel_names(notify: Notify) -> tuple[str, ...]:
    """Every channel that is configured."""
    return (*_webhooks(notify), *([MAIL] if notify.mail_to else []))


def _webhooks(notify: Notify) -> dict[str, str]:
    """Addresses by channel. An address may hold a secret: in a name its host has to do."""
    return {
        f"webhook {number}, {urlsplit(url).hostname}"[:64]: url
        for number, url in enumerate(notify.webhooks, start=1)
    }


def send(
    notify: Notify, channel: str, subject: str, body: str, document: Mapping[str, object]
) -> None:
    """Send a notice through one channel; NotSent where it did not get there."""
    if channel not in channel_names(notify):
        raise NotSent(f"the channel {channel!r} is not configured any more")
    if channel == MAIL:
        _mail(notify, subject, body)
    else:
        _post(_webhooks(notify)[channel], {**document, "subject": subject, "text": body})


def _post(url: str, document: Mapping[str, object]) -> None:
    parts = urlsplit(url)
    assert parts.hostname is not None
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "midslice"}
    if parts.username is not None:
        words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {b64encode(words.encode()).decode()}"
    try:
        with closing(make(parts.hostname, parts.port, timeout=SECONDS)) as connection:
            connection.request("POST", path, json.dumps(document).encode(), headers)
            status = connection.getresponse().status
    except OF_HTTP as error:
        raise NotSent(f"{parts.hostname} cannot be reached: {type(error).__name__}") from error
    if not 200 <= status < 300:
        raise NotSent(f"{parts.hostname} answers {status}")


def _mail(notify: Notify, subject: str, body: str) -> None:
    mail = EmailMessage()
    mail["From"] = notify.mail_from
    mail["To"] = ", ".join(notify.mail_to)
    mail["Subject"] = subject
    mail["Date"] = formatdate(localtime=True)
    mail["Message-ID"] = make_msgid(domain=notify.mail_from.rpartition("@")[2])
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's holiday answers it
    mail.set_content(body)
    try:
        with _smtp(notify) as server:
            refused = server.send_message(mail)
    except OF_SMTP as error:
        code = getattr(error, "smtp_code", "")
        why = f"{type(error).__name__} {code}".strip()
        raise NotSent(f"{notify.smtp_host} did not take the mail: {why}") from error
    if refused:
        raise SentToSome(f"{notify.smtp_host} refused {len(refused)} of the addresses")


def _smtp(notify: Notify) -> smtplib.SMTP:
    """A session, encrypted and logged in as the configuration says."""
    context = ssl.create_default_context()
    place = (notify.smtp_host, notify.smtp_port)
    if notify.smtp_security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(*place, timeout=SECONDS, context=context)
    else:
        server = smtplib.SMTP(*place, timeout=SECONDS)
    try:
        if notify.smtp_security == "starttls":
            server.starttls(context=context)
        if notify.smtp_user:
            password = notify.smtp_password_file
            server.login(notify.smtp_user, password.read_text().strip() if password else "")
    except OF_SMTP:
        server.close()
        raise
    return server


# event -> (subject, text). A fact that is missing is empty.
TEMPLATES = {
    "job_held": ("A job is held", "Job {job} is held ({reason}). {sentence}"),
    "job_failed": ("A job failed", "Job {job} failed ({reason}). {sentence}"),
    "delivery_held": (
        "A delivery is held",
        "The delivery of job {job} to {destination} is held ({reason}). {sentence}",
    ),
    "delivery_unconfirmed": (
        "A delivery is not confirmed",
        "{destination} has stored the result of job {job}, but nothing proves that it keeps it. "
        "{sentence}",
    ),
    "result_superseded": (
        "A result was replaced",
        "A result of job {job} was replaced. {sentence}",
    ),
    "destination_down": (
        "A destination does not answer",
        "{destination} does not answer. {sentence} Deliveries to it wait.",
    ),
    "destination_up": ("A destination answers again", "{destination} answers again."),
    "sender_silent": (
        "A sender is silent",
        "{sender} has sent nothing since {since}, although it is expected to send. Is it running, "
        "and does it still send to this node?",
    ),
    "selftest_failed": ("The self-test failed", "Self-test {selftest} failed. {sentence}"),
    "disk_low": ("The disk is filling up", "{sentence}"),
    "certificate_expires": ("A certificate expires", "{sentence}"),
    "attention": ("Something needs attention", "{sentence}"),
    "test": (
        "A test",
        "This is a test notification, requested by {who}. If you can read this, the channel works.",
    ),
}


def subject_of(event: str, node: str, count: int = 1) -> str:
    """The subject of a mail, the title of a message; `count` of them in one."""
    title = TEMPLATES[event][0]
    return f"{node}: {title}" + (f" ({count} times)" if count > 1 else "")


def text_of(event: str, facts: Mapping[str, object]) -> str:
    """The text of one notice, in sentences."""
    text = TEMPLATES[event][1].format_map(defaultdict(str, facts))
    return " ".join(text.replace("()", "").split()).replace(" .", ".")


def body_of(event: str, facts_of: Sequence[Mapping[str, object]], link: str, most: int = 20) -> str:
    """The text of one message about one or several notices."""
    lines = [text_of(event, facts) for facts in facts_of[:most]]
    if len(facts_of) > most:
        lines.append(f"And {len(facts_of) - most} more.")
    if link:
        lines.append(link)
    return "\n\n".join(lines)


@dataclass
class Notifier:
    """The sweep over the outbox."""

    database: Database
    node_id: str
    node: str  # what people call this node
    settings: Notify
    now: Callable[[], float]
    jitter: random.Random = field(default_factory=random.Random)
    steady: Callable[[], float] = time.monotonic
    # Of this process: its sweeps do not send at once what is to be told together.
    _sweeping: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._outbox = notices.Outbox(
            self.database, self.now, node=self.node_id, steady=self.steady
        )

    def sweep(self) -> None:
        """Address what is new, then try what is due; each message is claimed by one node."""
        names, events = channel_names(self.settings), (*self.settings.events, *ALWAYS)
        longest = self.settings.retry_seconds[1]
        with self._sweeping:
            while notices.address(self.database, self.now(), names, events):
                pass
            due = self._outbox.due(limit=500, longest=longest)
            for _, same in groupby(sorted(due, key=_kind), key=_kind):
                ids = [message.id for message in same]
                size = len(ids) if len(ids) > TOGETHER else 1
                for start in range(0, len(ids), size):
                    # Claimed just before: what is before it in the outbox may take its time.
                    leased = self._outbox.claim(ids[start : start + size], longest=longest)
                    if leased:
                        self._send(leased)

    def test(self, request: NodeRequest) -> str:
        """A test notice through every channel, at once; NotSent says which did not work."""
        names = channel_names(self.settings)
        if not names:
            raise NotSent("no channel is configured: notify.webhooks or notify.mail_to")
        facts = {"who": request.who}
        with self.database.writing() as db:
            notices.post(self.database, db, self.now(), "test", f"test {request.id}", facts)
        self.sweep()
        tried = notices.of_key(self.database, f"test {request.id}")
        if failed := [message for message in tried if message.sentence]:
            raise NotSent("; ".join(f"{message.channel}: {message.sentence}" for message in failed))
        if [message for message in tried if message.state is not MessageState.SENT]:
            return "Another node on this storage is sending it; see the messages of that node."
        return f"Sent through {', '.join(names)}."

    def _send(self, messages: Sequence[Message]) -> None:
        """One message about one or several notices of one kind."""
        first = messages[0]
        event = first.notice.event
        facts = [message.notice.facts for message in messages]
        subject = subject_of(event, self.node, len(messages))
        body = body_of(event, facts, self.settings.link)
        document = {"event": event, "node": self.node, "at": first.notice.at, "facts": facts}
        extra = {"channel": first.channel, "kind": event, "count": len(messages)}
        try:
            send(self.settings, first.channel, subject, body, document)
        except NotSent as error:
            for message in messages:
                self._again(message, error)
            logger.warning("notice not sent", extra=extra | {"why": str(error)})
            return
        for message in messages:
            self._outbox.sent(message)
        logger.info("notice sent", extra=extra)

    def _again(self, message: Message, error: NotSent) -> None:
        settings, sentence = self.settings, str(error)
        known = message.channel in channel_names(settings)
        is_test = message.notice.event == "test"  # somebody is waiting for the answer
        is_last = is_test or not known or isinstance(error, SentToSome)
        if is_last or self.now() - message.notice.at > settings.give_up_hours * 3600:
            self._outbox.failed(message, sentence)
            return
        wait = backoff.delay(message.tries, *settings.retry_seconds, self.jitter)
        self._outbox.retry(message, self.now() + wait, sentence)


def _kind(message: Message) -> tuple[str, str]:
    return message.channel, message.notice.event


@dataclass
class Watches:
    """The sweeps over what may need a person: silent senders, the disk."""

    database: Database
    settings: Config
    node_id: str
    now: Callable[[], float]

    def senders(self) -> None:
        """Tell who is silent in the hours in which it is expected to send: once a silence."""
        settings, now = self.settings, self.now()
        if not settings.senders:
            return
        # Who never sent is measured from when somebody first looked.
        heard = peers.last_heard(self.database, [sender.ae_title for sender in settings.senders])
        for sender in settings.senders:
            name = sender.ae_title
            first = float(fact_or_set(self.database, peers.EXPECTED.format(name), repr(now)))
            last_at = heard.get(name, first)
            if not backoff.is_silent(sender, last_at, now, settings.node.zone):
                continue
            facts = {"sender": name, "since": backoff.heard(last_at, settings.node.zone)}
            key = f"silent {name} {last_at:.0f}"
            if self._post(now, "sender_silent", key, facts):
                logger.warning("sender silent", extra={"calling_ae": name})

    def disk(self) -> None:
        """Take a sample of the disk; tell where it will be full soon, once a day."""
        settings, now = self.settings, self.now()
        usage = shutil.disk_usage(settings.folder)
        nodes.record(self.database, now, self.node_id, usage.free, usage.total)
        sentence = self._low(usage.free, now)
        if not sentence:
            return
        day = datetime.fromtimestamp(now, settings.node.zone).date()
        key = f"disk {self.node_id} {day}"
        if self._post(now, "disk_low", key, {"sentence": sentence}):
            logger.warning("disk low", extra={"free": usage.free, "total": usage.total})

    def certificates(self) -> None:
        """Tell which certificate expires soon, and which has expired: once each stage."""
        now = self.now()
        for certificate in certificates.all_of(self.settings):
            stage = certificate.stage(now)
            key = f"certificate {certificate.fingerprint[:16]} {stage}"
            facts = {"sentence": certificate.sentence(now)}
            if stage and self._post(now, "certificate_expires", key, facts):
                extra = {"certificate": certificate.name, "file": str(certificate.path)}
                days = round(certificate.days_left(now), 1)
                if certificate.is_list:
                    logger.warning("revocation list expires", extra=extra | {"days": days})
                else:
                    logger.warning("certificate expires", extra=extra | {"days": days})

    def _post(self, now: float, event: str, key: str, facts: Mapping[str, object]) -> bool:
        with self.database.writing() as db:
            return notices.post(self.database, db, now, event, key, facts)

    def _low(self, free: int, now: float) -> str:
        """The sentence on a disk that fills up; empty where it lasts."""
        reserve = self.settings.storage.min_free_gb
        facts = {"free": free / GIGA, "reserve": reserve}
        if free < self.settings.storage.min_free_bytes:
            return FULL.format(**facts)
        taken = nodes.samples(self.database, self.node_id, now - nodes.FORECAST_DAYS * DAY)
        left = nodes.forecast(taken, self.settings.storage.min_free_bytes).days_left
        if left is None or left > self.settings.notify.disk_days:
            return ""
        return FILLS.format(**facts, days=left)
