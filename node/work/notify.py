"""Tells people what happened: the outbox, message by message, again until it is given up."""

import logging
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from node.config import Notify
from node.rules import backoff, telling
from node.work import channels
from node.work.channels import NotSent, SentToSome
from storage.database import Database
from storage.records import Message, MessageState, Wish
from storage.site import notices

logger = logging.getLogger(__name__)

# More than so many of one kind at once are one message: nobody reads two hundred mails.
TOGETHER = 5
ALWAYS = ("attention", "test")  # of no use to switch off


@dataclass
class Notifier:
    """The sweep over the outbox."""

    database: Database
    node: str  # what people call this node
    settings: Notify
    now: Callable[[], float]
    jitter: random.Random = field(default_factory=random.Random)
    # Of this process: its sweeps do not send at once what is to be told together.
    _one: threading.Lock = field(default_factory=threading.Lock)

    def sweep(self) -> None:
        """Address what is new, then try what is due; each message is claimed by one node."""
        with self._one:
            self._sweep()

    def _sweep(self) -> None:
        settings = self.settings
        names = channels.names(settings)
        events = (*settings.events, *ALWAYS)
        while notices.address(self.database, self.now(), names, events):
            pass
        longest = settings.retry_seconds[1]
        due = notices.due(self.database, self.now(), limit=500, longest=longest)
        for _, same in groupby(sorted(due, key=_kind), key=_kind):
            messages = list(same)
            size = len(messages) if len(messages) > TOGETHER else 1
            for start in range(0, len(messages), size):
                self._claim_and_send(messages[start : start + size])

    def test(self, wish: Wish) -> str:
        """A test notice through every channel, at once; NotSent says which did not work."""
        names = channels.names(self.settings)
        if not names:
            raise NotSent("no channel is configured: notify.webhooks or notify.mail_to")
        facts = {"who": wish.who}
        with self.database.writing() as db:
            notices.note(self.database, db, self.now(), "test", f"test {wish.id}", facts)
        self.sweep()
        tried = notices.of_key(self.database, f"test {wish.id}")
        if failed := [one for one in tried if one.sentence]:
            raise NotSent("; ".join(f"{one.channel}: {one.sentence}" for one in failed))
        if [one for one in tried if one.state is not MessageState.SENT]:
            return "Another node on this storage is sending it; its messages say what comes of it."
        return f"Sent through {', '.join(names)}."

    def _claim_and_send(self, messages: Sequence[Message]) -> None:
        """Claimed just before: what is before it in the outbox may take its time."""
        ids, longest = [one.id for one in messages], self.settings.retry_seconds[1]
        mine = notices.claim(self.database, self.now(), ids, longest=longest)
        if mine:
            self._send([one for one in messages if one.id in mine])

    def _send(self, messages: Sequence[Message]) -> None:
        """One message about one or several notices of one kind."""
        first = messages[0]
        event = first.notice.event
        facts = [one.notice.facts for one in messages]
        subject = telling.subject(event, self.node, len(messages))
        body = telling.body(event, facts, self.settings.link)
        document = {"event": event, "node": self.node, "at": first.notice.at, "facts": facts}
        extra = {"channel": first.channel, "kind": event, "count": len(messages)}
        try:
            channels.send(self.settings, first.channel, subject, body, document)
        except NotSent as error:
            for one in messages:
                self._again(one, error)
            logger.warning("notice not sent", extra=extra | {"why": str(error)})
            return
        for one in messages:
            notices.sent(self.database, self.now(), one.id)
        logger.info("notice sent", extra=extra)

    def _again(self, one: Message, error: NotSent) -> None:
        settings, sentence = self.settings, str(error)
        known = one.channel in channels.names(settings)
        is_test = one.notice.event == "test"  # somebody is waiting for the answer
        is_last = is_test or not known or isinstance(error, SentToSome)
        if is_last or self.now() - one.notice.at > settings.give_up_hours * 3600:
            notices.failed(self.database, self.now(), one.id, sentence)
            return
        wait = backoff.delay(one.tries, *settings.retry_seconds, self.jitter)
        notices.retry(self.database, one.id, self.now() + wait, sentence)


def _kind(one: Message) -> tuple[str, str]:
    return one.channel, one.notice.event
