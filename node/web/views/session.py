"""The log-in, one's own password, and whether patients' attributes are shown."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse

from node.web.auth import AsViewer
from node.web.gate import How
from node.web.parts import PartsOf
from node.web.problems import Problem
from node.web.views.render import ENVIRONMENT, MASK, look, page

router = APIRouter()

MASK_SECONDS = 365 * 86400


@router.get("/login")
def form(next: str = "/") -> HTMLResponse:
    return HTMLResponse(ENVIRONMENT.get_template("login.html").render(problem=None, next=next))


@router.get("/password")
def password(request: Request, visitor: AsViewer, parts: PartsOf) -> HTMLResponse:
    if visitor.how is not How.SESSION:
        raise Problem(404, "Only who has logged in with a password can change it here.")
    return page(look(request, parts, visitor), "password.html", path="/password")


@router.post("/mask")
def mask(request: Request, visitor: AsViewer, parts: PartsOf) -> RedirectResponse:
    """Hide or show patients' attributes in this browser, and show the same page again."""
    is_masked = request.cookies.get(MASK) == "1"
    answer = RedirectResponse(_page_of(request), 303)
    secure = parts.gate.is_secure(request)
    value = "" if is_masked else "1"
    answer.set_cookie(
        MASK, value, max_age=MASK_SECONDS, httponly=True, samesite="lax", secure=secure
    )
    return answer


def _page_of(request: Request) -> str:
    """The path of the page whose button was pressed; never another site's."""
    before = request.headers.get("referer", "")
    host = f"//{request.headers.get('host', '')}/"
    _, found, path = before.partition(host)
    return f"/{path}" if found and not path.startswith(("/", "\\")) else "/"
