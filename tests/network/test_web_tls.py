"""The pages over TLS of the node's own: browsers, silent clients, another certificate."""

import shutil
import socket
import ssl
from pathlib import Path

import httpx
import pytest

from tests.certificates import Authority, Pair
from tests.node_process import NodeProcess, route, running, wait_for


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certificates")


def node_of(folder: Path, pair: Pair) -> NodeProcess:
    node = NodeProcess(folder / "node", route(destinations=[]))
    path = node.folder / "config.toml"
    tls = (
        f'[web]\ncertificate = "{pair.certificate}"\nkey = "{pair.key}"\n'
        f'key_password = "file:{folder}/password"\n'
    )
    (folder / "password").write_text("geheim")
    path.write_text(path.read_text().replace("[web]\n", tls))
    return node


def serial_of(port: int, authority: Authority) -> str:
    """The serial number of the certificate that is served; empty where nobody answers."""
    context = ssl.create_default_context(cafile=authority.certificate)
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10.0) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            return str((secured.getpeercert() or {})["serialNumber"])
    except OSError:
        return ""


def test_pages_are_served_with_tls_and_a_replaced_certificate_is_taken(
    tmp_path: Path, authority: Authority
) -> None:
    pair = authority.sign("node", password="geheim")
    with running(node_of(tmp_path, pair)) as node:
        link = node.event("no user yet")["set_up_link"]
        assert link.startswith(f"https://127.0.0.1:{node.web_port}/setup?key=")
        first = wait_for("pages", lambda: serial_of(node.web_port, authority), 60.0)
        trusting = ssl.create_default_context(cafile=authority.certificate)
        with httpx.Client(verify=trusting, timeout=30.0) as browser:
            assert "Make the first administrator" in browser.get(link).text
            form = {"name": "anna", "password": "correct horse", "again": "correct horse"}
            base = f"https://localhost:{node.web_port}"
            key = link.partition("key=")[2]
            made = browser.post(f"{base}/setup", data={"key": key, **form})
            assert made.status_code == 303
            assert all("secure" in it.lower() for it in made.headers.get_list("set-cookie"))
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"https://localhost:{node.web_port}/healthz", timeout=30.0)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://localhost:{node.web_port}/healthz", timeout=30.0)
        newer = Authority(authority.folder / "new", authority.name, authority._key)
        locked = newer.sign("node", password="another")
        shutil.copy(locked.key, pair.key)
        kept = node.event("certificate not replaced")
        assert "does not open with the password" in kept["why"]
        assert serial_of(node.web_port, authority) == first
        other = newer.sign("node")
        shutil.copy(other.key, pair.key)
        shutil.copy(other.certificate, pair.certificate)
        node.event("web certificate replaced")
        second = lambda: serial_of(node.web_port, authority) not in ("", first)  # noqa: E731
        wait_for("the new certificate", second, 60.0)


def test_who_begins_no_handshake_keeps_nobody_waiting(tmp_path: Path, authority: Authority) -> None:
    with running(node_of(tmp_path, authority.sign("node"))) as node:
        wait_for("pages", lambda: serial_of(node.web_port, authority), 60.0)
        silent = [socket.create_connection(("127.0.0.1", node.web_port)) for _ in range(40)]
        assert serial_of(node.web_port, authority)
        silent[0].settimeout(30.0)
        assert silent[0].recv(1) == b""  # ended by the node
        for connection in silent:
            connection.close()
