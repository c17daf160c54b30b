"""The check of a node's set-up: one finding a fact, with what to do where it is not right."""

import os
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from sqlalchemy.engine import make_url

from inference import registry
from inference.errors import ModelLoadError
from inference.pixels import decoder_of
from node import certificates, health, revocation, wording
from node.certificates import Certificate
from node.config import Config, Destination, ModelEntry
from node.dicom import stow
from node.dicom.contexts import DECODER_PACKAGES
from node.dicom.tls import TlsFiles, client_context, sentence_of, server_context
from node.health import Finding, Level, fault, ok, warning
from storage.database import FILE_NAME, ClusterClock, Database
from storage.errors import StorageError
from storage.files import DERIVED, INCOMING, OTHERS, RECEIVED, SECRET
from storage.site import people
from storage.site.nodes import Nodes

LAST_PRIVILEGED_PORT = 1023


def run(config: Config) -> Iterator[Finding]:
    """Look at everything, in the order in which a fault would stop a series."""
    yield from _configuration(config)
    rows = _rows(config)
    yield _port("port", config.node.host, config.node.port, is_running=rows.is_running)
    yield from _tls(config, is_running=rows.is_running)
    yield from _peers(config)
    yield _port("web port", config.web.host, config.web.port, is_running=rows.is_running)
    yield _disk(config)
    yield from _permissions(config)
    yield _secret(config)
    yield _database(config, rows)
    yield from _users(config, rows)
    yield from _log_in_provider(config)
    yield from _clock(config)
    yield _time_zone(config)
    yield _decoders()
    yield from _models(config)
    for destination in config.destinations:
        yield _echo(config, destination)


def _configuration(config: Config) -> Iterator[Finding]:
    routes = wording.count(len(config.routes), "route")
    destinations = wording.count(len(config.destinations), "destination")
    yield ok("configuration", f"{config.path}: {routes}, {destinations}")
    for key, variable in config.environment.items():
        yield ok("environment", f"{variable} sets {key}, whatever the file says")
    if not config.routes:
        yield warning(
            "routes", "There is none: series are kept, but not processed.", "Add a [[route]]."
        )
    for route in config.routes:
        if not route.destinations:
            yield warning(
                "routes",
                f"{route.name} has no destinations: its results are kept here and not sent.",
                "That is shadow mode; name destinations to deliver.",
            )
    for destination in config.destinations:
        if _is_this_node(config, destination):
            yield fault(
                "destinations",
                f"{destination.name} is this node itself: its results would come back.",
                "Give the AE title, host and port of the PACS.",
            )


def _is_this_node(config: Config, destination: Destination) -> bool:
    same_host = destination.host in health.LOCAL_HOSTS | {config.node.host, socket.gethostname()}
    return same_host and destination.port == config.node.port


def _port(what: str, host: str, port: int, *, is_running: bool) -> Finding:
    if port == 0:
        return ok(what, f"any free one on {host}; the log says which")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            return ok(what, f"{port} on {host} is free")
    except PermissionError:
        return fault(
            what,
            f"{port} on {host} may not be used by this account.",
            f"Choose one above {LAST_PRIVILEGED_PORT}, or give this account the right to use it.",
        )
    except OSError as error:
        if is_running:
            return ok(what, f"{port} on {host} is used by the running node")
        return fault(
            what,
            f"{port} on {host} cannot be listened on: {error.strerror}.",
            "End the program that uses it, or choose another port or host.",
        )


def _tls(config: Config, *, is_running: bool) -> Iterator[Finding]:
    """The port for TLS, and every certificate and key that the configuration names."""
    if config.tls.certificate is not None:
        yield _port("TLS port", config.node.host, config.tls.port, is_running=is_running)
    yield from _contexts(config)
    for role, path in certificates.files(config):
        yield from _certificates(role, path, certificates.of_file)
    for role, path in certificates.lists(config):
        yield from _certificates(role, path, certificates.of_crl)
    for role, (authorities, crl) in certificates.trust_stores(config).items():
        yield from _unlisted(role, authorities, crl)
    for path in certificates.keys(config):
        with suppress(OSError):  # said above
            if not certificates.is_private(path):
                yield fault("key", f"{path} can be read by others.", f"chmod 600 {path}")


def _contexts(config: Config) -> Iterator[Finding]:
    """Every pair of certificate and key is loaded as the node loads it."""
    tls = config.tls
    if tls.certificate is not None:
        yield from _use(
            "[tls]", TlsFiles.of(tls), partial(server_context, verifies=tls.verify_clients)
        )
    for place, own in config.tls_of_peers.items():
        yield from _use(place, TlsFiles.of(own), client_context)
    if config.web.certificate is not None:
        web = config.web
        pages = TlsFiles(web.certificate, web.key, None, key_password=web.key_password)
        yield from _use("[web]", pages, partial(server_context, verifies=False))
    if config.audit.certificate is not None or config.audit.authorities is not None:
        yield from _use("[audit]", TlsFiles.of(config.audit), client_context)


def _use(place: str, files: TlsFiles, make: Callable[[TlsFiles], object]) -> Iterator[Finding]:
    try:
        make(files)
    except OSError as error:
        shown = files.certificate or files.authorities
        yield fault("TLS", f"{shown}: {sentence_of(error)}.", f"Correct the files of {place}.")


def _unlisted(role: str, authorities: Path | None, crl: Path | None) -> Iterator[Finding]:
    """A fault for each authority that has no revocation list where there has to be one."""
    if authorities is None or crl is None:
        return
    with suppress(OSError, ValueError):  # said elsewhere
        for name in revocation.unlisted(authorities, crl):
            yield fault(
                "revocation list",
                f"{crl} has no list of {name}: nobody of {role} with its certificate is trusted.",
                "Add the list of this authority to the file, or remove the key crl.",
            )


def _certificates(
    role: str, path: Path, read: Callable[[str, Path], tuple[Certificate, ...]]
) -> Iterator[Finding]:
    what, now = "certificate" if read is certificates.of_file else "revocation list", time.time()
    try:
        of_file = read(role, path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or f"it holds no {what} in PEM"
        if isinstance(error, revocation.Unreadable):
            why = str(error).removeprefix(f"{path}: ")
        yield fault(what, f"{path} of {role}: {why}.", "Name a file that this account can read.")
        return
    for certificate in of_file:
        left, sentence = certificate.days_left(now), certificate.sentence(now)
        if left < 0:
            yield fault(what, sentence, "Replace the file; new connections use it at once.")
        elif certificate.stage(now):
            yield warning(what, sentence, "Have it renewed; new connections use it at once.")
        else:
            yield ok(what, sentence.rstrip("."))


def _peers(config: Config) -> Iterator[Finding]:
    """Warn where whoever reaches the port may send."""
    if config.node.lets_anybody_in:
        yield warning(
            "peers",
            f"Any AE title from any network may send to node.host = {config.node.host}.",
            "Name the senders' networks in node.allowed_networks, or their AE titles in "
            "node.allowed_ae_titles.",
        )


def _disk(config: Config) -> Finding:
    folder = health.existing(config.folder)
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        return fault("disk", f"{folder} cannot be written to.", "Let this account write to it.")
    return health.disk_room(config.folder, config.storage.min_free_bytes)


def _secret(config: Config) -> Finding:
    path = config.storage.secret_file or config.folder / SECRET
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return ok("secret", f"{path} is made at the first start; back it up then")
    except OSError as error:
        return fault("secret", f"{path}: {error.strerror}.", "Let this account read it.")
    if mode & OTHERS:
        return fault("secret", f"{path} can be read by others.", f"chmod 600 {path}")
    if not os.access(path, os.R_OK):
        return fault("secret", f"{path} cannot be read.", "Let this account read it.")
    return ok("secret", f"{path}; keep a copy of it with the backups")


def _permissions(config: Config) -> Iterator[Finding]:
    """Nobody else on this machine may read what is of patients."""
    names = ("", FILE_NAME, f"{FILE_NAME}-wal", INCOMING, RECEIVED, DERIVED)
    paths = [config.folder / name for name in names]
    open_ones = [path for path in paths if path.exists() and path.stat().st_mode & OTHERS]
    if open_ones:
        shown = ", ".join(map(str, open_ones))
        yield fault(
            "permissions",
            f"Others on this machine may open {shown}.",
            f"chmod -R go= {config.folder}; a node that owns them does so when it starts.",
        )


@dataclass(frozen=True)
class Rows:
    """Facts that the database tells; those of one that is not made yet are the defaults."""

    is_made: bool = False
    error: str = ""  # for which it cannot be read
    is_current: bool = True
    damage: str = ""
    is_running: bool = False  # a node that serves gave a sign of life a moment ago
    has_user: bool = False


def _rows(config: Config) -> Rows:
    if not config.storage.database and not (config.folder / FILE_NAME).exists():
        return Rows()
    try:
        with closing(Database.for_folder(config.folder, config.storage.database)) as database:
            return _read(database)
    except StorageError as error:
        return Rows(is_made=True, error=str(error))


def _read(database: Database) -> Rows:
    if not database.is_current():
        return Rows(is_made=True, is_current=False)
    now = ClusterClock(database)
    is_running = any(health.is_alive(node, now()) for node in Nodes(database, now).get())
    faults = () if is_running else database.integrity()
    return Rows(
        is_made=True,
        damage=faults[0] if faults else "",
        is_running=is_running,
        has_user=people.exist(database),
    )


def _database(config: Config, rows: Rows) -> Finding:
    what = "database"
    if not rows.is_made:
        return ok(what, f"{config.folder / FILE_NAME} is made at the first start")
    if rows.error:
        action = "Correct storage.database, or start its server."
        return fault(what, f"{rows.error}.", action)
    if rows.damage:
        action = "Bring back a backup with midslice restore, or move it away and start the node."
        return fault(what, f"It is damaged: {rows.damage}.", action)
    if not rows.is_current:
        action = "The next start brings it up to date."
        return warning(what, "Its schema is of another release.", action)
    if _is_in_clear(config.storage.database):
        return warning(
            what,
            "answers; it is on another machine, and its URL asks for no TLS.",
            "Add sslmode=verify-full and sslrootcert to storage.database.",
        )
    return ok(what, "answers; its schema is this release's")


def _is_in_clear(database: str) -> bool:
    """True for a server elsewhere whose URL does not ask for TLS."""
    if not database.startswith("postgresql"):
        return False
    url = make_url(database)
    host = url.host or ""
    is_here = not host or host in health.LOCAL_HOSTS or host.startswith("/")
    return not is_here and url.query.get("sslmode") not in ("require", "verify-ca", "verify-full")


def _users(config: Config, rows: Rows) -> Iterator[Finding]:
    """Pages need somebody who may log in."""
    behind_proxy = config.web.trusted_proxies and config.web.user_header
    if behind_proxy or rows.has_user or not rows.is_made or config.web.oidc is not None:
        return
    yield warning(
        "users",
        "There is no user: the pages and the API answer nobody.",
        "Open the set-up link that the node prints when it starts, or: "
        "midslice user add NAME --role administrator.",
    )


def _log_in_provider(config: Config) -> Iterator[Finding]:
    """The provider answers, as the configuration calls it."""
    if config.web.oidc is None:
        return
    from node.oidc import NotAnswering, Provider  # its package takes a while to load

    what, provider = "log-in provider", Provider(config.web.oidc, time.time)
    try:
        provider.look()
    except NotAnswering as error:
        sentence = str(error)
        yield warning(
            what,
            f"{sentence[:1].upper()}{sentence[1:]}.",
            "Correct [web.oidc], or have the provider looked at; the node itself runs without it.",
        )
    else:
        yield ok(
            what,
            f"{provider.host} answers; the address to enter there is "
            f"{config.web.oidc.redirect_uri}",
        )


def _local_now(config: Config) -> datetime:
    return datetime.now(config.node.zone).astimezone(config.node.zone)


def _clock(config: Config) -> Iterator[Finding]:
    now = _local_now(config)
    written = datetime.fromtimestamp(config.path.stat().st_mtime, now.tzinfo)
    if now < written - timedelta(minutes=1):
        yield fault(
            "clock",
            f"It says {now:%Y-%m-%d %H:%M}, but {config.path.name} was written "
            f"{written:%Y-%m-%d %H:%M}.",
            "Set the clock, and keep it right with NTP.",
        )


def _time_zone(config: Config) -> Finding:
    now = _local_now(config)
    if now.utcoffset() == timedelta(0) and not config.node.timezone:
        return warning(
            "time zone",
            "The system's is UTC: dates and times of derived series would differ from the site's.",
            'Set node.timezone, as "Europe/Berlin".',
        )
    return ok("time zone", f"{config.node.timezone or now.tzname()}, now {now:%H:%M:%S %z}")


def _decoders() -> Finding:
    """Each transfer syntax that a CT may come in compressed can be read."""
    lacking = [syntax for syntax in DECODER_PACKAGES if not decoder_of(syntax).is_available]
    if lacking:
        packages = sorted({DECODER_PACKAGES[syntax] for syntax in lacking})
        syntaxes = ", ".join(syntax.name for syntax in lacking)
        return fault("decoders", f"None for {syntaxes}.", f"Install {', '.join(packages)}.")
    return ok("decoders", f"all {len(DECODER_PACKAGES)} compressed transfer syntaxes can be read")


def _models(config: Config) -> Iterator[Finding]:
    entries = {entry.name: entry for entry in config.models}
    wanted = [*dict.fromkeys(route.model for route in config.routes), *entries]
    device = config.inference.device
    for name in dict.fromkeys(wanted):
        yield _model(name, entries.get(name), "cpu" if device == "auto" else device)


def _model(name: str, entry: ModelEntry | None, device: str) -> Finding:
    what = f"model {name}"
    spec = entry.spec if entry is not None else registry.spec_of(name)
    try:
        model = registry.load(spec, device)
    except ModelLoadError as error:
        return fault(what, f"{error}.", "Correct the model, its weights or inference.device.")
    weights = f", weights {model.weights_sha256[:12]}..." if model.weights_sha256 else ""
    says = f"version {model.version}{weights} on {device}"
    if entry is not None and entry.weights is not None and not entry.weights_sha256:
        return warning(
            what, f"{says}; its weights are not pinned.", "Set weights_sha256 of the model."
        )
    return ok(what, says)


def _echo(config: Config, destination: Destination) -> Finding:
    what = f"destination {destination.name}"
    answer = stow.echo(destination, config.node.ae_title)
    place, calling = destination.place, destination.calling_ae_title or config.node.ae_title
    if answer.ok:
        return ok(what, f"{place} answers in {answer.seconds * 1000:.0f} ms")
    return fault(
        what,
        answer.sentence if place in answer.sentence else f"{place}: {answer.sentence}",
        f"Start it, allow {calling} there, or correct its AE title, host and port here."
        if destination.kind == "dimse"
        else "Start it, or correct its url, its log-in or tls here.",
    )


def is_ok(findings: Iterable[Finding]) -> bool:
    """True where none of them is a fault."""
    return all(finding.level is not Level.FAULT for finding in findings)


def as_json(findings: Sequence[Finding]) -> dict[str, object]:
    """All findings, and whether none of them is a fault."""
    return {"ok": is_ok(findings), "findings": [vars(finding) for finding in findings]}
