"""What the API takes: bounded numbers, text of one line, pages of a list."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias
from urllib.parse import urlencode

from fastapi import Depends, Path, Query, Response
from pydantic import BaseModel, StringConstraints
from starlette.requests import Request

from storage.records import Page as Found

MOST_ROWS = 1000
LARGEST_ID = 2**31 - 1  # of an INTEGER column
LARGEST_OFFSET = 10**9
ONE_LINE = r"^[^\x00-\x1f\x7f]*$"  # a database refuses NUL, and a page of lines any other control

AE_TITLE = r"^[ -\[\]-~]{1,16}$"  # PS3.5 6.2: no backslash, no control character

Line: TypeAlias = Annotated[str, StringConstraints(max_length=256, pattern=ONE_LINE)]
Secret: TypeAlias = Annotated[str, StringConstraints(min_length=10, max_length=256)]
UserName: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")
]

Id: TypeAlias = Annotated[int, Path(ge=1, le=LARGEST_ID)]
Uid: TypeAlias = Annotated[str, Path(pattern=r"^[0-9.]{1,64}$")]
Name: TypeAlias = Annotated[str, Path(max_length=64, pattern=ONE_LINE)]
AeTitle: TypeAlias = Annotated[str, Query(pattern=AE_TITLE)]


@dataclass(frozen=True)
class Page:
    """Which part of a list is asked for; the answer's headers say how much there is."""

    limit: int
    offset: int
    response: Response
    request: Request

    def of(self, found: Found[Any]) -> None:
        """Write `X-Total-Count`, and `Link` (RFC 8288) where there is more."""
        self.counted(found.total, len(found.lines), is_whole=found.is_whole)

    def counted(self, total: int, shown: int, *, is_whole: bool = True) -> None:
        """The same for a list that is no page of storage; a long one is not counted to its end."""
        self.response.headers["X-Total-Count"] = str(total)
        following = self.offset + self.limit
        more = following < total if is_whole else shown == self.limit
        if more:
            kept = [(k, v) for k, v in self.request.query_params.multi_items() if k != "offset"]
            query = urlencode([*kept, ("offset", following)])
            self.response.headers["Link"] = f'<{self.request.url.path}?{query}>; rel="next"'


def _page(
    response: Response,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS, description="At most so many.")] = 100,
    offset: Annotated[
        int, Query(ge=0, le=LARGEST_OFFSET, description="The first so many are left out.")
    ] = 0,
) -> Page:
    return Page(limit, offset, response, request)


Paged: TypeAlias = Annotated[Page, Depends(_page)]


class Mistake(BaseModel):
    where: str
    what: str


class ProblemDocument(BaseModel):
    """RFC 9457; sent as application/problem+json."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[Mistake] = []


# What an endpoint may answer besides what was asked for; every body is a problem document.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "model": ProblemDocument}
    for status, description in {
        400: "It cannot be read.",
        401: "Nobody is logged in, and no token was sent.",
        403: "The role does not allow it, or the CSRF token is missing.",
        404: "There is no such row.",
        408: "The body did not come in whole, in time.",
        409: "The row is in a state that does not allow it.",
        413: "The request is too long.",
        422: "A value is not allowed.",
        503: "The database is busy; try again.",
    }.items()
}
