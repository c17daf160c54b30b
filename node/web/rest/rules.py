"""The rule tester: what would happen to a series or to some files, without doing it."""

from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, UploadFile
from pydantic import Field

from node.rules.view import Json
from node.web import tester
from node.web.auth import AsOperator
from node.web.parts import PartsOf
from node.web.rest.bodies import Body, taken, takes
from node.web.rest.inputs import AE_TITLE
from node.web.trial import Tried

router = APIRouter(tags=["rules"])

AnyTitle = Annotated[str, Form(pattern=AE_TITLE)]


class Received(Body):
    series_uid: str = Field(pattern=r"^[0-9.]{1,64}$")
    called_ae: str = Field("", pattern=r"^([ -\[\]-~]{1,16})?$", description="Empty: as it came.")
    calling_ae: str = Field("", pattern=r"^([ -\[\]-~]{1,16})?$", description="Empty: as it came.")


@router.post("/rules/explain", summary="Which routes take these files, and why others do not")
def explain(
    visitor: AsOperator,
    parts: PartsOf,
    file: Annotated[list[UploadFile], File(description="Part 10 files; only headers are read.")],
    called_ae: AnyTitle = "MIDSLICE",
    calling_ae: AnyTitle = "ANY",
) -> Json:
    return _shown(tester.try_files(parts, visitor.name, file, called_ae, calling_ae))


@router.post(
    "/rules/dry-run",
    summary="The routes and the check of the geometry for a received series, from its headers",
    openapi_extra=takes(Received),
)
def dry_run(
    visitor: AsOperator, body: Annotated[Received, Depends(taken(Received))], parts: PartsOf
) -> Json:
    titles = body.called_ae, body.calling_ae
    return _shown(tester.try_series(parts, visitor.name, body.series_uid, *titles))


def _shown(found: Tried) -> Json:
    return {
        "stacks": [
            {
                "stack": each.stack,
                "instances": each.instances,
                "gap_mm": each.gap_mm,
                "tilt_degrees": each.tilt_degrees,
                "missing": each.missing,
                "notes": list(each.notes),
                "attributes": dict(each.attributes),
                "routes": [
                    {"route": one.route, "matches": one.matches, "sentence": one.sentence}
                    for one in each.routes
                ],
                "state": each.state,
                "reason": each.reason,
                "sentence": each.sentence,
            }
            for each in found.stacks
        ],
        "set_aside": [{"instances": count, "why": why} for count, why in found.set_aside],
    }
