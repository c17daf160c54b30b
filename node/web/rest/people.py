"""Users and API tokens: the administrator's; and who am I."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request

from node.rules.view import Json, iso
from node.web import pace
from node.web.auth import AsAdministrator, AsViewer, Role, Visitor
from node.web.parts import Parts, PartsOf
from node.web.people import People
from node.web.rest.bodies import Body, taken, takes
from node.web.rest.inputs import Id, Line, Name, ProblemDocument, Secret, UserName
from storage.records import ApiToken, User
from storage.site import people

router = APIRouter(tags=["users"])


AnyRole = Literal["viewer", "operator", "administrator"]


class NewUser(Body):
    name: UserName
    role: AnyRole
    password: Secret


class UserChange(Body):
    role: AnyRole | None = None
    password: Secret | None = None
    disabled: bool | None = None


class OwnPassword(Body):
    old: str = Field(max_length=256)
    new: Secret


class NewToken(Body):
    name: Line = Field(min_length=1, max_length=64)
    role: AnyRole


@router.get("/me", summary="Who asks, and with which role")
def me(visitor: AsViewer) -> Json:
    return {"name": visitor.name, "role": str(visitor.role), "how": str(visitor.how)}


@router.post(
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
    with pace.guess(gate, visitor.name, gate.address(request), "password refused"):
        _people(parts, visitor).change_own(body.old, body.new)


@router.get("/users", summary="Everybody who may log in")
def list_users(_: AsAdministrator, parts: PartsOf) -> list[Json]:
    return [_user(each, parts) for each in people.people(parts.database)]


@router.post("/users", summary="Add a user", status_code=201, openapi_extra=takes(NewUser))
def add_user(
    visitor: AsAdministrator, body: Annotated[NewUser, Depends(taken(NewUser))], parts: PartsOf
) -> Json:
    return _user(_people(parts, visitor).add(body.name, Role(body.role), body.password), parts)


@router.patch(
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
    changed = _people(parts, visitor).change(
        name,
        role=Role(body.role) if body.role else None,
        password=body.password,
        disabled=body.disabled,
    )
    return _user(changed, parts)


@router.delete("/users/{name}", summary="Remove a user", status_code=204)
def remove_user(name: Name, visitor: AsAdministrator, parts: PartsOf) -> None:
    _people(parts, visitor).remove(name)


@router.get("/tokens", summary="API tokens, revoked ones too; never their text")
def list_tokens(_: AsAdministrator, parts: PartsOf) -> list[Json]:
    return [_token(each, parts) for each in people.tokens(parts.database)]


@router.post(
    "/tokens",
    summary="Add a token; the answer is the only place that shows it",
    status_code=201,
    openapi_extra=takes(NewToken),
)
def add_token(
    visitor: AsAdministrator, body: Annotated[NewToken, Depends(taken(NewToken))], parts: PartsOf
) -> Json:
    token, text = _people(parts, visitor).add_token(body.name, Role(body.role))
    return _token(token, parts) | {"token": text}


@router.delete("/tokens/{token_id}", summary="Revoke a token", status_code=204)
def revoke_token(token_id: Id, visitor: AsAdministrator, parts: PartsOf) -> None:
    _people(parts, visitor).revoke_token(token_id)


def _people(parts: Parts, visitor: Visitor) -> People:
    return People(parts.database, parts.gate.now, visitor.name)


def _user(user: User, parts: Parts) -> Json:
    return {
        "name": user.name,
        "role": str(user.role),
        "disabled": user.disabled,
        "created_at": iso(user.created_at, parts.zone),
        "changed_at": iso(user.changed_at, parts.zone),
    }


def _token(token: ApiToken, parts: Parts) -> Json:
    return {
        "id": token.id,
        "name": token.name,
        "role": str(token.role),
        "created_by": token.created_by,
        "created_at": iso(token.created_at, parts.zone),
        "used_at": iso(token.used_at, parts.zone),
        "revoked_at": iso(token.revoked_at, parts.zone),
    }
