"""STOW-RS of the node (PS3.18 10.5): a way in that keeps the promise of C-STORE.

An instance is on disk and indexed before the answer names it as stored. What knows DICOM is loaded
with the first request: a site that stores by DIMSE alone has none of it in its web process.
"""

import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from node.dicom.admission import AssociationRequest
from node.store import Store
from node.web.access import AsOperator, How, Visitor
from node.web.dicomweb import DICOM, JSON, Uid, check_accept, resource
from node.web.problems import RETRY_SECONDS, Problem
from node.web.state import Parts, PartsOf
from storage.archive import Archive
from storage.records import Peer, Received
from storage.site.nodes import of_web_process

if TYPE_CHECKING:
    from node.dicom.association_log import AssociationWriter, Entry

logger = logging.getLogger(__name__)

MULTIPART = "multipart/related"
TAKEN = f'{MULTIPART}; type="{DICOM}"; boundary=...'
MOST_AT_ONCE = 8  # requests; each has a thread while a piece of it is written
AE_TITLE = re.compile(r"[ -\[\]-~]{1,16}")  # PS3.5 6.2: no backslash, no control character
PARTS = "web-*.part"  # `node.dicom.stow_server.PREFIX`
LONGEST_BOUNDARY = 200  # RFC 2046 allows 70; Orthanc has 73

router = APIRouter(prefix="/dicom-web", include_in_schema=False)


class Reception:
    """What requests to store have in common; made once a process."""

    def __init__(self, store: Store) -> None:
        # Its associations are told from those of the node's ports, whose process may live longer.
        node = of_web_process(store.node_id)
        self.archive = Archive(store.database, store.files, store.now, node=node)
        self._log: AssociationWriter | None = None
        self._turn = threading.Lock()
        self._count = 0

    def recover(self) -> None:
        """Tidy up what a dead web process left; nothing of it was acknowledged."""
        for part in self.archive.files.incoming.glob(PARTS):
            part.unlink(missing_ok=True)
        self.archive.lose_associations()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take one of the places; a Problem where all are taken."""
        if self._count >= MOST_AT_ONCE:
            detail = f"{self._count} requests to store are being received; try again soon."
            again = {"Retry-After": str(RETRY_SECONDS)}
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=again)
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1

    def log(self) -> "AssociationWriter":
        """The log of associations: to the archive, a request to store is one."""
        from node.dicom.association_log import AssociationWriter

        with self._turn:
            if self._log is None:
                self._log = AssociationWriter(self.archive)
                self._log.start()
            return self._log

    def close(self) -> None:
        """Write down how the last ones ended."""
        if self._log is not None:
            self._log.close()


@router.post("/studies")
async def store(request: Request, visitor: AsOperator, parts: PartsOf) -> Response:
    """Store instances, of whatever studies."""
    return await _stored(request, visitor, parts, "")


@router.post("/studies/{study}")
async def store_in_study(
    study: Uid, request: Request, visitor: AsOperator, parts: PartsOf
) -> Response:
    """Store instances of this study; those of another one are refused."""
    return await _stored(request, visitor, parts, study)


async def _stored(request: Request, visitor: Visitor, parts: Parts, study: str) -> Response:
    check_accept(request, JSON)
    boundary = _boundary(request)
    reception: Reception = request.app.state.reception
    with reception.place():
        names = await run_in_threadpool(_admitted, request, visitor, parts, reception)
        storing = _Storing(reception, names, parts, study, boundary)
        try:
            await storing.receive(request)
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody is there to read it
        finally:
            storing.end()
    return storing.response()


def _boundary(request: Request) -> bytes:
    """The boundary of the body; a Problem says what is taken."""
    given = request.headers.get("content-type", "")
    kind, options = parse_options_header(given)
    of = options.get(b"type", DICOM.encode()).decode("latin-1").lower()
    if kind.decode("latin-1") != MULTIPART or of != DICOM:
        what = f"Content-Type {given[:80] or 'is missing'}"
        detail = f"{what}: this takes Part 10 files as {TAKEN}; no metadata in JSON or XML."
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
    if coding := request.headers.get("content-encoding", ""):
        detail = f"Content-Encoding {coding[:40]}: the body is taken as it is, not compressed."
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= LONGEST_BOUNDARY:
        detail = f"The Content-Type names no boundary (1 to {LONGEST_BOUNDARY} characters): {TAKEN}"
        raise Problem(HTTPStatus.BAD_REQUEST, detail)
    return boundary


@dataclass(frozen=True)
class Sender:
    """Who stores: the AE titles that stand for a user or a token and for the node."""

    calling_ae: str
    called_ae: str
    address: str


def _admitted(request: Request, visitor: Visitor, parts: Parts, reception: Reception) -> Sender:
    """Apply the rules for peers of DIMSE to who stores by HTTP; a Problem says why not."""
    parts.store.files.check_room()
    settings = parts.config()
    name = visitor.name.removeprefix("token ") if visitor.how is How.TOKEN else visitor.name
    if not AE_TITLE.fullmatch(name):
        detail = (
            f"The name {name!r} stands for the AE title of the sender, and is none: it has more "
            "than 16 characters, or others than printable ASCII. Make a token with such a name."
        )
        raise Problem(HTTPStatus.FORBIDDEN, detail)
    sender = Sender(name, settings.node.ae_title, parts.gate.address(request))
    asked = AssociationRequest(
        sender.calling_ae,
        sender.called_ae,
        sender.address,
        is_tls=parts.gate.is_secure(request),
    )
    if refused := parts.store.admission(settings).refused(asked):
        extra = {**asdict(sender), "port": 0, "reason": refused.reason}
        logger.warning("association rejected", extra=extra)
        names = sender.calling_ae, sender.called_ae
        reception.log().rejected(*names, sender.address, refused.reason)
        detail = f"{name} at {sender.address} may not send to this node: {refused.reason}."
        raise Problem(HTTPStatus.FORBIDDEN, detail)
    return sender


class _Storing:
    """One request to store, from the first byte of its body to its answer."""

    def __init__(
        self, reception: Reception, sender: Sender, parts: Parts, study: str, boundary: bytes
    ) -> None:
        from node.dicom.stow_server import Place, StowBody

        self._reception = reception
        self._sender = sender
        self._log = reception.log()
        names = sender.calling_ae, sender.called_ae
        self._entry: Entry = self._log.opened(*names, sender.address)
        self._how = "aborted"
        files = reception.archive.files
        place = Place(
            folder=files.incoming,
            min_free_bytes=files.min_free_bytes,
            keep=self._keep,
            peer=Peer(sender.calling_ae, sender.called_ae),
            study_uid=study,
        )
        self._body = StowBody(boundary, place)

    async def receive(self, request: Request) -> None:
        """Take the body as it comes; each instance is kept as soon as it is whole."""
        from node.dicom.stow_server import Malformed

        try:
            async for piece in request.stream():
                await run_in_threadpool(self._body.feed, piece)
            self._body.finish()
        except Malformed as error:
            raise Problem(HTTPStatus.BAD_REQUEST, self._sentence(str(error))) from error
        except ClientDisconnect:
            self._how = "dropped"
            raise
        self._how = "released"

    def end(self) -> None:
        """Leave no file behind, and write down how it ended."""
        self._body.discard()
        self._log.ended(self._entry, self._how)
        stored = sum(answer.is_stored for answer in self._body.answers)
        extra = {**asdict(self._sender), "how": self._how, "instances": stored}
        extra |= {"refused": len(self._body.answers) - stored}
        if self._how == "released":
            logger.info("request to store ended", extra=extra)
        else:
            logger.warning("request to store ended", extra=extra)

    def response(self) -> Response:
        """Say what became of each instance: PS3.18 10.5.3."""
        from node.dicom import stow_server

        answers = self._body.answers
        status = stow_server.http_status(answers)
        headers = {}
        if comment := next((it.comment for it in answers if it.comment), ""):
            headers["Warning"] = f'299 midslice "{comment}"'  # for people; codes are in the body
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            headers["Retry-After"] = str(RETRY_SECONDS)
        document = stow_server.response(answers, resource)
        return Response(json.dumps(document), status, headers, media_type=JSON)

    def _keep(self, received: Received, peer: Peer, path: Path, digest: str) -> object:
        """Keep an instance; its row names the request, which is in the log by then."""
        of_request = replace(peer, association=self._log.number(self._entry))
        return self._reception.archive.keep(received, of_request, path, digest)

    def _sentence(self, error: str) -> str:
        stored = sum(answer.is_stored for answer in self._body.answers)
        before = f" {stored} instances before that are stored." if stored else ""
        return f"{error[:1].upper()}{error[1:]}.{before} Send it as {TAKEN}"
