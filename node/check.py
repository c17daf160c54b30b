"""Is this node set up right? One finding a fact, each with what to do where it is not right."""

import os
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from inference import registry
from inference.errors import ModelLoadError
from inference.request import ModelSpec
from node import health
from node.config import Config, Destination, ModelEntry
from node.dicom import scu
from storage.database import FILE_NAME, Database
from storage.errors import StorageError
from storage.files import SECRET
from storage.site import people
from storage.site.nodes import SERVING, Nodes

DISK_WARNING = 0.8  # of a disk in use
BEAT_SECONDS = 15.0  # a node without a heartbeat for so long does not run
LAST_PRIVILEGED_PORT = 1023
LOCAL_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


class Level(StrEnum):
    """How good a finding is; one fault makes the check fail."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and what a person should do about it."""

    what: str
    level: Level
    sentence: str
    action: str = ""


def run(config: Config) -> Iterator[Finding]:
    """Look at everything, in the order in which a fault would stop a series."""
    yield from _configuration(config)
    is_running = _is_running(config)
    yield _port("port", config.node.host, config.node.port, is_running=is_running)
    yield _port("web port", config.web.host, config.web.port, is_running=is_running)
    yield from _disk(config)
    yield _secret(config)
    yield from _database(config, is_running=is_running)
    yield from _users(config)
    yield from _clock(config)
    yield _decoders()
    yield from _models(config)
    for destination in config.destinations:
        yield _echo(config, destination)


def _ok(what: str, sentence: str) -> Finding:
    return Finding(what, Level.OK, sentence)


def _warning(what: str, sentence: str, action: str) -> Finding:
    return Finding(what, Level.WARNING, sentence, action)


def _fault(what: str, sentence: str, action: str) -> Finding:
    return Finding(what, Level.FAULT, sentence, action)


def _configuration(config: Config) -> Iterator[Finding]:
    counts = f"{_count(config.routes, 'route')}, {_count(config.destinations, 'destination')}"
    yield _ok("configuration", f"{config.path}: {counts}")
    if not config.routes:
        yield _warning(
            "routes", "There is none: series are kept and nothing is made.", "Add a [[route]]."
        )
    for route in config.routes:
        if not route.destinations:
            yield _warning(
                "routes",
                f"{route.name} has no destinations: its results are kept and sent nowhere.",
                "That is shadow mode; name destinations to deliver.",
            )
    for destination in config.destinations:
        if _is_this_node(config, destination):
            yield _fault(
                "destinations",
                f"{destination.name} is this very node: its results would come back.",
                "Give the AE title, host and port of the PACS.",
            )


def _is_this_node(config: Config, destination: Destination) -> bool:
    same_host = destination.host in LOCAL_HOSTS | {config.node.host, socket.gethostname()}
    return same_host and destination.port == config.node.port


def _port(what: str, host: str, port: int, *, is_running: bool) -> Finding:
    if port == 0:
        return _ok(what, f"any free one on {host}; the log says which")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            return _ok(what, f"{port} on {host} is free")
    except PermissionError:
        return _fault(
            what,
            f"{port} on {host} may not be used by this account.",
            f"Choose one above {LAST_PRIVILEGED_PORT}, or allow it to this account.",
        )
    except OSError as error:
        if is_running:
            return _ok(what, f"{port} on {host} is used by the running node")
        return _fault(
            what,
            f"{port} on {host} cannot be listened on: {error.strerror}.",
            "End the program that uses it, or choose another port or host.",
        )


def _disk(config: Config) -> Iterator[Finding]:
    folder = health.existing(config.folder)
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        yield _fault("disk", f"{folder} cannot be written to.", "Give this account the folder.")
        return
    found, reserve = health.disk(folder), config.storage.min_free_bytes
    free = f"{found.free_bytes / 1e9:.1f} GB free in {config.folder}"
    if found.free_bytes < reserve:
        yield _fault(
            "disk",
            f"{free}: below storage.min_free_gb = {reserve / 1e9:g}, every C-STORE gets A700.",
            "Make room, or lower storage.keep_days.",
        )
    elif found.used > DISK_WARNING:
        yield _warning("disk", f"{free}, {found.used:.0%} in use", "Make room soon.")
    else:
        yield _ok("disk", f"{free}, the reserve is {reserve / 1e9:g} GB")


def _secret(config: Config) -> Finding:
    path = config.storage.secret_file or config.folder / SECRET
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return _ok("secret", f"{path} is made at the first start; back it up then")
    except OSError as error:
        return _fault("secret", f"{path}: {error.strerror}.", "Give this account the file.")
    if mode & 0o077:
        return _warning("secret", f"{path} can be read by others.", f"chmod 600 {path}")
    if not os.access(path, os.R_OK):
        return _fault("secret", f"{path} cannot be read.", "Give this account the file.")
    return _ok("secret", f"{path}; keep a copy of it with the backups")


def _database(config: Config, *, is_running: bool) -> Iterator[Finding]:
    if not config.storage.database and not (config.folder / FILE_NAME).exists():
        yield _ok("database", f"{config.folder / FILE_NAME} is made at the first start")
        return
    try:
        database = Database.for_folder(config.folder, config.storage.database)
        try:
            is_current = database.is_current()
            faults = database.integrity() if is_current and not is_running else ()
        finally:
            database.close()
    except StorageError as error:
        yield _fault("database", f"{error}.", "Correct storage.database, or start its server.")
        return
    if faults:
        yield _fault(
            "database", f"It is damaged: {faults[0]}.", "Restore it, or move it away and reindex."
        )
    elif not is_current:
        yield _warning(
            "database", "Its schema is of another release.", "The next start brings it up to date."
        )
    else:
        yield _ok("database", "answers; its schema is this release's")


def _users(config: Config) -> Iterator[Finding]:
    """Pages that others are to see need somebody who may log in."""
    behind_proxy = config.web.trusted_proxies and config.web.user_header
    if config.web.host in LOCAL_HOSTS or behind_proxy or _has_user(config):
        return
    yield _warning(
        "users",
        f"web.host is {config.web.host} and there is no user: the pages answer this machine only.",
        "Add one with: midslice user add NAME --role administrator.",
    )


def _has_user(config: Config) -> bool:
    if not config.storage.database and not (config.folder / FILE_NAME).exists():
        return False
    database = Database.for_folder(config.folder, config.storage.database)
    try:
        return database.is_current() and people.exist(database)
    except StorageError:
        return False
    finally:
        database.close()


def _is_running(config: Config) -> bool:
    """True where a node that serves from this storage gave a sign of life a moment ago."""
    if not config.storage.database and not (config.folder / FILE_NAME).exists():
        return False
    try:
        database = Database.for_folder(config.folder, config.storage.database)
        try:
            nodes = Nodes(database, time.time).get() if database.is_current() else ()
        finally:
            database.close()
    except StorageError:  # the finding about the database says it
        return False
    now = time.time()
    return any(n.state == SERVING and abs(now - n.heartbeat) < BEAT_SECONDS for n in nodes)


def _clock(config: Config) -> Iterator[Finding]:
    now = datetime.now(config.node.zone).astimezone(config.node.zone)
    written = datetime.fromtimestamp(config.path.stat().st_mtime, now.tzinfo)
    if now < written - timedelta(minutes=1):
        yield _fault(
            "clock",
            f"It says {now:%Y-%m-%d %H:%M}, but {config.path.name} was written "
            f"{written:%Y-%m-%d %H:%M}.",
            "Set the clock, and keep it right with NTP.",
        )
    if now.utcoffset() == timedelta(0) and not config.node.timezone:
        yield _warning(
            "time zone",
            "The system's is UTC: dates and times of derived series would differ from the site's.",
            'Set node.timezone, as "Europe/Berlin".',
        )
    else:
        yield _ok("time zone", f"{config.node.timezone or now.tzname()}, now {now:%H:%M:%S %z}")


def _decoders() -> Finding:
    found = health.decoders()
    lacking = [decoder for decoder in found if not decoder.is_available]
    if lacking:
        return _fault(
            "decoders",
            f"None for {', '.join(decoder.name for decoder in lacking)}.",
            f"Install {', '.join(sorted({decoder.package for decoder in lacking}))}.",
        )
    return _ok("decoders", f"all {len(found)} compressed transfer syntaxes can be read")


def _models(config: Config) -> Iterator[Finding]:
    entries = {entry.name: entry for entry in config.models}
    wanted = [*dict.fromkeys(route.model for route in config.routes), *entries]
    device = config.inference.device
    for name in dict.fromkeys(wanted):
        yield _model(name, entries.get(name), "cpu" if device == "auto" else device)


def _model(name: str, entry: ModelEntry | None, device: str) -> Finding:
    what = f"model {name}"
    spec = ModelSpec(name)
    if entry is not None:
        spec = ModelSpec(name, entry.class_path, entry.weights, entry.weights_sha256)
    try:
        model = registry.load(spec, device)
    except ModelLoadError as error:
        return _fault(what, f"{error}.", "Correct the model, its weights or inference.device.")
    weights = f", weights {model.weights_sha256[:12]}..." if model.weights_sha256 else ""
    says = f"version {model.version}{weights} on {device}"
    if entry is not None and entry.weights is not None and not entry.weights_sha256:
        return _warning(
            what, f"{says}; its weights are not pinned.", "Set weights_sha256 of the model."
        )
    return _ok(what, says)


def _echo(config: Config, destination: Destination) -> Finding:
    what = f"destination {destination.name}"
    peer = scu.PeerAddress(*destination.address(config.node.ae_title))
    answer, calling = scu.echo(peer), peer.calling_ae_title
    place = f"{destination.ae_title} at {destination.host}:{destination.port}"
    if answer.ok:
        return _ok(what, f"{place} answers in {answer.seconds * 1000:.0f} ms")
    return _fault(
        what,
        answer.sentence if place in answer.sentence else f"{place}: {answer.sentence}",
        f"Start it, allow {calling} there, or correct its AE title, host and port here.",
    )


def _count(entries: tuple[object, ...], noun: str) -> str:
    return f"{len(entries)} {noun}{'' if len(entries) == 1 else 's'}"


def is_ok(findings: Iterable[Finding]) -> bool:
    """True where none of them is a fault."""
    return all(finding.level is not Level.FAULT for finding in findings)


def as_json(findings: Sequence[Finding]) -> dict[str, object]:
    """All findings, and whether none of them is a fault."""
    return {"ok": is_ok(findings), "findings": [vars(finding) for finding in findings]}
