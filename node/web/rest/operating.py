"""The node, its destinations and its senders: what is set, and what the node is asked for."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import Field

from node import health
from node.errors import UsageError
from node.rules.view import Json, iso
from node.web.auth import AsAdministrator, AsOperator, AsViewer, Visitor
from node.web.parts import Parts, PartsOf
from node.web.rest.bodies import Body, taken, takes
from node.web.rest.inputs import AE_TITLE, AeTitle, Id, Name, Paged
from storage.errors import NotFound
from storage.records import SwitchName, Wish, WishKind
from storage.site import control, peers, selftests

router = APIRouter(tags=["operating"])


class Title(Body):
    ae_title: str = Field(pattern=AE_TITLE)


@router.get("/node", summary="The node: state, disk, what is drained")
def node(_: AsViewer, parts: PartsOf) -> Json:
    state = health.node_state(parts.database, parts.settings.node_id)
    disk = health.disk(parts.settings.config.folder)
    draining = control.draining(parts.database)
    return {
        "id": parts.settings.node_id,
        "state": state.state if state is not None else "stopped",
        "started_at": iso(state.started_at if state is not None else None, parts.zone),
        "heartbeat": iso(state.heartbeat if state is not None else None, parts.zone),
        "draining": draining is not None,
        "drained_by": draining.who if draining is not None else "",
        "disk_free_bytes": disk.free_bytes,
        "disk_total_bytes": disk.total_bytes,
    }


@router.post("/drain", summary="Keep receiving and delivering, start no jobs")
def drain(visitor: AsOperator, parts: PartsOf) -> Json:
    _turn(parts, visitor, SwitchName.DRAINING, "", on=True)
    return node(visitor, parts)


@router.delete("/drain", summary="Start jobs again")
def stop_draining(visitor: AsOperator, parts: PartsOf) -> Json:
    _turn(parts, visitor, SwitchName.DRAINING, "", on=False)
    return node(visitor, parts)


@router.post("/configuration/reload", summary="Read config.toml, all or nothing", status_code=202)
def reload(visitor: AsAdministrator, parts: PartsOf) -> Json:
    return _ask(parts, visitor, WishKind.RELOAD)


@router.post("/selftests", summary="Send a made series the whole way", status_code=202)
def self_test(visitor: AsOperator, parts: PartsOf) -> Json:
    return _ask(parts, visitor, WishKind.SELFTEST)


@router.post("/notifications/test", summary="A notice through every channel", status_code=202)
def test_notice(visitor: AsAdministrator, parts: PartsOf) -> Json:
    return _ask(parts, visitor, WishKind.NOTIFY)


@router.get("/selftests", summary="What the self-tests have found, the newest first")
def self_tests(_: AsViewer, parts: PartsOf, page: Paged) -> list[Json]:
    page.counted(selftests.count(parts.database), page.limit)
    return [
        {
            "id": each.id,
            "who": each.who,
            "state": str(each.state),
            "destination": each.destination,
            "started_at": iso(each.started_at, parts.zone),
            "finished_at": iso(each.finished_at, parts.zone),
            "steps": [vars(step) for step in each.steps],
            "sentence": each.sentence,
        }
        for each in selftests.history(parts.database, page.limit, page.offset)
    ]


@router.get("/configuration", summary="As the node has read it; the last one that it refused")
def configuration(_: AsAdministrator, parts: PartsOf) -> Json:
    found = control.applied_configuration(parts.database, parts.settings.node_id)
    if found is None:
        raise NotFound("the node has not started yet")
    return {
        "applied_at": iso(found.applied_at, parts.zone),
        "values": found.values,
        "needs_restart": list(found.restart),
        "refused_at": iso(found.refused_at, parts.zone),
        "problems": list(found.problems),
    }


@router.get("/wishes/{wish_id}", summary="What came of something that the node was asked for")
def wish(wish_id: Id, _: AsViewer, parts: PartsOf) -> Json:
    return _wish(control.get_request(parts.database, wish_id), parts)


@router.get("/destinations", summary="Each destination: does it answer, is it paused, what waits")
def destinations(_: AsViewer, parts: PartsOf) -> list[Json]:
    reaches = {each.destination: each for each in peers.reachability(parts.database)}
    paused = {each.subject for each in control.all_on(parts.database, SwitchName.PAUSED)}
    backlog = parts.store.ledger.backlog()
    found = []
    for each in parts.config().destinations:
        reach = reaches.get(each.name)
        found.append(
            {
                "name": each.name,
                "ae_title": each.ae_title,
                "host": each.host,
                "port": each.port,
                "paused": each.name in paused,
                "up": reach.up if reach is not None else None,
                "since": iso(reach.since if reach is not None else None, parts.zone),
                "checked_at": iso(reach.checked_at if reach is not None else None, parts.zone),
                "sentence": reach.sentence if reach is not None else "",
                "backlog": {
                    str(waits.state): waits.count
                    for waits in backlog
                    if waits.destination == each.name
                },
            }
        )
    return found


@router.post("/destinations/{name}/pause", summary="Nothing is sent there until it is resumed")
def pause(name: Name, visitor: AsOperator, parts: PartsOf) -> Json:
    parts.config().destination(name)
    _turn(parts, visitor, SwitchName.PAUSED, name, on=True)
    return {"name": name, "paused": True}


@router.post("/destinations/{name}/resume", summary="Send there again")
def resume(name: Name, visitor: AsOperator, parts: PartsOf) -> Json:
    _turn(parts, visitor, SwitchName.PAUSED, name, on=False)
    return {"name": name, "paused": False}


@router.post("/destinations/{name}/echo", summary="C-ECHO now", status_code=202)
def echo(name: Name, visitor: AsOperator, parts: PartsOf) -> Json:
    parts.config().destination(name)
    return _ask(parts, visitor, WishKind.ECHO, name)


@router.get("/senders/allow", summary="Calling AE titles that may associate; none at all is any")
def allowed(_: AsViewer, parts: PartsOf) -> Json:
    added = control.all_on(parts.database, SwitchName.ALLOWED_AE)
    return {
        "configured": list(parts.config().node.allowed_ae_titles),
        "added": [{"ae_title": each.subject, "who": each.who} for each in added],
    }


@router.post("/senders/allow", summary="Let a calling AE title in", openapi_extra=takes(Title))
def allow(
    visitor: AsAdministrator, body: Annotated[Title, Depends(taken(Title))], parts: PartsOf
) -> Json:
    _turn(parts, visitor, SwitchName.ALLOWED_AE, _significant(body.ae_title), on=True)
    return {"ae_title": body.ae_title, "allowed": True}


@router.delete("/senders/allow", summary="Take that back")
def disallow(ae_title: AeTitle, visitor: AsAdministrator, parts: PartsOf) -> Json:
    if not _turn(parts, visitor, SwitchName.ALLOWED_AE, _significant(ae_title), on=False):
        raise NotFound(f"the AE title {ae_title} was not added here")
    return {"ae_title": ae_title, "allowed": False}


def _significant(ae_title: str) -> str:
    """PS3.5 6.2: leading and trailing spaces of an AE title are not significant."""
    if not ae_title.strip(" "):
        raise UsageError("an AE title is not of spaces alone")
    return ae_title.strip(" ")


def _turn(parts: Parts, visitor: Visitor, name: SwitchName, subject: str, *, on: bool) -> bool:
    return control.turn(parts.database, parts.gate.now(), visitor.name, name, subject, on=on)


def _ask(parts: Parts, visitor: Visitor, kind: WishKind, subject: str = "") -> Json:
    asked = control.ask(parts.database, parts.gate.now(), visitor.name, kind, subject)
    return _wish(asked, parts)


def _wish(found: Wish, parts: Parts) -> Json:
    return {
        "id": found.id,
        "kind": str(found.kind),
        "subject": found.subject,
        "who": found.who,
        "asked_at": iso(found.asked_at, parts.zone),
        "state": str(found.state),
        "done_at": iso(found.done_at, parts.zone),
        "sentence": found.sentence,
    }
