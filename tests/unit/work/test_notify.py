"""People are told through a real web server and a real mail server, again until it works."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from node.config import Notify
from node.work import notify
from node.work.notify import TOGETHER, Notifier, NotSent
from storage.database import Database
from storage.records import MessageState, NodeRequest, RequestKind, RequestState
from storage.site import notices
from tests.conftest import Clock
from tests.outside import Hook, Mailbox, hook, mail_server
from tests.ports import free_port
from tests.unit.storage.stored import post

FACTS = {"job": 12, "reason": "MISSING_SLICES", "sentence": "A slice is missing."}
REQUEST = NodeRequest(
    7, RequestKind.NOTIFY, "", "", "", "", "anna", 0.0, RequestState.ASKED, 1, None, ""
)


@pytest.fixture
def web() -> Iterator[Hook]:
    with hook() as made:
        yield made


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with mail_server() as made:
        yield made


def by_mail(port: int, **more: object) -> Notify:
    given = {"mail_to": ["pacs@example.org", "night@example.org"], "mail_from": "m@example.org"}
    more = {"smtp_host": "127.0.0.1", "smtp_security": "none"} | more
    return Notify.model_validate({**given, **more, "smtp_port": port}, context={"folder": Path()})


def notifier(database: Database, clock: Clock, settings: Notify) -> Notifier:
    return Notifier(database, "one", "MIDSLICE", settings, clock, random.Random(1), steady=clock)


def tell(database: Database, clock: Clock, count: int = 1) -> None:
    for number in range(count):
        facts = {**FACTS, "job": 12 + number}
        post(database, clock(), "job_held", f"job {number}", facts)


def states(database: Database) -> list[MessageState]:
    return [one.state for one in notices.newest(database)]


def test_a_webhook_gets_what_happened_in_words_and_in_json(
    database: Database, clock: Clock, web: Hook
) -> None:
    link = "https://midslice.example.org/"
    settings = Notify(webhooks=(f"{web.url}?room=7",), link=link)
    tell(database, clock)
    notifier(database, clock, settings).sweep()
    (posted,) = web.posted
    assert posted["path"] == "/in/secret-key?room=7"
    assert (posted["event"], posted["node"]) == ("job_held", "MIDSLICE")
    assert posted["subject"] == "MIDSLICE: A job is held"
    text = "Job 12 is held (MISSING_SLICES). A slice is missing."
    assert posted["text"] == f"{text}\n\n{link}"
    assert posted["facts"] == [FACTS]
    assert states(database) == [MessageState.SENT]
    notifier(database, clock, settings).sweep()
    assert len(web.posted) == 1


def test_name_and_password_in_an_address_are_sent_as_basic_authentication(
    database: Database, clock: Clock, web: Hook
) -> None:
    with_password = web.url.replace("//", "//anna:p%40ss@")
    tell(database, clock)
    notifier(database, clock, Notify(webhooks=(with_password,))).sweep()
    (posted,) = web.posted
    assert posted["proof"] == "Basic YW5uYTpwQHNz"
    (message,) = notices.newest(database)
    assert "anna" not in message.channel and "p%40ss" not in message.channel


def test_a_mail_reaches_everybody_who_is_named(
    database: Database, clock: Clock, mailbox: Mailbox
) -> None:
    tell(database, clock)
    notifier(database, clock, by_mail(mailbox.port)).sweep()
    (mail,) = mailbox.mails
    assert mail["To"] == "pacs@example.org, night@example.org"
    assert mail["Subject"] == "MIDSLICE: A job is held"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert "Job 12 is held (MISSING_SLICES)." in mail.get_content()
    assert states(database) == [MessageState.SENT]


def test_a_mail_that_some_have_is_not_sent_to_them_again_and_again(
    database: Database, clock: Clock, mailbox: Mailbox
) -> None:
    mailbox.unknown = "night@example.org"
    tell(database, clock)
    work = notifier(database, clock, by_mail(mailbox.port))
    for _ in range(3):
        work.sweep()
        clock.now += 1200
    assert len(mailbox.mails) == 1
    (message,) = notices.newest(database)
    assert message.state is MessageState.FAILED
    assert message.sentence == "127.0.0.1 refused 1 of the addresses"


def test_two_sweeps_at_once_tell_it_once(database: Database, clock: Clock, web: Hook) -> None:
    tell(database, clock)
    work = notifier(database, clock, Notify(webhooks=(web.url,)))
    with ThreadPoolExecutor(8) as sweepers:
        for swept in [sweepers.submit(work.sweep) for _ in range(8)]:
            swept.result()
    assert len(web.posted) == 1
    assert states(database) == [MessageState.SENT]


@pytest.mark.parametrize("count", [3, 40])
def test_two_nodes_on_one_database_tell_it_once(
    database_url: str, clock: Clock, web: Hook, count: int
) -> None:
    web.seconds = 0.1  # long enough for the other to look at the outbox meanwhile
    nodes = [Database(database_url) for _ in range(2)]
    tell(nodes[0], clock, count)
    begin = threading.Barrier(len(nodes))

    def sweep(database: Database) -> None:
        work = notifier(database, clock, Notify(webhooks=(web.url,)))
        begin.wait(20.0)
        for _ in range(5):
            work.sweep()

    with ThreadPoolExecutor(len(nodes)) as sweepers:
        for swept in [sweepers.submit(sweep, node) for node in nodes]:
            swept.result()
    assert set(states(nodes[0])) == {MessageState.SENT}
    for node in nodes:
        node.close()
    told = sorted(facts["job"] for posted in web.posted for facts in posted["facts"])
    assert told == list(range(12, 12 + count))


def test_what_a_dead_node_was_sending_is_sent_by_another(
    database: Database, clock: Clock, web: Hook
) -> None:
    tell(database, clock)
    notices.address(
        database, clock(), notify.channel_names(Notify(webhooks=(web.url,))), ("job_held",)
    )
    dead = notices.Outbox(database, clock, node="two", steady=clock)
    (message,) = dead.due()
    assert dead.claim([message.id])  # and then the power fails
    work = notifier(database, clock, Notify(webhooks=(web.url,)))
    work.sweep()
    assert web.posted == []
    clock.now += notices.CLAIM_SECONDS + 1
    work.sweep()
    assert states(database) == [MessageState.SENT]


def test_a_server_that_wants_a_name_and_a_password_gets_them(
    database: Database, clock: Clock, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text("right\n")
    with mail_server(with_login=True) as mailbox:
        settings = by_mail(mailbox.port, smtp_user="node", smtp_password_file=str(secret))
        tell(database, clock)
        notifier(database, clock, settings).sweep()
        assert mailbox.logins == [("node", "right")]
        assert len(mailbox.mails) == 1
        secret.write_text("wrong")
        with pytest.raises(NotSent, match=r"127\.0\.0\.1 did not take the mail: \w+ 535"):
            notify.send(settings, notify.MAIL, "s", "b", {})


def test_what_a_server_does_not_take_is_tried_again_until_it_does(
    database: Database, clock: Clock, web: Hook
) -> None:
    web.answers = [500, 503, 302]
    work = notifier(database, clock, Notify(webhooks=(web.url,), retry_seconds=(30.0, 900.0)))
    tell(database, clock)
    for tries in (1, 2, 3):
        work.sweep()
        assert len(web.posted) == tries
        work.sweep()
        assert len(web.posted) == tries  # not before its time
        clock.now += 1200
    assert notices.newest(database)[0].sentence == "127.0.0.1 answers 302"
    work.sweep()
    assert states(database) == [MessageState.SENT]
    assert {one["path"] for one in web.posted} == {"/in/secret-key"}  # no redirect is followed


def test_one_channel_that_is_down_keeps_no_other(
    database: Database, clock: Clock, mailbox: Mailbox
) -> None:
    dead = f"http://127.0.0.1:{free_port()}/"
    settings = by_mail(mailbox.port).model_copy(update={"webhooks": (dead,)})
    tell(database, clock)
    notifier(database, clock, settings).sweep()
    assert len(mailbox.mails) == 1
    assert sorted(states(database)) == [MessageState.QUEUED, MessageState.SENT]


def test_what_cannot_be_told_in_a_day_has_failed_and_says_why(
    database: Database, clock: Clock
) -> None:
    settings = by_mail(free_port(), give_up_hours=24.0)
    tell(database, clock)
    notifier(database, clock, settings).sweep()
    assert states(database) == [MessageState.QUEUED]
    clock.now += 25 * 3600
    notifier(database, clock, settings).sweep()
    (message,) = notices.newest(database)
    assert message.state is MessageState.FAILED
    assert message.sentence.startswith("127.0.0.1 did not take the mail: ConnectionRefusedError")


def test_a_channel_that_is_not_configured_any_more_has_failed(
    database: Database, clock: Clock, web: Hook
) -> None:
    web.answers = [500]
    tell(database, clock)
    notifier(database, clock, Notify(webhooks=(web.url,))).sweep()
    clock.now += 3600
    notifier(database, clock, Notify()).sweep()
    (message,) = notices.newest(database)
    assert message.state is MessageState.FAILED
    assert "not configured any more" in message.sentence


def test_two_hundred_held_jobs_are_one_message(database: Database, clock: Clock, web: Hook) -> None:
    tell(database, clock, 200)
    notifier(database, clock, Notify(webhooks=(web.url,))).sweep()
    (posted,) = web.posted
    assert posted["subject"] == "MIDSLICE: A job is held (200 times)"
    assert posted["text"].endswith("And 180 more.")
    assert len(posted["facts"]) == 200
    assert set(states(database)) == {MessageState.SENT}


def test_a_few_are_told_one_by_one(database: Database, clock: Clock, web: Hook) -> None:
    tell(database, clock, TOGETHER)
    notifier(database, clock, Notify(webhooks=(web.url,))).sweep()
    assert [one["subject"] for one in web.posted] == ["MIDSLICE: A job is held"] * TOGETHER


def test_an_event_that_nobody_wants_to_hear_of_is_not_told(
    database: Database, clock: Clock, web: Hook
) -> None:
    tell(database, clock)
    notifier(database, clock, Notify(webhooks=(web.url,), events=("disk_low",))).sweep()
    assert web.posted == []


def test_the_test_button_says_at_once_what_works_and_what_does_not(
    database: Database, clock: Clock, web: Hook, mailbox: Mailbox
) -> None:
    settings = by_mail(mailbox.port).model_copy(update={"webhooks": (web.url,), "events": ()})
    said = notifier(database, clock, settings).test(REQUEST)
    assert said == "Sent through webhook 1, 127.0.0.1, mail."
    assert "requested by anna" in web.posted[0]["text"]
    mailbox.refuse = "550 no such user"
    other = replace(REQUEST, id=8)
    with pytest.raises(NotSent, match="mail: 127.0.0.1 did not take the mail"):
        notifier(database, clock, settings).test(other)
    assert notices.count(database)[MessageState.FAILED] == 1  # a test is not tried again later


def test_without_a_channel_the_test_button_says_what_is_missing(
    database: Database, clock: Clock
) -> None:
    with pytest.raises(NotSent, match=r"notify\.webhooks or notify\.mail_to"):
        notifier(database, clock, Notify()).test(REQUEST)


def test_the_key_in_a_webhooks_address_is_shown_nowhere(
    database: Database, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    tell(database, clock)
    dead = f"http://127.0.0.1:{free_port()}/in/secret-key"
    notifier(database, clock, Notify(webhooks=(dead,))).sweep()
    shown = str([vars(one) for one in caplog.records]) + str(notices.newest(database))
    assert "secret-key" not in shown


def test_a_mail_that_has_to_be_encrypted_is_not_sent_in_the_clear(mailbox: Mailbox) -> None:
    settings = by_mail(mailbox.port, smtp_security="starttls")
    with pytest.raises(NotSent, match="SMTPNotSupportedError"):
        notify.send(settings, notify.MAIL, "s", "b", {})
    assert mailbox.mails == []
