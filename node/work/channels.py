"""The ways out of the house: a webhook by HTTP POST, and mail by SMTP. Each try has an end."""

import http.client
import json
import smtplib
import ssl
from collections.abc import Mapping
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from urllib.parse import urlsplit

from node.config import Notify

SECONDS = 15.0
MAIL = "mail"
OF_HTTP = (OSError, http.client.HTTPException, ValueError)
OF_SMTP = (OSError, smtplib.SMTPException, ValueError)


class NotSent(Exception):
    """It did not work; the text says why, without what a server has answered in words."""


class SentToSome(NotSent):
    """It reached some of those it was for: another try would reach these once more."""


def names(notify: Notify) -> tuple[str, ...]:
    """Every channel that is configured. An address may hold a secret: its host has to do."""
    hooks = tuple(_name(number, url) for number, url in enumerate(notify.webhooks, start=1))
    return (*hooks, MAIL) if notify.mail_to else hooks


def send(
    notify: Notify, channel: str, subject: str, body: str, document: Mapping[str, object]
) -> None:
    """Through one channel; NotSent where it did not get there."""
    if channel == MAIL and notify.mail_to:
        _mail(notify, subject, body)
        return
    for number, url in enumerate(notify.webhooks, start=1):
        if channel == _name(number, url):
            _post(url, {**document, "subject": subject, "text": body})
            return
    raise NotSent(f"the channel {channel!r} is not configured any more")


def _name(number: int, url: str) -> str:
    return f"webhook {number}, {urlsplit(url).hostname}"[:64]


def _post(url: str, document: Mapping[str, object]) -> None:
    parts = urlsplit(url)
    assert parts.hostname is not None
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "midslice"}
    try:
        connection = make(parts.hostname, parts.port, timeout=SECONDS)
        try:
            connection.request("POST", path, json.dumps(document).encode(), headers)
            status = connection.getresponse().status
        finally:
            connection.close()
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
