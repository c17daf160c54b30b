"""The rule tester: what would the routes do? For operators too, so it shows no configuration."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, File, Form, Query, UploadFile
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node.web import shield, tester, trial
from node.web.auth import AsOperator
from node.web.parts import PartsOf
from node.web.problems import Problem
from node.web.views.render import Look, look, page, part

router = APIRouter()


@router.get("/rules")
def rules(
    request: Request,
    visitor: AsOperator,
    parts: PartsOf,
    series_uid: Annotated[str, Query(max_length=64)] = "",
) -> HTMLResponse:
    at = look(request, parts, visitor)
    return page(at, "rules.html", path="/rules", **asked(at, series_uid))


@router.post("/rules/try")
def tried(
    request: Request,
    visitor: AsOperator,
    parts: PartsOf,
    file: Annotated[list[UploadFile] | None, File()] = None,
    series_uid: Annotated[str, Form(max_length=64)] = "",
    called_ae: Annotated[str, Form(max_length=16)] = "",
    calling_ae: Annotated[str, Form(max_length=16)] = "",
) -> HTMLResponse:
    """What the routes say to files that were dropped here, or to a series that was received."""
    at = look(request, parts, visitor)
    titles = called_ae.strip(), calling_ae.strip()
    given = [each for each in file or [] if each.filename]
    if given:
        found = tester.try_files(parts, visitor.name, given, *titles)
    elif series_uid.strip():
        found = tester.try_series(parts, visitor.name, series_uid.strip(), *titles)
    else:
        raise Problem(422, "Drop a Part 10 file, or name the UID of a received series.")
    return part(at, "tried.html", found=trial.masked(found) if at.is_masked else found)


def asked(at: Look, series_uid: str) -> Mapping[str, object]:
    """What the form of the tester begins with."""
    return {
        "series_uid": series_uid,
        "called": at.parts.config().node.ae_title,
        "bounds": shield.FILE_BOUNDS,
    }
