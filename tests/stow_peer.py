"""A web service that takes STOW-RS and answers as a script says."""

import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

from pydicom import dcmread

from tests.ports import HOST


@dataclass
class StowScript:
    """The answers in turn, HTTP status and the reason of a failure; then all is stored."""

    answers: list[tuple[int, int]] = field(default_factory=list)
    authorization: str = ""  # what is asked for; empty: nothing
    stored: dict[str, bytes] = field(default_factory=dict)  # the files as they came
    requests: list[Mapping[str, str]] = field(default_factory=list)  # their headers
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/dicom-web"

    def answer(self, headers: Mapping[str, str], body: bytes) -> tuple[int, object]:
        """The HTTP status and the data set in DICOM JSON."""
        self.requests.append(headers)
        if self.authorization and headers.get("Authorization") != self.authorization:
            return 401, None
        status, reason = self.answers.pop(0) if self.answers else (200, 0)
        message = BytesParser(policy=HTTP).parsebytes(
            f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body
        )
        items = []
        for part in message.iter_parts():
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            uid = str(dcmread(BytesIO(content), stop_before_pixels=True).SOPInstanceUID)
            item: dict[str, object] = {"00081155": {"vr": "UI", "Value": [uid]}}
            if reason:
                item["00081197"] = {"vr": "US", "Value": [reason]}
            elif status == 200:
                self.stored[uid] = content
            items.append(item)
        if status >= 500:
            return status, None
        return status, {"00081198" if reason else "00081199": {"vr": "SQ", "Value": items}}


@contextmanager
def stow_service(script: StowScript, tls: ssl.SSLContext | None = None) -> Iterator[StowScript]:
    """Serve it on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, document = script.answer(dict(self.headers), body)
            content = json.dumps(document).encode() if document is not None else b""
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            is_known = script.authorization in ("", self.headers.get("Authorization"))
            self.send_response(204 if is_known else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a handshake that fails is what the test asks for

    server = Server((HOST, script.port), Handler)
    script.port = server.server_port
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
