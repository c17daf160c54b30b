"""The DICOM conformance statement of this very node."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse

from node.web.auth import AsViewer
from node.web.parts import PartsOf
from node.web.views.render import look, page

router = APIRouter()


@router.get("/conformance")
def conformance(request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    at = look(request, parts, visitor)
    written = request.app.state.statements.of(parts.config())
    return page(at, "conformance.html", path="/conformance", statement=written.html)
