"""Control of a running node: switches, requests of people, the applied configuration."""

import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, delete, or_, select, update

from storage.database import Database, to_record
from storage.errors import LeaseLost, NotFound, WrongState
from storage.leases import IDLE, Holder, LeasedRow, Leases
from storage.records import (
    Configured,
    NodeRequest,
    RequestKind,
    RequestState,
    Switch,
    SwitchName,
)
from storage.schema import OPEN_REQUEST, configuration, request, switch
from storage.site.audit import acting

# Every node of a storage reads the same switches, at the latest a second later.

LONGEST_SUBJECT = 64

# What the audit events call it, set and taken back.
WORDS = {
    SwitchName.DRAINING: ("drain", "stop draining"),
    SwitchName.PAUSED: ("pause destination", "resume destination"),
    SwitchName.NEVER: ("never process", "process again"),
    SwitchName.ALLOWED_AE: ("allow AE title", "take AE title back"),
}


def turn(
    database: Database, now: float, who: str, name: SwitchName, subject: str = "", *, on: bool
) -> bool:
    """Set a switch, or take it back; False where it was so already."""
    if len(subject) > LONGEST_SUBJECT or (name is SwitchName.DRAINING) != (subject == ""):
        raise WrongState(f"{name}: no {subject!r}; allowed: 1-{LONGEST_SUBJECT} characters")
    same = and_(switch.c.name == name, switch.c.subject == subject)
    what = WORDS[name][0 if on else 1]
    with acting(database, now, who, what, subject) as db:
        if not on:
            return bool(db.execute(delete(switch).where(same)).rowcount)
        row = database.insert(switch).values(name=name, subject=subject, who=who[:64], at=now)
        inserted = row.on_conflict_do_nothing().returning(switch.c.name)
        return db.execute(inserted).first() is not None


def draining(database: Database) -> Switch | None:
    """The switch by which a node receives and delivers, and starts no jobs; None: it is off."""
    return is_on(database, SwitchName.DRAINING)


def is_on(database: Database, name: SwitchName, subject: str = "") -> Switch | None:
    query = select(switch).where(switch.c.name == name, switch.c.subject == subject)
    return database.record(Switch, query)


def all_on(database: Database, name: SwitchName | None = None) -> tuple[Switch, ...]:
    """The switches that are on, of one name or at all."""
    query = select(switch).order_by(switch.c.name, switch.c.subject)
    return database.records(Switch, query if name is None else query.where(switch.c.name == name))


def of_subjects(
    database: Database, name: SwitchName, subjects: Collection[str]
) -> dict[str, Switch]:
    """The switches of one name that are on for these subjects."""
    query = select(switch).where(switch.c.name == name, switch.c.subject.in_(subjects))
    with database.reading() as db:
        return {row.subject: to_record(Switch, row) for row in db.execute(query)}


STOPPED = "The node stopped before it was done; request it again."


def ask(
    database: Database,
    now: float,
    who: str,
    kind: RequestKind,
    subject: str = "",
    *,
    route: str = "",
    destination: str = "",
    series_uid: str = "",
) -> NodeRequest:
    """Ask for it; where the same is asked for already, that request counts."""
    further = {"route": route, "destination": destination, "series_uid": series_uid}
    asked = {"kind": kind, "subject": subject[:64]}
    asked |= {name: value[:64] for name, value in further.items()}
    values = {**asked, "who": who[:64], "asked_at": now}
    same = and_(OPEN_REQUEST, *(request.c[name] == value for name, value in asked.items()))
    what = f"ask: {kind}".replace("_", " ")
    detail = {name: value for name, value in further.items() if value} or None
    with acting(database, now, who, what, subject, detail) as db:
        row = db.execute(select(request).where(same).limit(1)).one_or_none()
        if row is None:
            new = request.insert().values(**values, state=RequestState.ASKED)
            row = db.execute(new.returning(request)).one()
        return to_record(NodeRequest, row)


def get_request(database: Database, request_id: int) -> NodeRequest:
    asked = database.record(NodeRequest, select(request).where(request.c.id == request_id))
    if asked is None:
        raise NotFound(f"no request {request_id}")
    return asked


def newest_of(database: Database, kind: RequestKind, subject: str) -> NodeRequest | None:
    """The last request of this kind about this subject, with its answer."""
    of_subject = and_(request.c.kind == kind, request.c.subject == subject)
    query = select(request).where(of_subject).order_by(request.c.id.desc()).limit(1)
    return database.record(NodeRequest, query)


def open_requests(database: Database, kind: RequestKind) -> tuple[NodeRequest, ...]:
    """The requests of this kind that have no answer yet, the oldest first."""
    query = select(request).where(OPEN_REQUEST, request.c.kind == kind)
    return database.records(NodeRequest, query.order_by(request.c.id))


def newest(
    database: Database, kind: RequestKind | None = None, limit: int = 20
) -> tuple[NodeRequest, ...]:
    """The last requests with their answers, the newest first."""
    query = select(request).order_by(request.c.id.desc()).limit(limit)
    return database.records(
        NodeRequest, query if kind is None else query.where(request.c.kind == kind)
    )


class RequestQueue:
    """The requests as one process of a node takes them up, keeps them and answers them."""

    def __init__(self, database: Database, holder: Holder) -> None:
        self._database = database
        self._now = holder.now
        self._node = holder.node
        self._steady = holder.steady
        self._renew_seconds = holder.seconds / 4
        self._renewed = holder.steady()
        self._held: dict[int, NodeRequest] = {}
        self._leases = Leases(database, request, holder)

    def claim(self) -> tuple[NodeRequest, ...]:
        """Lease all that nobody has taken up; what a dead node had taken up has failed."""
        requests = self._leases.claim(self._due, self._take)
        self._held |= {leased.id: leased for leased in requests}
        return requests

    def held(self, kind: RequestKind) -> tuple[NodeRequest, ...]:
        """The requests of a kind that this process has taken up and not answered."""
        return tuple(leased for leased in list(self._held.values()) if leased.kind is kind)

    def renew(self) -> None:
        """Keep the leases of all that is not answered; called often, it writes now and then."""
        if not self._held or self._steady() - self._renewed < self._renew_seconds:
            return
        self._renewed = self._steady()
        for leased in list(self._held.values()):
            with contextlib.suppress(LeaseLost):  # answered just now, or given up as dead
                self._leases.renew(leased)

    def answer(self, leased: NodeRequest, *, ok: bool, sentence: str) -> None:
        """Say what came of it; the first answer counts."""
        state = RequestState.DONE if ok else RequestState.FAILED
        with contextlib.suppress(LeaseLost):
            self._leases.give_up(leased, state=state, done_at=self._now(), sentence=sentence)
        self._held.pop(leased.id, None)

    def recover(self, node: str = "") -> int:
        """Fail what a dead node had taken up; at start, a dead process of this one."""
        left = update(request).where(self._leases.left_by(node))
        with self._database.writing() as db:
            return db.execute(left.values(**self._stopped(), **IDLE)).rowcount

    def _due(self, db: Connection) -> Select[*tuple[Any, ...]]:
        left_behind = self._leases.left_behind(db, OPEN_REQUEST)
        free = or_(request.c.lease_until.is_(None), left_behind)
        # Of several nodes each has a configuration of its own to read.
        ours = or_(
            request.c.kind != RequestKind.RELOAD,
            request.c.subject.in_(("", self._node)),
            request.c.lease_until.is_not(None),
        )
        return select(request).where(OPEN_REQUEST, free, ours).order_by(request.c.id)

    def _take(self, db: Connection, row: LeasedRow) -> NodeRequest | None:
        this = request.c.id == row.id
        if row.lease_until is not None:
            db.execute(update(request).where(this).values(**self._stopped(), **IDLE))
            return None
        self._leases.take(db, row, "requests")
        return to_record(NodeRequest, db.execute(select(request).where(this)).one())

    def _stopped(self) -> dict[str, object]:
        return {"state": RequestState.FAILED, "done_at": self._now(), "sentence": STOPPED}


def forget(database: Database, before: float) -> None:
    """Remove what was asked long ago; the audit events stay."""
    old = and_(request.c.asked_at < before, request.c.done_at.is_not(None))
    with database.writing() as db:
        db.execute(delete(request).where(old))


def applied(
    database: Database,
    now: float,
    node: str,
    values: Mapping[str, object],
    restart: Sequence[str] = (),
) -> None:
    """Note the values in force; `restart` are keys whose new value needs a restart."""
    columns = {
        "applied_at": now,
        "text": json.dumps(values),
        "restart": json.dumps(list(restart)),
        "refused_at": None,
        "problems": "[]",
    }
    row = database.insert(configuration).values(node=node, **columns)
    with database.writing() as db:
        db.execute(row.on_conflict_do_update(index_elements=["node"], set_=columns))


def refused(database: Database, now: float, node: str, problems: Sequence[str]) -> None:
    """Note that the node cannot use what it has read last, and goes on with what it had."""
    columns = {"refused_at": now, "problems": json.dumps(list(problems))}
    with database.writing() as db:
        db.execute(update(configuration).where(configuration.c.node == node).values(**columns))


def applied_configuration(database: Database, node: str) -> Configured | None:
    columns = (column for column in configuration.c if column is not configuration.c.text)
    query = select(*columns, configuration.c.text.label("values"))
    return database.record(Configured, query.where(configuration.c.node == node))
