"""The site: node, destinations, senders, people, audit and the rule tester."""

from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Query, UploadFile
from pydantic import Field
from starlette.requests import Request

from node import health
from node.config import Destination
from node.errors import UsageError
from node.rules.routing import Explanation
from node.web import login, rule_tester
from node.web.access import AsAdministrator, AsOperator, AsViewer, Visitor
from node.web.api.answers import TOKEN, USER, Json, plain
from node.web.api.inputs import (
    AE_TITLE,
    UID,
    AeTitle,
    Body,
    Id,
    Line,
    Name,
    Paged,
    ProblemDocument,
    Secret,
    UserName,
    taken,
    takes,
)
from node.web.login import People
from node.web.rule_tester import Tried, TriedStack
from node.web.state import Parts, PartsOf
from storage.errors import NotFound
from storage.records import (
    UID_CHARACTERS,
    DestinationSummary,
    NodeWork,
    RequestKind,
    Role,
    SwitchName,
)
from storage.site import control, peers, people, selftests

# Attributes of each record, in the order of the answer.
SELFTEST = "id who state destination started_at finished_at steps sentence"
REQUEST = "id kind subject route who asked_at state done_at sentence"
VERDICT = "state reason sentence"

AnyTitle = Annotated[str, Form(pattern=AE_TITLE)]
OTHER_UID = rf"^[{UID_CHARACTERS}]{{0,64}}$"
OTHER_TITLE = r"^([ -\[\]-~]{1,16})?$"

router = APIRouter(tags=["operating"])
people_router = APIRouter(tags=["users"])
rules_router = APIRouter(tags=["rules"])
audit_router = APIRouter(tags=["audit"])


class Title(Body):
    ae_title: str = Field(pattern=AE_TITLE)


class NewUser(Body):
    name: UserName
    role: Role
    password: Secret


class UserChange(Body):
    role: Role | None = None
    password: Secret | None = None
    disabled: bool | None = None


class OwnPassword(Body):
    old: str = Field(max_length=256)
    new: Secret


class NewToken(Body):
    name: Line = Field(min_length=1, max_length=64)
    role: Role


class StudyToFetch(Body):
    peer: str = Field(alias="from", max_length=64, description="The name of a destination.")
    study_uid: str = Field(pattern=UID)
    series_uid: str = Field("", pattern=OTHER_UID, description="Empty: all series of the study.")


class SeriesToTry(Body):
    series_uid: str = Field(pattern=UID)
    called_ae: str = Field("", pattern=OTHER_TITLE, description="Empty: as it came.")
    calling_ae: str = Field("", pattern=OTHER_TITLE, description="Empty: as it came.")


@router.get("/node", summary="The node: state, disk, what is drained")
def node(_: AsViewer, parts: PartsOf) -> Json:
    state = health.node_state(parts.database, parts.settings.node_id)
    disk = health.disk(parts.settings.config.folder)
    draining = control.draining(parts.database)
    return {
        "id": parts.settings.node_id,
        "state": state.state if state is not None else "stopped",
        **plain(state, "started_at heartbeat", parts.zone),
        "draining": draining is not None,
        "drained_by": draining.who if draining is not None else "",
        "disk_free_bytes": disk.free_bytes,
        "disk_total_bytes": disk.total_bytes,
    }


@router.get("/nodes", summary="Every node on this storage: release, load, work, sign of life")
def nodes(_: AsViewer, parts: PartsOf) -> list[Json]:
    work = parts.store.nodes.work()
    return [
        plain(state, "id state version address started_at heartbeat load lacks", parts.zone)
        | {"alive": health.is_alive(state, parts.gate.now())}
        | vars(work.get(state.id, NodeWork()))
        for state in parts.store.nodes.get()
    ]


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
    return _ask(parts, visitor, RequestKind.RELOAD, parts.store.requested_node)


@router.post("/selftests", summary="Send a synthetic series through the node", status_code=202)
def self_test(visitor: AsOperator, parts: PartsOf) -> Json:
    return _ask(parts, visitor, RequestKind.SELFTEST)


@router.post(
    "/notifications/test", summary="Send a test notification to every channel", status_code=202
)
def test_notice(visitor: AsAdministrator, parts: PartsOf) -> Json:
    return _ask(parts, visitor, RequestKind.NOTIFY)


@router.get("/selftests", summary="The results of the self-tests, the newest first")
def self_tests(_: AsViewer, parts: PartsOf, page: Paged) -> list[Json]:
    page.counted(selftests.count(parts.database), page.limit)
    tests = selftests.newest(parts.database, page.limit, page.offset)
    return [plain(test, SELFTEST, parts.zone) for test in tests]


@router.get("/configuration", summary="As the node has read it; the last one that it refused")
def configuration(_: AsAdministrator, parts: PartsOf) -> Json:
    applied = control.applied_configuration(parts.database, parts.settings.node_id)
    if applied is None:
        raise NotFound("the node has not started yet")
    return (
        plain(applied, "applied_at values", parts.zone)
        | {"needs_restart": list(applied.restart)}
        | plain(applied, "refused_at problems", parts.zone)
    )


@router.get(
    "/wishes/{wish_id}",
    name="wish",
    summary="The outcome of a request to the node",
)
def node_request(wish_id: Id, _: AsViewer, parts: PartsOf) -> Json:
    return plain(control.get_request(parts.database, wish_id), REQUEST, parts.zone)


@router.get("/destinations", summary="Each destination: does it answer, is it paused, what waits")
def destinations(_: AsViewer, parts: PartsOf) -> list[Json]:
    configured = {destination.name: destination for destination in parts.config().destinations}
    lines = peers.destinations(parts.database, parts.gate.now(), list(configured), days=0.0)
    return [
        _destination(configured[line.name], line, parts)
        for line in lines
        if line.name in configured
    ]


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
    return _ask(parts, visitor, RequestKind.ECHO, name)


@router.post(
    "/fetch",
    summary="Have a destination send a study, or one series of it, by C-GET or C-MOVE",
    status_code=202,
    openapi_extra=takes(StudyToFetch),
)
def fetch(
    visitor: AsOperator, body: Annotated[StudyToFetch, Depends(taken(StudyToFetch))], parts: PartsOf
) -> Json:
    parts.config().destination(body.peer)
    asked = control.ask(
        parts.database,
        parts.gate.now(),
        visitor.name,
        RequestKind.FETCH,
        body.study_uid,
        destination=body.peer,
        series_uid=body.series_uid,
    )
    return plain(asked, REQUEST, parts.zone)


@router.get("/senders/allow", summary="Calling AE titles that may associate; none means any")
def allowed(_: AsViewer, parts: PartsOf) -> Json:
    added = control.all_on(parts.database, SwitchName.ALLOWED_AE)
    return {
        "configured": list(parts.config().node.allowed_ae_titles),
        "added": [{"ae_title": switch.subject, "who": switch.who} for switch in added],
    }


@router.post("/senders/allow", summary="Allow a calling AE title", openapi_extra=takes(Title))
def allow(
    visitor: AsAdministrator, body: Annotated[Title, Depends(taken(Title))], parts: PartsOf
) -> Json:
    _turn(parts, visitor, SwitchName.ALLOWED_AE, _significant(body.ae_title), on=True)
    return {"ae_title": body.ae_title, "allowed": True}


@router.delete("/senders/allow", summary="No longer allow it")
def disallow(ae_title: AeTitle, visitor: AsAdministrator, parts: PartsOf) -> Json:
    if not _turn(parts, visitor, SwitchName.ALLOWED_AE, _significant(ae_title), on=False):
        raise NotFound(f"the AE title {ae_title} was not added here")
    return {"ae_title": ae_title, "allowed": False}


@audit_router.get("/audit", summary="Audit events, the newest first")
def events(
    _: AsAdministrator,
    parts: PartsOf,
    page: Paged,
    who: Annotated[Line, Query(description="Of one person.")] = "",
    what: Annotated[Line, Query(description="Of one kind of action.")] = "",
) -> list[Json]:
    audit = parts.store.audit
    page.counted(audit.count(who=who, what=what), page.limit)
    listed = audit.list(page.limit, page.offset, who=who, what=what)
    return [plain(event, "id at who what which detail", parts.zone) for event in listed]


@people_router.get("/me", summary="Who asks, and with which role")
def me(visitor: AsViewer) -> Json:
    return plain(visitor, "name role how")


@people_router.post(
    "/me/password",
    summary="Change the own password; all own sessions end",
    status_code=204,
    responses={429: {"description": "Too many wrong passwords.", "model": ProblemDocument}},
    openapi_extra=takes(OwnPassword),
)
def own_password(
    request: Request,
    visitor: AsViewer,
    body: Annotated[OwnPassword, Depends(taken(OwnPassword))],
    parts: PartsOf,
) -> None:
    gate = parts.gate
    with login.guess(gate, visitor.name, request, "password refused"):
        _people(parts, visitor).change_own(body.old, body.new)


@people_router.get("/users", summary="Everybody who may log in")
def list_users(_: AsAdministrator, parts: PartsOf) -> list[Json]:
    return [plain(user, USER, parts.zone) for user in people.people(parts.database)]


@people_router.post("/users", summary="Add a user", status_code=201, openapi_extra=takes(NewUser))
def add_user(
    visitor: AsAdministrator, body: Annotated[NewUser, Depends(taken(NewUser))], parts: PartsOf
) -> Json:
    added = _people(parts, visitor).add(body.name, body.role, body.password)
    return plain(added, USER, parts.zone)


@people_router.patch(
    "/users/{name}",
    summary="Change role, password, or whether somebody may log in",
    openapi_extra=takes(UserChange),
)
def change_user(
    name: Name,
    visitor: AsAdministrator,
    body: Annotated[UserChange, Depends(taken(UserChange))],
    parts: PartsOf,
) -> Json:
    changed = _people(parts, visitor).change(name, **dict(body))
    return plain(changed, USER, parts.zone)


@people_router.delete("/users/{name}", summary="Remove a user", status_code=204)
def remove_user(name: Name, visitor: AsAdministrator, parts: PartsOf) -> None:
    _people(parts, visitor).remove(name)


@people_router.delete(
    "/sessions", summary="Log somebody out who came through the log-in provider", status_code=204
)
def end_sessions(name: Line, visitor: AsAdministrator, parts: PartsOf) -> None:
    people.end_external(parts.database, parts.gate.now(), visitor.name, name)


@people_router.get("/tokens", summary="API tokens, revoked ones too; never their text")
def list_tokens(_: AsAdministrator, parts: PartsOf) -> list[Json]:
    return [plain(token, TOKEN, parts.zone) for token in people.tokens(parts.database)]


@people_router.post(
    "/tokens",
    summary="Add a token; the answer is the only place that shows it",
    status_code=201,
    openapi_extra=takes(NewToken),
)
def add_token(
    visitor: AsAdministrator, body: Annotated[NewToken, Depends(taken(NewToken))], parts: PartsOf
) -> Json:
    token, text = _people(parts, visitor).add_token(body.name, body.role)
    return plain(token, TOKEN, parts.zone) | {"token": text}


@people_router.delete("/tokens/{token_id}", summary="Revoke a token", status_code=204)
def revoke_token(token_id: Id, visitor: AsAdministrator, parts: PartsOf) -> None:
    _people(parts, visitor).revoke_token(token_id)


@rules_router.post("/rules/explain", summary="Which routes take these files, and why others do not")
def explain(
    visitor: AsOperator,
    parts: PartsOf,
    file: Annotated[list[UploadFile], File(description="Part 10 files; only headers are read.")],
    called_ae: AnyTitle = "MIDSLICE",
    calling_ae: AnyTitle = "ANY",
) -> Json:
    return _trial(rule_tester.try_files(parts, visitor.name, file, called_ae, calling_ae))


@rules_router.post(
    "/rules/dry-run",
    summary="The routes and the check of the geometry for a received series, from its headers",
    openapi_extra=takes(SeriesToTry),
)
def dry_run(
    visitor: AsOperator, body: Annotated[SeriesToTry, Depends(taken(SeriesToTry))], parts: PartsOf
) -> Json:
    titles = body.called_ae, body.calling_ae
    return _trial(rule_tester.try_series(parts, visitor.name, body.series_uid, *titles))


def _destination(configured: Destination, line: DestinationSummary, parts: Parts) -> Json:
    return (
        plain(configured, "name ae_title host port")
        | {"paused": line.paused is not None}
        | plain(line.reach, "up since checked_at", parts.zone)
        | {"sentence": line.reach.sentence if line.reach is not None else ""}
        | {"backlog": line.waiting}
    )


def _significant(ae_title: str) -> str:
    """Strip the leading and trailing spaces of an AE title (PS3.5 6.2)."""
    if not ae_title.strip(" "):
        raise UsageError("an AE title must not consist of spaces only")
    return ae_title.strip(" ")


def _turn(parts: Parts, visitor: Visitor, name: SwitchName, subject: str, *, on: bool) -> bool:
    return control.turn(parts.database, parts.gate.now(), visitor.name, name, subject, on=on)


def _ask(parts: Parts, visitor: Visitor, kind: RequestKind, subject: str = "") -> Json:
    asked = control.ask(parts.database, parts.gate.now(), visitor.name, kind, subject)
    return plain(asked, REQUEST, parts.zone)


def _people(parts: Parts, visitor: Visitor) -> People:
    return People(parts.database, parts.gate.now, visitor.name)


def _trial(trial: Tried) -> Json:
    aside = [{"instances": count, "why": why} for count, why in trial.set_aside]
    return {"stacks": [_stack(stack) for stack in trial.stacks], "set_aside": aside}


def _stack(stack: TriedStack) -> Json:
    return (
        plain(stack, "stack instances gap_mm tilt_degrees missing notes")
        | {"attributes": dict(stack.attributes)}
        | {"routes": [_explained(route) for route in stack.routes]}
        | {
            "verdicts": [
                plain(verdict, "route state reason sentence") for verdict in stack.verdicts
            ]
        }
        | plain(stack.verdict, VERDICT)
    )


def _explained(route: Explanation) -> Json:
    sentences = [objection.sentence for objection in route.objections]
    return plain(route, "route matches sentence") | {"objections": sentences}
