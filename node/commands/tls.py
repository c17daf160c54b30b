"""Commands for TLS: `tls init` makes certificates for a test."""

import datetime as dt
import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.commands import terminal
from node.commands.terminal import AsJson
from node.errors import UsageError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

AUTHORITY, NODE, PEER = "ca", "node", "peer"
BITS = 3072
DAYS = 397
SITE = (
    "These are for a test: the authority has no password, and nobody looks after it. A site has "
    "its own certificate authority issue the certificates of nodes and peers, keeps the keys "
    "where they are made (the node reads its own from a file of mode 0600), and enters the "
    "authority's certificate as tls.authorities."
)
CONFIGURATION = """
[tls]
certificate = "{folder}/node.pem"
key = "{folder}/node.key"
authorities = "{folder}/ca.pem"
"""
TRIAL = (
    "A peer: echoscu -aec {title} +tls {folder}/peer.key {folder}/peer.pem +cf {folder}/ca.pem "
    "{host} 2762"
)

commands = typer.Typer(no_args_is_help=True, help="Certificates for DICOM over TLS.")


@commands.command("init")
def init(
    folder: Annotated[Path, typer.Argument(help="Where to; it is made.")],
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="A name or address of this node; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a private authority with certificates of a node and a peer, for a test."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    hosts = host or list(dict.fromkeys([socket.gethostname(), "localhost", "127.0.0.1"]))
    _make(folder, hosts)
    files = sorted(path.name for path in folder.iterdir())
    if as_json:
        terminal.print_json({"folder": str(folder), "files": files, "hosts": hosts})
        return
    place = folder.resolve()
    terminal.say(f"{folder} has {', '.join(files)}, valid for {DAYS} days, for {', '.join(hosts)}.")
    terminal.say("In config.toml:" + CONFIGURATION.format(folder=place))
    terminal.say(TRIAL.format(title="MIDSLICE", folder=place, host=hosts[0]))
    terminal.say(SITE)


def _make(folder: Path, hosts: Iterable[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import rsa

    authority_key = rsa.generate_private_key(65537, BITS)
    authority = _name("Midslice test authority")
    ca = x509.BasicConstraints(ca=True, path_length=0)
    own = _signed(authority, authority, authority_key, authority_key, [(ca, True)])
    _write(folder, AUTHORITY, own, authority_key)
    for name, names in ((NODE, hosts), (PEER, ["localhost", "127.0.0.1"])):
        key = rsa.generate_private_key(65537, BITS)
        alternative = x509.SubjectAlternativeName([_general(host) for host in names])
        leaf = x509.BasicConstraints(ca=False, path_length=None)
        extensions = [(leaf, True), (alternative, False)]
        signed = _signed(_name(f"midslice-{name}"), authority, key, authority_key, extensions)
        _write(folder, name, signed, key)


def _name(common: str) -> "x509.Name":
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _general(host: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _signed(
    subject: "x509.Name",
    issuer: "x509.Name",
    key: "RSAPrivateKey",
    by: "RSAPrivateKey",
    extensions: Iterable[tuple[Any, bool]],
) -> "x509.Certificate":
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + dt.timedelta(days=DAYS))
    )
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, critical=is_critical)
    return builder.sign(by, SHA256())


def _write(folder: Path, name: str, certificate: "x509.Certificate", key: "RSAPrivateKey") -> None:
    from cryptography.hazmat.primitives import serialization as encoding

    pem = encoding.Encoding.PEM
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
    path = folder / f"{name}.key"
    path.touch(0o600)
    path.write_bytes(key.private_bytes(pem, encoding.PrivateFormat.PKCS8, encoding.NoEncryption()))
